//! Assignments that end: of ports that are gone, and of those that a former agent left. Entries that lead to a port are
//! gone before its index can be used again.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use metadata_ebpf::map::PortKey;
use tracing::{debug, error, info};

use super::{
    Reconciler,
    served::{self, owner},
};
use crate::{
    datapath::{Adopted, Assignment},
    inventory::Desired,
};

/// Time for which resets still find their way out of an assignment that has ended.
const ENDING: Duration = Duration::from_secs(1);

/// An assignment that ends.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) assignment: Assignment,
    /// True if its guest is still there, to hear the resets of its connections.
    pub(super) hears: bool,
}

impl Reconciler {
    /// Ends an assignment. The program stays on a tap that somebody else is to be served on.
    ///
    /// A device that has the program is the one that the guest is behind, and `hears` of the end. Another one may have its
    /// name and its index by now, and is not to hear of connections that were not its own.
    pub(super) fn end(&mut self, key: PortKey, hears: bool, desired: &Desired) -> Option<Ended> {
        let served = self.served.remove(&key)?;
        let device = served.device();
        info!(tap = device.name, ifindex = device.ifindex, port = served.wanted.port, "port gone");
        let shared = self.served.keys().chain(desired.keys()).any(|other| other.ifindex == key.ifindex);
        if !shared {
            self.networks.remove(&key.ifindex);
            if let Err(error) = self.datapath.detach(key.ifindex) {
                error!(%error, tap = device.name, "cannot detach");
            }
        }
        if let Err(error) = self.datapath.end(key, served.assignment) {
            error!(%error, tap = device.name, "cannot end a port's assignment");
        }
        Some(Ended { assignment: served.assignment, hears })
    }

    pub(super) fn release(&mut self, assignment: Assignment) {
        if let Err(error) = self.datapath.release(assignment) {
            error!(%error, index = assignment.index, "cannot release a port's entry");
        }
        self.indexes.give_back(assignment);
    }

    pub(super) fn release_ended(&mut self, now: Instant) {
        while let Some((_, assignment)) =
            self.ended.pop_front_if(|(since, _)| now.saturating_duration_since(*since) >= ENDING)
        {
            self.release(assignment);
        }
    }

    /// Removes what a former agent left for ports that are gone, or that belong to somebody else by now: their entries,
    /// and the links of their devices. Returns the assignments of those that are still there.
    pub(super) fn sweep(
        &mut self,
        adopted: BTreeMap<PortKey, Adopted>,
        desired: &Desired,
    ) -> BTreeMap<PortKey, Adopted> {
        let goes_on = |key: &PortKey, adopted: &Adopted| {
            desired.get(key).is_some_and(|wanted| served::succeeds(adopted.owner, owner(wanted)))
        };
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            adopted.into_iter().partition(|(key, adopted)| goes_on(key, adopted));
        for (key, Adopted { assignment, .. }) in gone {
            debug!(ifindex = key.ifindex, "releasing a former agent's port");
            let shared = desired.keys().any(|other| other.ifindex == key.ifindex);
            if !shared && let Err(error) = self.datapath.detach(key.ifindex) {
                error!(%error, ifindex = key.ifindex, "cannot detach");
            }
            let ended = self.datapath.end(key, assignment).and_then(|()| self.datapath.release(assignment));
            if let Err(error) = ended {
                error!(%error, ifindex = key.ifindex, "cannot release a port's entries");
            }
            self.indexes.give_back(assignment);
        }
        let is_network = |ifindex| desired.keys().any(|key| key.ifindex == ifindex && key.is_station());
        if let Err(error) = self.datapath.keep_networks(is_network) {
            error!(%error, "cannot forget the networks of a former agent");
        }
        let pinned = self.datapath.attached().unwrap_or_else(|error| {
            error!(%error, "cannot list the pinned links");
            Vec::new()
        });
        for ifindex in pinned {
            let wanted = desired.keys().any(|key| key.ifindex == ifindex);
            if !wanted && let Err(error) = self.datapath.detach(ifindex) {
                error!(%error, ifindex, "cannot remove a stale link");
            }
        }
        kept
    }
}
