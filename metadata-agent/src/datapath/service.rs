//! The service device: a veth pair whose inner end, in a namespace of its own, holds the addresses that guests ask.
//!
//! A private namespace keeps the host's firewall, rp_filter, conntrack, routes and sysctls out of the way, and a guest
//! can reach nothing but the listener. All of it is idempotent: a restarted agent finds it as it should be.
#![forbid(unsafe_code)]
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener},
    path::Path,
    time::Duration,
};

use metadata_ebpf::address::{
    METADATA_PORT, METADATA_V4, METADATA_V6, SERVICE_MAC, TAG_NET_V4, TAG_NET_V6, TAG_PREFIX_V4,
    TAG_PREFIX_V6,
};
use netlink_packet_route::{
    link::{InfoData, InfoVeth},
    neighbour::NeighbourState,
};
use nix::sys::stat::fstat;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::{info, warn};

use super::{
    Device, Error, MapsId, Netns,
    netlink::{End, block_on, delete, find, netlink, refused, write_sysctl},
};
use crate::handshakes;

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

/// Timeout of data that is sent and not acknowledged (`TCP_USER_TIMEOUT`).
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
    // What a guest's network says about the size of packets does not reach us: a connection that goes silent finds out
    // by itself (RFC 4821), after one retransmission and not after three.
    ("net/ipv4/tcp_mtu_probing", "1"),
    ("net/ipv4/tcp_retries1", "1"),
    // What a closed connection leaves for a minute is the host's memory, whoever closed it: 8 MB of it at most.
    ("net/ipv4/tcp_max_tw_buckets", "32768"),
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
    /// True if a former agent had the pair: what the guests' connections were with was ours.
    pub succeeds: bool,
    /// Number by which the kernel knows its namespace in ours, -1 for none.
    pub number: i32,
    netns: Netns,
    /// Interface index of the inner end.
    inner: u32,
    has_ipv6: bool,
    /// Maps that give its addresses their meaning.
    maps: Option<MapsId>,
}

impl ServiceDevice {
    /// Makes or adopts the namespace of that name and the pair, and sets up both ends.
    ///
    /// They are adopted with the maps that they were marked with, `former`, and made anew otherwise: what an address in
    /// there means is in those maps alone, and the kernel goes on sending what was not acknowledged to whoever has that
    /// address now.
    pub fn set_up(name: &str, former: Option<MapsId>) -> Result<Self, Error> {
        let host = block_on(find(HOST_END)).map_err(failed(name, "looking for the service device"))?;
        let succeeds = host.is_some();
        let is_ours = |host: &End| former.is_some_and(|id| host.alias.as_deref() == Some(&*id.to_string()));
        let mut netns = Netns::open_or_create(name).map_err(failed(name, "making it"))?;
        if !host.as_ref().is_some_and(is_ours) {
            if let Some(host) = host {
                info!("the service device belongs to other maps: making it and its namespace anew");
                block_on(delete(host.ifindex)).map_err(failed(name, "removing a former service device"))?;
            }
            Netns::remove(name).map_err(failed(name, "removing a former one"))?;
            netns = Netns::open_or_create(name).map_err(failed(name, "making it"))?;
        }
        let mut device = Self {
            host_end: Device::tap(0, HOST_END),
            succeeds,
            number: -1,
            netns,
            inner: 0,
            has_ipv6: false,
            maps: None,
        };
        device.repair()?;
        if !device.has_ipv6 {
            warn!("this kernel has no IPv6: guests are served over IPv4 only");
        }
        Ok(device)
    }

    /// Gives the namespace its name again, if somebody took that away: by it a successor finds it.
    pub fn keep_name(&self) -> Result<(), Error> {
        self.netns.keep_name().map_err(failed(self.netns.name(), "giving it its name"))
    }

    /// Brings both ends to what they should be, whatever was done to them. A pair that is gone is made again under the
    /// indexes it had, by which programs and sockets know it.
    pub fn repair(&mut self) -> Result<(), Error> {
        let name = self.netns.name().to_owned();
        let failed = |what| failed(&name, what);
        let host = block_on(find(HOST_END)).map_err(failed("looking for the service device"))?;
        let inner = self.netns.run(|| block_on(find(INNER_END)));
        let inner = inner.map_err(failed("looking for the service device"))?;
        let paired = match (&host, &inner) {
            (Some(host), Some(inner)) => inner.peer == Some(host.ifindex) && host.peer == Some(inner.ifindex),
            _ => false,
        };
        if !paired {
            if let Some(host) = &host {
                block_on(delete(host.ifindex)).map_err(failed("removing a stale service device"))?;
            }
            if let Some(inner) = self.netns.run(|| block_on(find(INNER_END))).ok().flatten() {
                let deleted = self.netns.run(|| block_on(delete(inner.ifindex)));
                deleted.map_err(failed("removing a stale service device"))?;
            }
            let indexes = (self.host_end.ifindex, self.inner);
            block_on(create(self.netns.fd(), indexes)).map_err(failed("creating the service device"))?;
        }
        let inside = self.netns.run(|| block_on(set_up_inside()));
        (self.inner, self.has_ipv6) = inside.map_err(failed("setting up the inside"))?;
        let host = block_on(set_up_host_end()).map_err(failed("setting up the host end"))?;
        (self.host_end.ifindex, self.number) = (host.ifindex, host.peer_namespace.unwrap_or(-1));
        self.maps.map_or(Ok(()), |maps| self.mark(maps))?;
        self.keep_name()
    }

    /// Notes on the device which maps its addresses have their meaning from.
    pub fn mark(&mut self, maps: MapsId) -> Result<(), Error> {
        self.maps = Some(maps);
        let marked = block_on(set_alias(self.host_end.ifindex, maps.to_string()));
        marked.map_err(failed(self.netns.name(), "marking the service device"))
    }

    /// True if the service has its IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.has_ipv6
    }

    /// The sockets guests connect to: for each of the `workers` at least one of each family. Connections are spread over
    /// them by the kernel (SO_REUSEPORT), so that each wakes one worker and not all.
    ///
    /// Those of a former agent are used as they are, with the connections that wait in them, if they are of this namespace.
    /// None of them can be left out: the kernel goes on leading connections to it. Where that agent still runs, further ones do
    /// not listen before [`listen`], since nobody would accept from them if this one does not come to serve.
    pub fn listeners(
        &self,
        workers: usize,
        former: Vec<TcpListener>,
        is_successor: bool,
    ) -> Result<Vec<Vec<TcpListener>>, Error> {
        let failed = || failed(self.netns.name(), "listening");
        let v4 = SocketAddr::from((METADATA_V4, METADATA_PORT));
        let v6 = SocketAddrV6::new(METADATA_V6, METADATA_PORT, 0, self.inner).into();
        let addresses = [v4].into_iter().chain(self.has_ipv6.then_some(v6));
        // One that several have kept comes from each of them.
        let mut seen = BTreeSet::new();
        let mut former: Vec<TcpListener> = former
            .into_iter()
            .filter(|socket| fstat(socket).is_ok_and(|stat| seen.insert(stat.st_ino)))
            .filter(|socket| self.netns.holds(socket).unwrap_or(false))
            .collect();
        let mut sets: Vec<Vec<TcpListener>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
        for address in addresses {
            // A guest's connection has the same address.
            let is_there = |socket: &mut TcpListener| {
                SockRef::from(&*socket).is_listener().unwrap_or(false)
                    && socket.local_addr().is_ok_and(|own| own == address)
            };
            let there: Vec<TcpListener> = former.extract_if(.., is_there).collect();
            let missing = sets.len().saturating_sub(there.len());
            let made =
                self.netns.run(|| (0..missing).map(|_| bound(address)).collect::<io::Result<Vec<_>>>());
            let made = made.map_err(failed())?;
            if !is_successor {
                made.iter().try_for_each(listen).map_err(failed())?;
            }
            let sockets = there.into_iter().map(resume).chain(made.into_iter().map(Ok));
            for (number, socket) in sockets.enumerate() {
                let place = number % sets.len();
                sets[place].push(socket.map_err(failed())?);
            }
        }
        Ok(sets)
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

/// Has a socket listen, whoever kept it from that; nothing changes for one that does.
pub fn listen(socket: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(socket);
    handshakes::begin(&socket)?;
    socket.listen(BACKLOG)
}

/// A new socket for a worker, to be made inside.
fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // What is accepted inherits it.
    socket.set_tcp_nodelay(true)?;
    // A guest that takes nothing more of what was sent before a close does not keep it for minutes.
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A former agent's socket, which that one may have kept from beginning new connections.
fn resume(listener: TcpListener) -> io::Result<TcpListener> {
    handshakes::begin(&SockRef::from(&listener))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// An error of the service namespace of that name.
fn failed(netns: &str, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Service { netns: netns.to_owned(), what, error }
}

async fn set_alias(ifindex: u32, alias: String) -> io::Result<()> {
    let marked = LinkUnspec::new_with_index(ifindex).alias(alias).build();
    netlink()?.link().set(marked).execute().await.map_err(refused)
}

/// The inner end is born inside: it never exists under its name in the host's namespace. Indexes of zero leave the choice
/// to the kernel.
async fn create(netns: i32, (host, inner): (u32, u32)) -> io::Result<()> {
    let inner = LinkUnspec::new_with_name(INNER_END).index(inner).setns_by_fd(netns);
    let inner = inner.address(SERVICE_MAC.to_vec()).build();
    let pair =
        LinkVeth::new(HOST_END, INNER_END).index(host).set_info_data(InfoData::Veth(InfoVeth::Peer(inner)));
    netlink()?.link().add(pair.build()).execute().await.map_err(refused)
}

async fn set_up_host_end() -> io::Result<End> {
    let host = find(HOST_END).await?.ok_or_else(|| io::Error::other("the host end vanished"))?;
    // The host has no business in the service namespace: no neighbour discovery, no multicast reports.
    write_sysctl(&format!("net/ipv6/conf/{HOST_END}/disable_ipv6"), "1")?;
    let up = LinkUnspec::new_with_index(host.ifindex).up().build();
    netlink()?.link().set(up).execute().await.map_err(refused)?;
    Ok(host)
}

/// Returns the index of the inner end, and whether it can have an IPv6 address.
async fn set_up_inside() -> io::Result<(u32, bool)> {
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
        return Ok((inner.ifindex, false));
    }
    write_sysctl(&format!("net/ipv6/conf/{INNER_END}/disable_ipv6"), "0")?;
    set_up_v6(&handle, inner.ifindex).await?;
    Ok((inner.ifindex, true))
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
