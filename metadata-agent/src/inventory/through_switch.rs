//! Ports that are reached through the switch, while databases come and go: which of them are in doubt or kept, since when the
//! Southbound's word counts, and the devices that they need.
use std::{collections::BTreeSet, time::Duration};

use metadata_ebpf::map::PortKey;
use ovsdb_client::{Handle, Uuid};
use tokio::time::Instant;

use super::{
    bindings::Bindings,
    external::External,
    join::Tapless,
    lost_devices::LostDevices,
    network_devices::{NetworkDevices, Rows, is_ours},
    rows::Interface,
    stations::{self, Decision, Doubts, Inputs},
    subscription::Subscription,
    vif::Switch,
};

/// Timeout of the Southbound's first word, where a former agent has left devices of networks: whom they serve, nobody else
/// can say.
const FIRST_WORD: Duration = Duration::from_secs(3);

/// State kept between one decision and the next.
#[derive(Debug)]
pub(super) struct ThroughSwitch {
    external: External,
    doubts: Doubts,
    /// The networks of which the metadata port has to be known.
    networks: BTreeSet<String>,
    devices: NetworkDevices,
    lost: LostDevices,
    /// True if there may be devices of networks.
    is_enabled: bool,
    started: Instant,
    answers_since: Option<Instant>,
    /// True if the Southbound has said which ports are this chassis', or had its time to.
    is_settled: bool,
}

/// The Southbound, as it is now.
pub(super) struct Southbound<'a> {
    pub(super) bindings: &'a Bindings,
    pub(super) subscription: &'a Subscription,
    /// The row of this chassis.
    pub(super) chassis: Option<Uuid>,
    pub(super) is_connected: bool,
    /// True if the rows are here that it was asked for.
    pub(super) has_answered: bool,
}

impl ThroughSwitch {
    /// Nothing is known yet.
    pub(super) fn new(is_enabled: bool) -> Self {
        Self {
            external: External::default(),
            doubts: Doubts::default(),
            networks: BTreeSet::new(),
            devices: NetworkDevices::default(),
            lost: LostDevices::default(),
            is_enabled,
            started: Instant::now(),
            answers_since: None,
            is_settled: !is_enabled,
        }
    }

    /// The networks of which the metadata port has to be known.
    pub(super) fn networks(&self) -> &BTreeSet<String> {
        &self.networks
    }

    /// Notes that the ports of the local Open vSwitch have changed.
    pub(super) fn note_rows(&mut self) {
        self.devices.note_rows();
    }

    /// Decides on those that have no tap. `None` as long as a former agent has left devices, and the Southbound has
    /// not had its time to say for whom.
    pub(super) fn decide<'b>(
        &mut self,
        now: Instant,
        (switch, interfaces): (&Switch<'_>, &[&Interface]),
        southbound: &Southbound<'_>,
        tapless: Vec<Tapless<'_>>,
        served: impl Fn(PortKey) -> Option<&'b str>,
    ) -> Option<Decision> {
        if !self.is_enabled {
            return Some(Decision::default());
        }
        let Southbound { bindings, subscription, chassis, is_connected, has_answered } = *southbound;
        let tapless = self.doubts.settle(now, tapless);
        let inputs = Inputs {
            switch,
            interfaces,
            bindings,
            tapless: &tapless,
            external: self.external.update(now, chassis, bindings),
            asks_for: &|network| has_answered && subscription.asks_for_network(network),
        };
        let mut decision = stations::decide(&inputs, served);
        self.networks.clone_from(&decision.networks);
        if has_answered && !self.is_settled {
            // Without a row of the chassis' own it has nothing to say about external ports.
            let since = *self.answers_since.get_or_insert(now);
            let is_asked = subscription.asks_for_chassis() && decision.undecided.is_empty();
            self.is_settled = is_asked || now.saturating_duration_since(since) >= FIRST_WORD;
        }
        let is_early = !self.is_settled && now.saturating_duration_since(self.started) < FIRST_WORD;
        if is_early && interfaces.iter().any(|row| is_ours(row)) {
            return None;
        }
        // What a Southbound that is away does not say is not over.
        if self.is_settled && is_connected {
            let mut devices = std::mem::take(&mut decision.devices);
            for network in self.lost.update(now, &decision.networks, &decision.present) {
                devices.remove(network);
            }
            self.devices.want(devices, std::mem::take(&mut decision.undecided));
        }
        Some(decision)
    }

    /// Brings the devices about, as ports of that bridge; tells when to ask again.
    pub(super) async fn write(
        &mut self,
        now: Instant,
        rows: Rows<'_>,
        bridge: &str,
        handle: &Handle,
    ) -> Option<Instant> {
        self.devices.note().await;
        if self.is_settled { self.devices.write(now, &rows, bridge, handle) } else { None }
    }
}
