//! The directory of tags: the ports that this host serves, with their identities and signatures, as the control plane last
//! published them, and what each tap takes of those who serve it.
//!
//! The two planes meet here and nowhere else. The control plane writes, by [`Directory::publish`] and [`Port::resolve`];
//! the proxy looks up, and counts. Each has one in its own process: [`Changes`] of the one are applied to the other, by
//! [`Directory::apply`].
//!
//! ```text
//! port      one assignment, who is behind it     identity  that, signed
//! tap       a device, what its ports take        usage     how much, of what, and the limits
//! place     one of its connections               gauge     how many there are
//! rate      how much in time                     sources   what the datapath knows of them
//! entry     a port that travels                  changes   what of it is news to the other process
//! policy    what a port's requests must bring    tally    what became of them
//! ```
#![forbid(unsafe_code)]
mod changes;
mod entry;
mod gauge;
mod identity;
mod place;
mod policy;
mod port;
mod rate;
mod sources;
mod tally;
mod tap;
mod usage;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use metadata_ebpf::address::Tag;
use tokio::{sync::watch, time::timeout};

pub use changes::Changes;
pub use entry::{Entry, Known};
pub(crate) use gauge::{Gauge, Permit};
pub use identity::{Identity, InvalidIdentity, SignedIdentity, Signer};
pub(crate) use place::{Phase, Place};
pub use policy::{RequestPolicy, TokenKey, TokenKeys, TokenPolicy};
pub use port::{PROBE_ANSWER, Port, Resolution};
pub(crate) use rate::Bucket;
pub use sources::{OpenConnection, Sources};
pub use tally::{LONGEST_REASON, RECENT, Record, Tally, TallyReport, Totals};
pub use tap::Tap;
pub(crate) use usage::{Amounts, Holds, Limit, Resource};

/// The ports by index, and their taps. Readers take a snapshot and never wait.
#[derive(Debug, Default)]
pub struct Directory {
    published: ArcSwap<Published>,
    /// All taps that somebody still has, by name.
    taps: Mutex<HashMap<String, Weak<Tap>>>,
    /// The contents were replaced.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Published {
    ports: HashMap<u32, Arc<Port>>,
    taps: Vec<Arc<Tap>>,
}

impl Directory {
    /// The tap of that name, which all ports on it share. Control plane only.
    pub fn tap(&self, name: &str) -> Arc<Tap> {
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tap) = taps.get(name).and_then(Weak::upgrade) {
            return tap;
        }
        let tap = Arc::new(Tap::new(name));
        taps.insert(name.to_owned(), Arc::downgrade(&tap));
        tap
    }

    /// Replaces the contents. Control plane only.
    pub fn publish(&self, ports: HashMap<u32, Arc<Port>>) {
        let mut taps: Vec<_> = ports.values().map(|port| port.tap.clone()).collect();
        taps.sort_by_key(|tap| Arc::as_ptr(tap).addr());
        taps.dedup_by(|one, other| Arc::ptr_eq(one, other));
        self.published.store(Arc::new(Published { ports, taps }));
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.retain(|_, tap| tap.strong_count() > 0);
        drop(taps);
        self.changed.send_replace(());
    }

    /// Tells of each time that something was published.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The port that a tag names, if that assignment still lasts.
    pub fn port(&self, tag: Tag) -> Option<Arc<Port>> {
        let published = self.published.load();
        published.ports.get(&tag.index()).filter(|port| port.generation == tag.generation()).cloned()
    }

    /// The same, once it is known here: a guest's first connection may be faster than the news of its port.
    pub(crate) async fn port_soon(&self, tag: Tag, within: Duration) -> Option<Arc<Port>> {
        let known = async {
            let mut changed = self.changed.subscribe();
            loop {
                if let Some(port) = self.port(tag) {
                    return Some(port);
                }
                changed.changed().await.ok()?;
            }
        };
        timeout(within, known).await.ok().flatten()
    }

    /// All ports with their indexes.
    pub fn ports(&self) -> Vec<(u32, Arc<Port>)> {
        let published = self.published.load();
        published.ports.iter().map(|(index, port)| (*index, port.clone())).collect()
    }

    /// The tap, but for one, that has most of something.
    pub(crate) fn heaviest(&self, has: impl Fn(&Tap) -> u32, but: Option<&Arc<Tap>>) -> Option<Arc<Tap>> {
        let published = self.published.load();
        let others = published.taps.iter().filter(|tap| but.is_none_or(|but| !Arc::ptr_eq(tap, but)));
        others.max_by_key(|tap| has(tap)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_of_another_generation_is_nobody() {
        let port = Port::new("p".into(), Directory::default().tap("tap0"), 3, Resolution::Pending("".into()));
        let directory = Directory::default();
        directory.publish([(7, Arc::new(port))].into());
        assert!(directory.port(Tag::new(3, 7, 5)).is_some());
        assert!(directory.port(Tag::new(2, 7, 5)).is_none());
        assert!(directory.port(Tag::new(3, 8, 5)).is_none());
    }
}
