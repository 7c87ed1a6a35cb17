//! A guest: a namespace whose `eth0` is the other end of a tap, with what a cloud image would run in it.
#![allow(unsafe_code, reason = "a socket option that no library has")]

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, TcpStream},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::PermissionsExt as _,
    },
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, send, sendto, socket,
    },
};

use crate::{
    command::{Words as _, run},
    http::{self, Connection, Response},
    netns::Namespace,
    port::{PREFIX_LENGTH, Port},
    sandbox::Sandbox,
    tap,
    wait::until,
};

pub const METADATA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of duplicate address detection.
const DETECTION: Duration = Duration::from_secs(60);

/// Generation of a guest's link-local address (addr_gen_mode of Linux).
#[derive(Debug, Clone, Copy)]
pub enum Generation {
    Eui64 = 0,
    /// Nobody could tell the MAC from it (RFC 7217).
    Random = 3,
}

/// Of linux/in.h.
const IP_NODEFRAG: libc::c_int = 22;

/// Script that udhcpc calls with a lease: option 121 replaces option 3 (RFC 3442).
pub(crate) const DHCP_HOOK: &str = r#"#!/bin/sh
case $1 in
deconfig) ip link set "$interface" up; ip -4 addr flush dev "$interface";;
bound|renew)
	ip addr replace "$ip/$mask" dev "$interface"
	[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
	set -- $staticroutes
	if [ $# = 0 ]; then for r in $router; do ip route replace default via "$r"; done; fi
	while [ $# -ge 2 ]; do
		if [ "$2" = 0.0.0.0 ]; then ip route replace "$1" dev "$interface"; else ip route replace "$1" via "$2"; fi
		shift 2
	done;;
esac
"#;

#[derive(Debug)]
pub struct Guest {
    pub port: Port,
    pub netns: Namespace,
    dhcp_hook: PathBuf,
}

impl Guest {
    /// An empty machine; its chassis gives it a NIC.
    pub fn create(sandbox: &Sandbox, port: Port) -> Result<Self> {
        let dhcp_hook = sandbox.path("udhcpc.sh");
        if !dhcp_hook.exists() {
            // Written aside and renamed: another guest may be about to run it.
            let draft = sandbox.path(format!("{}.draft", port.tap));
            fs::write(&draft, DHCP_HOOK)?;
            fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
            fs::rename(&draft, &dhcp_hook)?;
        }
        let netns = Namespace::create(sandbox, &format!("guest{}", sandbox.next_guest()))?;
        Ok(Self { port, netns, dhcp_hook })
    }

    /// Makes the NIC and the tap, a pair of devices, the tap on the host with that ifindex.
    pub fn insert_nic(&self, host: &Namespace, ifindex: u32, mtu: u32) -> Result<()> {
        let Port { tap, mac, .. } = &self.port;
        let netns = self.netns.name();
        host.ip(format!("link add {tap} index {ifindex} type veth peer name eth0 netns {netns}"))?;
        self.netns.ip(format!("link set eth0 address {mac} mtu {mtu} up"))?;
        host.ip(format!("link set {tap} address {} mtu {mtu} up", self.port.tap_mac()))?;
        Ok(())
    }

    /// The same with a tap as a hypervisor makes it.
    pub(crate) fn insert_tap(&self, host: &Namespace, ifindex: u32, mtu: u32) -> Result<()> {
        let Port { tap, mac, .. } = &self.port;
        tap::connect(host, tap, Some(ifindex), &[(0, &self.netns)])?;
        self.netns.ip(format!("link set eth0 address {mac} mtu {mtu} up"))?;
        host.ip(format!("link set {tap} address {} mtu {mtu} up", self.port.tap_mac()))?;
        Ok(())
    }

    /// Makes a tap on a host that leads to a device of the machine's, one of several that a bridge in it has: what moves when
    /// the machine does is where its NIC leads to. Returns the tap's ifindex.
    pub fn insert_device(&self, host: &Namespace, device: &str, mtu: u32) -> Result<u32> {
        let (tap, netns) = (&self.port.tap, self.netns.name());
        host.ip(format!("link add {tap} mtu {mtu} type veth peer name {device} netns {netns}"))?;
        host.ip(format!("link set {tap} address {} up", self.port.tap_mac()))?;
        self.netns.ip(format!("link set {device} mtu {mtu} up"))?;
        host.ifindex(tap)
    }

    /// Gets an address and routes from the network's DHCP server.
    pub fn dhcp(&self) -> Result<()> {
        let hook = self.dhcp_hook.to_str().context("the run directory's name is not text")?;
        let mut udhcpc = self.netns.command("udhcpc")?;
        run(udhcpc.words(format!("-i eth0 -f -q -n -t 40 -T 1 -O staticroutes -O mtu -s {hook}")))
            .with_context(|| format!("no lease for {}", self.port.address))?;
        Ok(())
    }

    /// Sets the address by hand, and one route to the metadata address: on the link, or through a neighbour.
    pub fn configure(&self, via: Option<(Ipv4Addr, &str)>) -> Result<()> {
        self.netns.ip(format!("addr add {}/{PREFIX_LENGTH} dev eth0", self.port.address))?;
        match via {
            None => self.netns.ip(format!("route add {} dev eth0", METADATA.ip()))?,
            Some((gateway, mac)) => {
                self.netns.ip(format!("neigh replace {gateway} lladdr {mac} dev eth0"))?;
                self.netns.ip(format!("route add {} via {gateway}", METADATA.ip()))?
            }
        };
        Ok(())
    }

    /// Gives it IPv6, of which it has none at first, and waits until it has its link-local address.
    pub fn enable_ipv6(&self, generation: Generation) -> Result<()> {
        self.netns.sysctl("net.ipv6.conf.eth0.addr_gen_mode", &(generation as u8).to_string())?;
        for scope in ["all", "eth0"] {
            self.netns.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "0")?;
        }
        until("the link-local address is usable", DETECTION, || {
            let addresses = self.netns.ip("-6 -o addr show dev eth0 scope link")?;
            ensure!(addresses.contains("fe80:") && !addresses.contains("tentative"), "{addresses:?}");
            Ok(())
        })
    }

    /// The addresses that the NIC has now.
    pub fn addresses(&self) -> Result<Vec<Ipv4Addr>> {
        let text = self.netns.ip("-4 -o addr show dev eth0")?;
        let words = text.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
        Ok(words.filter_map(|word| word.parse().ok()).collect())
    }

    pub fn ping(&self, to: Ipv4Addr) -> Result<()> {
        run(self.netns.command("busybox")?.words(format!("ping -c 1 -W 2 {to}")))?;
        Ok(())
    }

    /// Sends an IPv4 packet as it is, header and all; the kernel only fills in its length and checksum, and puts no
    /// fragments together, which connection tracking would have it do (IP_NODEFRAG of ip(7)).
    pub fn send_packet(&self, packet: &[u8]) -> Result<()> {
        let send = || -> nix::Result<usize> {
            let socket =
                socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
            keep_fragments(socket.as_raw_fd())?;
            sendto(socket.as_raw_fd(), packet, &SockaddrIn::from(METADATA), MsgFlags::empty())
        };
        self.netns.run(send)?.context("cannot send a packet of our own making")?;
        Ok(())
    }

    /// Sends the reverse ARP request that QEMU sends for a machine that has moved.
    pub fn announce_itself(&self) -> Result<()> {
        let octets = self.port.mac.split(':').map(|octet| u8::from_str_radix(octet, 16));
        let mac = octets.collect::<Result<Vec<_>, _>>()?;
        let head = [&[0xff; 6][..], &mac, &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]].concat();
        let frame = [&head[..], &mac, &[0; 4], &mac, &[0; 4]].concat();
        let transmit = || -> nix::Result<()> {
            let addresses = getifaddrs()?.filter(|interface| interface.interface_name == "eth0");
            let mut links = addresses.filter_map(|interface| interface.address?.as_link_addr().copied());
            let address = links.next().ok_or(Errno::ENODEV)?;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            bind(socket.as_raw_fd(), &address)?;
            send(socket.as_raw_fd(), &frame, MsgFlags::empty()).map(drop)
        };
        self.netns.run(transmit)?.context("cannot send a frame of our own making")
    }

    /// Sends SYNs to the metadata address until told to stop; returns how many.
    pub fn flood(&self, stop: &AtomicBool) -> Result<u64> {
        self.flood_as(stop, |_| self.port.address)
    }

    /// The same with a source for each, by its number.
    pub fn flood_as(&self, stop: &AtomicBool, source: impl Fn(u64) -> Ipv4Addr + Sync) -> Result<u64> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0];
        packet.extend(METADATA.ip().octets());
        packet.extend([0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        let flood = || -> nix::Result<u64> {
            let socket =
                socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
            let mut sent = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                packet[12..16].copy_from_slice(&source(sent).octets());
                packet[20..22].copy_from_slice(&((sent % 60_000) as u16 + 1024).to_be_bytes());
                sendto(socket.as_raw_fd(), &packet, &SockaddrIn::from(METADATA), MsgFlags::empty())?;
                sent += 1;
            }
            Ok(sent)
        };
        Ok(self.netns.run(flood)??)
    }

    /// `GET` on a connection of its own.
    pub fn get(&self, target: &str) -> http::Result<Response> {
        self.request("GET", target, &[], b"")
    }

    /// One request on a connection of its own.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> http::Result<Response> {
        let headers = [headers, &[("Connection", "close")]].concat();
        self.connect()?.request(method, target, &headers, body)
    }

    pub fn connect(&self) -> http::Result<Connection<TcpStream>> {
        self.connect_with(None, TIMEOUT)
    }

    /// A connection over IPv6.
    pub fn connect_v6(&self) -> Result<Connection<TcpStream>> {
        let address = SocketAddrV6::new(METADATA_V6, METADATA.port(), 0, self.netns.ifindex("eth0")?);
        let stream = self.netns.run(move || TcpStream::connect_timeout(&address.into(), TIMEOUT))?;
        let stream = stream.context("no connection over IPv6")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Connection::new(stream))
    }

    /// A connection to the metadata address from a chosen source.
    pub fn connect_from(&self, source: SocketAddrV4) -> http::Result<Connection<TcpStream>> {
        self.connect_with(Some(source), TIMEOUT)
    }

    /// The limit is for the connection to be made, and later for each read.
    pub fn connect_with(
        &self,
        source: Option<SocketAddrV4>,
        limit: Duration,
    ) -> http::Result<Connection<TcpStream>> {
        let stream = self.netns.run(|| http::connect_from(source, METADATA, limit));
        let stream =
            stream.map_err(|error| http::Error::Io(std::io::Error::other(format!("{error:#}"))))??;
        Ok(Connection::new(stream))
    }
}

/// Has the kernel send fragments as they are.
fn keep_fragments(socket: RawFd) -> nix::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value lives as long as the call, and the size is its own.
    let result =
        unsafe { libc::setsockopt(socket, libc::IPPROTO_IP, IP_NODEFRAG, (&raw const on).cast(), size) };
    Errno::result(result).map(drop)
}
