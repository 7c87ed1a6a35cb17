//! Ports of an OVN chassis: interfaces of the local Open vSwitch, joined with their rows in OVN's Southbound.
//!
//! Only the rows of this chassis are subscribed to (`subscription.rs`), so memory and traffic follow the host, not the
//! region.
mod database;
mod heartbeat;

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use database::Database;
use metadata_ebpf::map::PortKey;
use ovsdb_client::{Clause, Client, Conditions, Config, Event, Generation, Uuid};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::{
    Desired, LinkTable, Unserved, Who,
    bindings::Bindings,
    evidence,
    join::{WithoutRow, join},
    liveness::{Chassis, Liveness, spread},
    network_devices::{Rows, is_ours},
    remembered::Remembered,
    rows::{Bridge, ChassisPrivate, ChassisRow, Interface, OpenVSwitch, Port, PortBinding, SbGlobal},
    subscription::{Row, Subscription},
    through_switch::{Southbound, ThroughSwitch},
    untagged,
    vif::Switch,
};
use crate::{
    explain::{DatabaseSeen, Evidence},
    health::{Problem, Reachability},
};
pub use database::DatabaseStatus;

/// The two databases, and what is derived from them.
#[derive(Debug)]
pub struct Ovn {
    ovs: Database,
    southbound: Database,
    /// Subscription to rows of Port_Binding, and the state of the conditions that brings them.
    subscription: Subscription,
    subscribed: Option<Generation>,
    /// The chassis whose row is subscribed to.
    chassis: Option<Chassis>,
    /// The logical ports that interfaces are plugged for.
    plugged: BTreeSet<String>,
    bindings: Bindings,
    through_switch: ThroughSwitch,
    remembered: Remembered,
    liveness: Liveness,
    /// The write that is under way, and what tells it that it has the lock.
    beat: Option<JoinHandle<()>>,
    locked: Arc<Notify>,
    /// True if it was logged that Neutron lists another agent in this one's place.
    told_hidden: bool,
    /// True if the node is ready; if not, Neutron must not believe that.
    able: bool,
    /// Without Nova no guest can be served either.
    nova: Arc<Reachability>,
}

impl Ovn {
    /// Begins to connect to both databases. Identities are remembered in `state`; Neutron takes an agent for dead that is
    /// silent for `down_time`. Ports without a tap are served if there may be `network_devices`.
    pub fn connect(
        ovs: Config,
        southbound: Config,
        down_time: Duration,
        state: &Path,
        monitor_all: bool,
        network_devices: bool,
        nova: Arc<Reachability>,
    ) -> Self {
        let subscription = Subscription::new(monitor_all);
        let ovs = Client::builder(ovs)
            .monitor::<OpenVSwitch>(Conditions::All)
            .monitor::<Interface>(Conditions::All)
            .monitor::<Port>(Conditions::All)
            .monitor::<Bridge>(Conditions::All)
            .connect();
        let southbound = Client::builder(southbound)
            .monitor::<PortBinding>(subscription.conditions())
            .monitor::<ChassisRow>(Conditions::None)
            // OVN before 20.09 has no such table: guests are served, and Neutron of that time asks elsewhere.
            .monitor_optional::<ChassisPrivate>(Conditions::None)
            .monitor::<SbGlobal>(Conditions::All)
            .connect();
        Self {
            ovs: Database::new(ovs, "Open_vSwitch"),
            southbound: Database::new(southbound, "OVN_Southbound"),
            subscription,
            subscribed: None,
            chassis: None,
            plugged: BTreeSet::new(),
            bindings: Bindings::default(),
            through_switch: ThroughSwitch::new(network_devices),
            remembered: Remembered::read(state),
            liveness: Liveness::new(spread(down_time)),
            beat: None,
            locked: Arc::default(),
            told_hidden: false,
            able: false,
            nova,
        }
    }

    /// Waits for the next change of either. May be cancelled at any point without losing one.
    pub async fn changed(&mut self) {
        loop {
            let remember = self.remembered.write_at();
            let heartbeat = self.heartbeat();
            let subscribe = self.subscribe(Instant::now());
            let devices = self.write_devices(Instant::now()).await;
            let changed = tokio::select! {
                event = self.ovs.client.recv() => {
                    let changed = self.ovs.take(&event);
                    self.note_plugged(&event);
                    changed
                }
                event = self.southbound.client.recv() => {
                    if matches!(&event, Event::Lock { held: true, .. }) {
                        self.locked.notify_one();
                    }
                    let changed = self.southbound.take(&event);
                    self.note_bindings(&event).unwrap_or(changed)
                }
                () = sleep_until(subscribe.unwrap_or_else(Instant::now)), if subscribe.is_some() => false,
                () = sleep_until(devices.unwrap_or_else(Instant::now)), if devices.is_some() => false,
                () = sleep_until(remember.unwrap_or_else(Instant::now)), if remember.is_some() => {
                    self.remembered.write(Instant::now());
                    false
                }
                () = sleep_until(heartbeat.unwrap_or_else(Instant::now)), if heartbeat.is_some() => false,
            };
            if changed {
                return;
            }
        }
    }

    /// Follows the interfaces of the local Open vSwitch.
    fn note_plugged(&mut self, event: &Event) {
        if matches!(event, Event::Batch(_)) {
            self.through_switch.note_rows();
        }
        if let Event::Batch(batch) = event
            && !batch.of::<Interface>().is_empty()
        {
            let interfaces = self.ovs.client.table::<Interface>().iter().map(|(_, row)| row);
            let of_others = interfaces.filter(|row| !is_ours(row));
            self.plugged = of_others.filter_map(|row| row.external_ids.get("iface-id").cloned()).collect();
        }
    }

    /// Follows the Southbound's ports; of a batch, tells whether anything in it can matter here.
    fn note_bindings(&mut self, event: &Event) -> Option<bool> {
        let Event::Batch(batch) = event else { return None };
        let concerns = self.bindings.apply(batch, |port| self.plugged.contains(port));
        Some(concerns || batch.len() > batch.of::<PortBinding>().len())
    }

    /// To be called at the end: what would be written soon is written now.
    pub fn stop(&mut self) {
        if self.remembered.write_at().is_some() {
            self.remembered.write(Instant::now());
        }
    }

    /// Both, for the metrics.
    pub fn databases(&self) -> [DatabaseStatus; 2] {
        [&self.ovs, &self.southbound].map(Database::status)
    }

    /// Both, for who explains.
    pub fn databases_seen(&self) -> [DatabaseSeen; 2] {
        [&self.ovs, &self.southbound].map(Database::seen)
    }

    /// Evidence for each port that is plugged here or has a row here.
    pub fn evidence(&self) -> Vec<Evidence> {
        let interfaces = self.ovs.client.table::<Interface>().iter().map(|(_, row)| row.as_ref());
        let rows = self.southbound.client.table::<PortBinding>().iter().map(|(_, row)| row.as_ref());
        evidence::collect(interfaces.filter(|row| !is_ours(row)), rows, self.chassis_row())
    }

    /// Problems: what is missing. Without the Southbound only identities are.
    pub fn pending(&self) -> Vec<Problem> {
        [&self.ovs, &self.southbound].into_iter().filter_map(Database::pending).collect()
    }

    /// The logical ports whose rows the Southbound has sent.
    pub fn logical_ports(&self) -> impl Iterator<Item = &str> {
        self.southbound.client.table::<PortBinding>().iter().map(|(_, row)| row.logical_port.as_str())
    }

    /// Notes whether the node is ready, for Neutron to know, or what keeps it from being so.
    pub fn set_able(&mut self, problems: &[Problem]) {
        let able = problems.is_empty();
        if !able && self.able {
            warn!(because = Problem::texts(problems, "; "), "Neutron is not told that the agent is alive");
        }
        self.able = able;
    }

    /// The ports of this host, and those that are plugged and cannot be served. `served` tells which port is served behind
    /// a key now.
    ///
    /// Nothing can be said without the local interfaces; and nothing about those behind devices that a former agent left,
    /// before the Southbound has had its time.
    pub fn desired<'a>(
        &mut self,
        links: &LinkTable,
        served: impl Fn(PortKey) -> Option<&'a str>,
    ) -> Option<(Desired, Unserved)> {
        if !self.ovs.synced {
            return None;
        }
        let ovs = &self.ovs.client;
        let interfaces: Vec<_> =
            ovs.table::<Interface>().iter().map(|(uuid, row)| (*uuid, row.as_ref())).collect();
        let ports = ovs.table::<Port>().iter().map(|(uuid, row)| (*uuid, row.as_ref()));
        let bridges = ovs.table::<Bridge>().iter().map(|(_, row)| row.as_ref());
        let switch = Switch::new(links, &interfaces, ports, bridges);
        let interfaces = interfaces.iter().map(|(_, row)| *row);
        let chassis = self.chassis_row();
        let away = match (&self.southbound.down, self.southbound.has(self.subscribed)) {
            // Not why, which is another thing with each server that is tried: `show ready` tells that.
            (Some(_), _) => Some("there is no connection to the Southbound".to_owned()),
            (None, false) => Some("the Southbound has not answered yet".to_owned()),
            (None, true) => None,
        };
        let is_there = away.is_none();
        let without_row = WithoutRow {
            remembered: &self.remembered,
            away,
            asks_for: &|port| self.subscription.asks_for(port),
        };
        let (mut desired, mut unserved, tapless) =
            join(&switch, interfaces.clone(), &self.bindings, &served, &without_row);
        let southbound = Southbound {
            bindings: &self.bindings,
            subscription: &self.subscription,
            chassis,
            is_connected: self.southbound.down.is_none(),
            has_answered: is_there,
        };
        let local = (&switch, &*interfaces.collect::<Vec<_>>());
        let decision = self.through_switch.decide(Instant::now(), local, &southbound, tapless, served)?;
        for port in decision.desired.values() {
            unserved.remove(&port.port);
        }
        unserved.extend(decision.unserved);
        desired.extend(decision.desired);
        if is_there {
            let known = desired.iter().filter_map(|(key, port)| match &port.who {
                Who::Known(identity) => {
                    let tap = desired.get(&untagged(key.ifindex))?;
                    Some((tap.port.as_str(), key.vlan, identity))
                }
                Who::Pending(_) | Who::Conflict(_) => None,
            });
            self.remembered.replace(Instant::now(), known);
        }
        Some((desired, unserved))
    }

    /// Subscribes to the rows of this chassis and its ports; tells when to ask again.
    fn subscribe(&mut self, now: Instant) -> Option<Instant> {
        self.subscribe_to_chassis();
        // What is not here while there is no server is not missing.
        if !self.ovs.synced || self.southbound.down.is_some() || !self.southbound.has(self.subscribed) {
            return None;
        }
        let row = |port: &str| match self.bindings.port(port) {
            None => Row::Missing,
            Some(row) if row.requested_additional_chassis.is_empty() => Row::Here,
            Some(_) => Row::Moving,
        };
        let (chassis, networks) = (self.chassis_row(), self.through_switch.networks());
        let (changed, again) = self.subscription.update(now, &self.plugged, networks, row, chassis);
        if !changed {
            return again;
        }
        match self.southbound.client.set_condition::<PortBinding>(self.subscription.conditions()) {
            Ok(generation) => self.subscribed = Some(generation),
            Err(error) => warn!(%error, "cannot change the subscription to the Southbound"),
        }
        None
    }

    /// The row of this chassis in the Southbound.
    fn chassis_row(&self) -> Option<Uuid> {
        let name = self.chassis.as_ref()?.name.as_str();
        let rows = self.southbound.client.table::<ChassisRow>();
        rows.iter().find(|(_, row)| row.name == name).map(|(uuid, _)| *uuid)
    }

    /// Brings the devices of networks about; tells when to ask again.
    async fn write_devices(&mut self, now: Instant) -> Option<Instant> {
        let chassis = self.chassis.as_ref()?;
        if self.ovs.down.is_some() || self.southbound.down.is_some() {
            return None;
        }
        let ovs = &self.ovs.client;
        let rows = Rows { interfaces: ovs.table(), ports: ovs.table(), bridges: ovs.table() };
        self.through_switch.write(now, rows, &chassis.bridge, &ovs.handle()).await
    }

    fn subscribe_to_chassis(&mut self) {
        let chassis = self.ovs.client.table::<OpenVSwitch>().iter().find_map(|(_, row)| {
            let name = row.external_ids.get("system-id")?.clone();
            let bridge =
                row.external_ids.get("ovn-bridge").map_or_else(|| "br-int".to_owned(), String::clone);
            Some(Chassis { name, bridge })
        });
        if chassis != self.chassis {
            let clause = chassis.iter().map(|chassis| Clause::equal("name", chassis.name.as_str()));
            let conditions = Conditions::any_of(clause);
            let client = &mut self.southbound.client;
            let both = client
                .set_condition::<ChassisPrivate>(conditions.clone())
                .and_then(|_| client.set_condition::<ChassisRow>(conditions));
            if let Err(error) = both {
                warn!(%error, "cannot change the subscription to the Southbound");
            }
            self.chassis = chassis;
        }
    }
}
