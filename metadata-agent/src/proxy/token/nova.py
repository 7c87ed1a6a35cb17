"""What Nova serves for targets: one in hexadecimal digits a line on stdin, and on stdout for each whether it has a secret in it.

Nova's metadata API is a WebOb application behind Paste's urlmap, in eventlet's server: those are the real ones here. What Nova
does with the path then (lookup of nova/api/metadata/base.py) is done in the same way.
"""
import logging
import posixpath
import sys

import eventlet
import webob
import webob.dec
from eventlet import wsgi
from eventlet.green import socket
from paste.urlmap import URLMap

# What its documents are called, in versions that have all of them.
OPENSTACK = {"user_data", "password", "vendor_data.json", "vendor_data2.json"}
EC2 = {"user-data"}
VERSIONS = {"latest", "2009-04-04", "2018-08-27"}


def has_secret(path):
    path = posixpath.normpath(path if path.startswith("/") else "/" + path)
    tokens = path.split("/")[1:]
    if tokens[0] == "openstack":
        if tokens[1:2] == ["content"]:
            return len(tokens) == 3
        return len(tokens) > 1 and tokens[1] in VERSIONS and "/".join(tokens[2:]) in OPENSTACK
    if tokens[0] != "ec2":
        tokens = ["ec2"] + tokens
    # What is below user data is sought in a text, and not found.
    return len(tokens) == 3 and tokens[1] in VERSIONS and tokens[2] in EC2


@webob.dec.wsgify
def nova(request):
    return webob.Response("secret" if has_secret(request.path_info) else "none")


def ask(address, target):
    connection = socket.create_connection(address)
    connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = b""
    while True:
        data = connection.recv(65536)
        if not data:
            connection.close()
            return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"secret")
        answer += data


logging.disable()
# Of requests that it refuses.
wsgi.HttpProtocol.log_message = lambda *_: None
urls = URLMap()
urls["/"] = nova
listener = eventlet.listen(("127.0.0.1", 0))
# What makes it fail is in its log; nobody is told the document.
eventlet.spawn(wsgi.server, listener, urls, log_output=False, debug=False)
for line in sys.stdin:
    print(int(ask(listener.getsockname(), bytes.fromhex(line))))
