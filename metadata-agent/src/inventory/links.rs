//! The network devices of the agent's namespace, followed by netlink multicast.
use std::{
    collections::{BTreeSet, HashMap},
    io,
};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream::BoxStream};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};
use tracing::{info, warn};

/// Devices by index: their names.
pub type LinkTable = HashMap<u32, String>;

/// The devices as they are now, and the subscription that keeps them so.
pub struct HostLinks {
    table: LinkTable,
    /// Devices that lost a filter or a qdisc; if that is watched at all.
    stripped: BTreeSet<u32>,
    watch_filters: bool,
    /// All devices anew, after something was missed. It stays under way while nobody waits for it.
    listing: Option<BoxFuture<'static, io::Result<LinkTable>>>,
    /// Missing after it ended, until there is another.
    subscription: Option<Subscription>,
}

struct Subscription {
    handle: rtnetlink::Handle,
    messages: BoxStream<'static, NetlinkPayload<RouteNetlinkMessage>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl std::fmt::Debug for HostLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostLinks").field("table", &self.table).finish_non_exhaustive()
    }
}

impl HostLinks {
    /// Subscribes, then lists: a device that appears in between is in both. With `watch_filters` it is noted when
    /// somebody removes a filter or a qdisc.
    pub async fn subscribe(watch_filters: bool) -> io::Result<Self> {
        let subscription = Subscription::open(watch_filters)?;
        let table = subscription.list().await?;
        Ok(Self {
            table,
            stripped: BTreeSet::new(),
            watch_filters,
            listing: None,
            subscription: Some(subscription),
        })
    }

    /// Devices that lost a filter or a qdisc since this was last asked.
    pub fn take_stripped(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.stripped)
    }

    /// The devices as of the last event.
    pub fn table(&self) -> &LinkTable {
        &self.table
    }

    /// Waits for the next change. May be cancelled at any point without losing one; an error is tried again by the next
    /// call.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let subscription = match &mut self.subscription {
                Some(subscription) => subscription,
                none => {
                    let subscription = none.insert(Subscription::open(self.watch_filters)?);
                    self.listing = Some(subscription.list().boxed());
                    subscription
                }
            };
            if let Some(listing) = &mut self.listing {
                let listed = listing.await;
                self.listing = listed.is_err().then(|| subscription.list().boxed());
                self.table = listed?;
                if self.watch_filters {
                    self.stripped.extend(self.table.keys());
                }
                return Ok(());
            }
            match subscription.messages.next().await {
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
                    if self.set(&link) {
                        return Ok(());
                    }
                }
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))) => {
                    // A bridge reports a port that leaves it as a deleted link of its own family (AF_BRIDGE).
                    if link.header.interface_family == netlink_packet_route::AddressFamily::Unspec
                        && self.table.remove(&link.header.index).is_some()
                    {
                        return Ok(());
                    }
                }
                Some(NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::DelTrafficFilter(message)
                    | RouteNetlinkMessage::DelQueueDiscipline(message),
                )) => {
                    if let Ok(ifindex) = u32::try_from(message.header.index) {
                        self.stripped.insert(ifindex);
                        return Ok(());
                    }
                }
                Some(NetlinkPayload::Overrun(_)) => {
                    info!("netlink lost messages, listing all devices again");
                    self.listing = Some(subscription.list().boxed());
                }
                Some(_) => {}
                None => {
                    warn!("the netlink subscription ended, subscribing again");
                    self.subscription = None;
                }
            }
        }
    }

    fn set(&mut self, link: &LinkMessage) -> bool {
        match name(link) {
            Some(name) => self.table.insert(link.header.index, name.to_owned()).as_deref() != Some(name),
            None => false,
        }
    }
}

impl Subscription {
    fn open(watch_filters: bool) -> io::Result<Self> {
        let groups: &[MulticastGroup] =
            if watch_filters { &[MulticastGroup::Link, MulticastGroup::Tc] } else { &[MulticastGroup::Link] };
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(groups)?;
        let connection = tokio::spawn(connection);
        Ok(Self { handle, messages: messages.map(|(message, _)| message.payload).boxed(), connection })
    }

    fn list(&self) -> impl Future<Output = io::Result<LinkTable>> + Send + use<> {
        let links = self.handle.link().get().execute();
        async move {
            let links: Vec<LinkMessage> = links.try_collect().await.map_err(io::Error::other)?;
            Ok(links.iter().filter_map(|link| Some((link.header.index, name(link)?.to_owned()))).collect())
        }
    }
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}
