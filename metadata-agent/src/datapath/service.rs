//! The service device: a veth pair whose inner end, in a namespace of its own, holds the addresses that guests ask.
//!
//! A private namespace keeps the host's firewall, rp_filter, conntrack, routes and sysctls out of the way, and a guest
//! can reach nothing but the listener. All of it is idempotent: a restarted agent finds it as it should be.
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener},
    path::Path,
    time::Duration,
};

use futures_util::TryStreamExt as _;
use metadata_ebpf::address::{
    METADATA_PORT, METADATA_V4, METADATA_V6, SERVICE_MAC, TAG_NET_V4, TAG_NET_V6, TAG_PREFIX_V4,
    TAG_PREFIX_V6,
};
use netlink_packet_route::{
    link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
    neighbour::NeighbourState,
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::{Device, Error, Netns};

/// Host end. Its ingress sees what the service sends.
const HOST_END: &str = "metadata0";
/// Inner end.
const INNER_END: &str = "metadata1";
/// The next hop of all synthetic addresses: one permanent neighbour entry instead of one for each source. The
/// neighbour table is limited across all namespaces of a host (gc_thresh3), and entries of a NOARP device count.
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
/// The same for IPv6.
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fd);
/// Any address will do: `to_guest` replaces it.
const NEXT_HOP_MAC: [u8; 6] = [0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfd];
/// Connections that may wait to be accepted: a burst of boots.
const BACKLOG: i32 = 4096;

/// How long what was sent may go unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of the service namespace.
const SYSCTLS: &[(&str, &str)] = &[
    // Sources are synthetic and the way back is not the kernel's to judge.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/metadata1/rp_filter", "0"),
    // Nothing passes through here.
    ("net/ipv4/ip_forward", "0"),
    // A synthetic address is another guest the next time: what was learned about a path must not be kept.
    ("net/ipv4/tcp_no_metrics_save", "1"),
    // A full queue drops the SYN, which is sent again, and must not refuse it.
    ("net/ipv4/tcp_abort_on_overflow", "0"),
    ("net/core/somaxconn", "4096"),
    // The address is ours by definition: nobody on the other side could contradict.
    ("net/ipv6/conf/metadata1/accept_dad", "0"),
    ("net/ipv6/conf/metadata1/dad_transmits", "0"),
    ("net/ipv6/conf/metadata1/accept_ra", "0"),
    // No other address, and nothing sent that was not asked for.
    ("net/ipv6/conf/metadata1/addr_gen_mode", "1"),
    ("net/ipv6/conf/metadata1/router_solicitations", "0"),
];

/// The pair, set up.
#[derive(Debug)]
pub struct ServiceDevice {
    /// The host end.
    pub host_end: Device,
    /// Interface index of the inner end, if the kernel has IPv6: the scope of its link-local address.
    scope: Option<u32>,
}

impl ServiceDevice {
    /// Makes or adopts the pair, and sets up both ends.
    pub fn set_up(netns: &Netns) -> Result<Self, Error> {
        let failed = |what| move |error| Error::Service { netns: netns.name().to_owned(), what, error };
        let host = block_on(find(HOST_END)).map_err(failed("looking for the service device"))?;
        let inner =
            netns.run(|| block_on(find(INNER_END))).map_err(failed("looking for the service device"))?;
        let paired = match (&host, &inner) {
            (Some(host), Some(inner)) => inner.peer == Some(host.ifindex) && host.peer == Some(inner.ifindex),
            _ => false,
        };
        if !paired {
            if let Some(host) = host {
                block_on(delete(host.ifindex)).map_err(failed("removing a stale service device"))?;
            }
            if let Some(inner) = netns.run(|| block_on(find(INNER_END))).ok().flatten() {
                netns
                    .run(|| block_on(delete(inner.ifindex)))
                    .map_err(failed("removing a stale service device"))?;
            }
            block_on(create(netns.fd())).map_err(failed("creating the service device"))?;
        }
        let scope = netns.run(|| block_on(set_up_inside())).map_err(failed("setting up the inside"))?;
        let ifindex = block_on(set_up_host_end()).map_err(failed("setting up the host end"))?;
        Ok(Self { host_end: Device { ifindex, name: HOST_END.to_owned() }, scope })
    }

    /// The sockets guests connect to, one for each family, as many times as told: connections are spread over them by the
    /// kernel (SO_REUSEPORT), so that each wakes one worker and not all.
    pub fn listen(&self, netns: &Netns, times: usize) -> Result<Vec<Vec<TcpListener>>, Error> {
        let v4 = SocketAddr::from((METADATA_V4, METADATA_PORT));
        let v6 = self.scope.map(|scope| SocketAddrV6::new(METADATA_V6, METADATA_PORT, 0, scope).into());
        let socket = |address: SocketAddr| -> io::Result<TcpListener> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            // What is accepted inherits it.
            socket.set_tcp_nodelay(true)?;
            // A guest that takes nothing more of what was sent before a close does not keep it for minutes.
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        };
        let both = || [v4].into_iter().chain(v6).map(socket).collect();
        let failed = |error| Error::Service { netns: netns.name().to_owned(), what: "listening", error };
        netns.run(|| (0..times).map(|_| both()).collect()).map_err(failed)
    }

    /// Removes the pair.
    pub fn remove() -> io::Result<()> {
        block_on(async {
            match find(HOST_END).await? {
                Some(host) => delete(host.ifindex).await,
                None => Ok(()),
            }
        })
    }
}

struct End {
    ifindex: u32,
    /// Index of the other end, in its own namespace.
    peer: Option<u32>,
}

/// Netlink sockets belong to the namespace of the thread that opens them, so each step runs to its end on its thread.
fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(work)
}

fn netlink() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

fn refused(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

async fn find(name: &str) -> io::Result<Option<End>> {
    let handle = netlink()?;
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link.map(|link| End { ifindex: link.header.index, peer: peer(&link) })),
        Err(error) => match refused(error) {
            error if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            error => Err(error),
        },
    }
}

fn peer(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

async fn delete(ifindex: u32) -> io::Result<()> {
    netlink()?.link().del(ifindex).execute().await.map_err(refused)
}

/// The inner end is born inside: it never exists under its name in the host's namespace.
async fn create(netns: i32) -> io::Result<()> {
    let inner = LinkUnspec::new_with_name(INNER_END).setns_by_fd(netns).address(SERVICE_MAC.to_vec()).build();
    let pair =
        LinkVeth::new(HOST_END, INNER_END).set_info_data(InfoData::Veth(InfoVeth::Peer(inner))).build();
    netlink()?.link().add(pair).execute().await.map_err(refused)
}

async fn set_up_host_end() -> io::Result<u32> {
    let host = find(HOST_END).await?.ok_or_else(|| io::Error::other("the host end vanished"))?;
    // The host has no business in the service namespace: no neighbour discovery, no multicast reports.
    write_sysctl(&format!("net/ipv6/conf/{HOST_END}/disable_ipv6"), "1")?;
    let up = LinkUnspec::new_with_index(host.ifindex).up().build();
    netlink()?.link().set(up).execute().await.map_err(refused)?;
    Ok(host.ifindex)
}

/// Returns the index of the inner end if it can have an IPv6 address.
async fn set_up_inside() -> io::Result<Option<u32>> {
    for (name, value) in SYSCTLS {
        write_sysctl(name, value)?;
    }
    let inner = find(INNER_END).await?.ok_or_else(|| io::Error::other("the inner end vanished"))?;
    let handle = netlink()?;
    // The way out is a permanent neighbour entry; without ARP there are no multicast reports for solicitations either.
    let up = LinkUnspec::new_with_index(inner.ifindex).arp(false).up().build();
    handle.link().set(up).execute().await.map_err(refused)?;
    set_up_v4(&handle, inner.ifindex).await?;
    if !Path::new("/proc/sys/net/ipv6").exists() {
        warn!("this kernel has no IPv6: guests are served over IPv4 only");
        return Ok(None);
    }
    write_sysctl(&format!("net/ipv6/conf/{INNER_END}/disable_ipv6"), "0")?;
    set_up_v6(&handle, inner.ifindex).await?;
    Ok(Some(inner.ifindex))
}

async fn set_next_hop(handle: &Handle, ifindex: u32, address: IpAddr) -> io::Result<()> {
    let neighbour = handle.neighbours().add(ifindex, address).link_layer_address(&NEXT_HOP_MAC);
    neighbour.state(NeighbourState::Permanent).replace().execute().await.map_err(refused)
}

async fn set_up_v6(handle: &Handle, ifindex: u32) -> io::Result<()> {
    let address = handle.address().add(ifindex, IpAddr::V6(METADATA_V6), 128);
    address.replace().execute().await.map_err(refused)?;
    set_next_hop(handle, ifindex, NEXT_HOP_V6.into()).await?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(TAG_NET_V6, TAG_PREFIX_V6)
        .gateway(NEXT_HOP_V6)
        .output_interface(ifindex)
        .onlink()
        .build();
    handle.route().add(route).replace().execute().await.map_err(refused)
}

async fn set_up_v4(handle: &Handle, ifindex: u32) -> io::Result<()> {
    let address = handle.address().add(ifindex, IpAddr::V4(METADATA_V4), 32);
    address.replace().execute().await.map_err(refused)?;
    set_next_hop(handle, ifindex, NEXT_HOP.into()).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(TAG_NET_V4, TAG_PREFIX_V4)
        .gateway(NEXT_HOP)
        .output_interface(ifindex)
        .onlink()
        .pref_source(METADATA_V4)
        .build();
    handle.route().add(route).replace().execute().await.map_err(refused)
}

/// Writes below /proc/sys, in the namespace of the calling thread. A kernel without IPv6 lacks those entries.
fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{name}");
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("net/ipv6/") => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
        Ok(()) => Ok(()),
    }
}
