# What is above this line is of one test: NETWORKS, INSTANCES, HOST, STATE, SWITCH, NOVA, MTU. HOST is the
# namespace of the switch, where devices are its ports.
import http.client
import http.server
import os
import socketserver
import subprocess


def run(*words):
    subprocess.run(words, check=True)


def inside(namespace, *words):
    run("nsenter", f"--net=/run/netns/{namespace}", *words)


def provision(network, port, mac):
    namespace, tap = f"ovnmeta-{network}", f"tap{network[:10]}"
    if not os.path.exists(f"/run/netns/{namespace}"):
        run("ip", "netns", "add", namespace)
        inside(HOST, "ip", "link", "add", f"{tap}0", "type", "veth", "peer", "name", f"{tap}1", "netns", namespace)
        inside(HOST, "ip", "link", "set", f"{tap}0", "mtu", str(MTU), "up")
        inside(namespace, "ip", "link", "set", "lo", "up")
        inside(namespace, "ip", "link", "set", f"{tap}1", "address", mac, "mtu", str(MTU), "up")
        for address in ("192.168.1.2/24", "169.254.169.254/32"):
            inside(namespace, "ip", "addr", "add", address, "dev", f"{tap}1")
        # Where the switch is in user space, it wants whole checksums.
        inside(namespace, "ethtool", "-K", f"{tap}1", "tx", "off")
    vsctl = ("ovs-vsctl", f"--db={SWITCH}", "--timeout=30")
    run(*vsctl, "--may-exist", "add-port", "br-int", f"{tap}0")
    run(*vsctl, "set", "Interface", f"{tap}0", f"external_ids:iface-id={port}")
    file = f"{STATE}/{network}.conf"
    with open(file, "w") as conf:
        conf.write(
            f"""global
    maxconn 1024
    nbthread 2
    pidfile {STATE}/{network}.pid
    daemon
defaults
    mode http
    option http-server-close
    option forwardfor
    retries 3
    timeout http-request 30s
    timeout connect 30s
    timeout client 32s
    timeout server 32s
    timeout http-keep-alive 30s
listen listener
    bind 169.254.169.254:80
    server metadata {STATE}/metadata_proxy
    http-request add-header X-OVN-Network-ID {network}
"""
        )
    try:
        with open(f"{STATE}/{network}.pid") as pid, open(f"/proc/{pid.read().strip()}/cmdline") as command:
            running = command.read().startswith("haproxy")
    except OSError:
        running = False
    if not running:
        inside(namespace, "haproxy", "-f", file)


class Proxy(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "haproxy"

    def do_GET(self):
        who = (self.headers["X-OVN-Network-ID"], self.headers["X-Forwarded-For"])
        instance, project, signature = INSTANCES[who]
        nova = http.client.HTTPConnection(NOVA)
        headers = {
            "X-Instance-ID": instance,
            "X-Tenant-ID": project,
            "X-Instance-ID-Signature": signature,
            "X-Forwarded-For": who[1],
        }
        nova.request("GET", self.path, headers=headers)
        answer = nova.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-By", "the other agent")
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


with open(f"{STATE}/pid", "w") as pid:
    pid.write(str(os.getpid()))
if os.path.exists(f"{STATE}/metadata_proxy"):
    os.unlink(f"{STATE}/metadata_proxy")
server = Server(f"{STATE}/metadata_proxy", Proxy)
for network, (port, mac) in NETWORKS.items():
    provision(network, port, mac)
print("serving", flush=True)
server.serve_forever()
