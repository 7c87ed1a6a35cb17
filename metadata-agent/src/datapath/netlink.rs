//! Netlink requests of the datapath, each made to its end by who asks.
#![forbid(unsafe_code)]
use std::{fs, io, thread};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    link::{LinkAttribute, LinkMessage},
    tc::{TcHandle, TcMessage},
};
use rtnetlink::Handle;

/// Runs a request to its end, on a thread of its own: the caller's may belong to a runtime. Netlink sockets belong to
/// the network namespace of the thread that opens them, which a new thread has from its parent.
pub(super) fn block_on<T: Send>(work: impl Future<Output = io::Result<T>> + Send) -> io::Result<T> {
    let run = || tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(work);
    thread::scope(|scope| {
        let panicked = |_| Err(io::Error::other("the thread of a netlink request panicked"));
        scope.spawn(run).join().unwrap_or_else(panicked)
    })
}

/// A socket for requests, served by the current runtime.
pub(super) fn netlink() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The kernel's error.
pub(super) fn refused(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// The qdisc that has a device's ingress, if there is one, and the filters there.
///
/// The kernel dumps the qdiscs of all devices, whichever is asked for (`tc_dump_qdisc`): on a node of a thousand taps that
/// takes milliseconds, and is for those who need the qdisc.
pub(super) async fn ingress(
    handle: &Handle,
    ifindex: u32,
) -> io::Result<(Option<TcMessage>, Vec<TcMessage>)> {
    let Ok(index) = i32::try_from(ifindex) else { return Ok((None, Vec::new())) };
    let mut qdiscs = Box::pin(handle.qdisc().get().index(index).ingress().execute());
    let mut qdisc = None;
    while let Some(found) = qdiscs.try_next().await.map_err(refused)? {
        if found.header.index == index && found.header.parent == TcHandle::INGRESS {
            qdisc = Some(found);
        }
    }
    if qdisc.is_none() {
        return Ok((None, Vec::new()));
    }
    Ok((qdisc, filters(handle, ifindex).await?))
}

/// The filters at a device's ingress, of which there are none without a qdisc.
pub(super) async fn filters(handle: &Handle, ifindex: u32) -> io::Result<Vec<TcMessage>> {
    let Ok(index) = i32::try_from(ifindex) else { return Ok(Vec::new()) };
    let filters = handle.traffic_filter(index).get().ingress().execute();
    filters.try_collect().await.map_err(refused)
}

/// Gives a device an `ingress` qdisc.
pub(super) async fn add_ingress(handle: &Handle, ifindex: u32) -> io::Result<()> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    handle.qdisc().add(index).ingress().execute().await.map_err(refused)
}

/// A device, as far as it matters whose end it is.
pub(super) struct End {
    pub(super) ifindex: u32,
    /// Index of the other end, in its own namespace.
    pub(super) peer: Option<u32>,
    /// Number of the other end's namespace.
    pub(super) peer_namespace: Option<i32>,
    /// Its alias, on which an agent notes the maps that it belongs to.
    pub(super) alias: Option<String>,
}

/// The device of that name.
pub(super) async fn find(name: &str) -> io::Result<Option<End>> {
    let handle = netlink()?;
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link.as_ref().map(End::of)),
        Err(error) => match refused(error) {
            error if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            error => Err(error),
        },
    }
}

impl End {
    fn of(link: &LinkMessage) -> Self {
        let mut end = Self { ifindex: link.header.index, peer: None, peer_namespace: None, alias: None };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Link(index) => end.peer = Some(*index),
                LinkAttribute::LinkNetNsId(number) => end.peer_namespace = Some(*number),
                LinkAttribute::IfAlias(alias) => end.alias = Some(alias.clone()),
                _ => {}
            }
        }
        end
    }
}

/// Removes a device, which may be gone already.
pub(super) async fn delete(ifindex: u32) -> io::Result<()> {
    match netlink()?.link().del(ifindex).execute().await.map_err(refused) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
        result => result,
    }
}

/// Removes the device of that name, if there is one.
pub async fn remove_device(name: &str) -> io::Result<()> {
    match find(name).await? {
        Some(device) => delete(device.ifindex).await,
        None => Ok(()),
    }
}

/// Writes below /proc/sys, in the namespace of the calling thread. A kernel without IPv6 lacks those entries.
pub(super) fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{name}");
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("net/ipv6/") => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
        Ok(()) => Ok(()),
    }
}
