//! Ports of an OVN chassis: interfaces of the local Open vSwitch, joined with their rows in OVN's Southbound.
//!
//! Only the rows of this chassis are subscribed to (`subscription.rs`), so memory and traffic follow the host, not the
//! region.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use metadata_ebpf::map::PortKey;
use ovsdb_client::{
    Clause, Client, Conditions, Config, Counters, Event, Generation, Handle, Operation, Uuid,
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

use super::{
    Desired, LinkTable, Unserved, Who,
    bindings::Bindings,
    evidence,
    join::{WithoutRow, join},
    liveness::{Chassis, Liveness, Step, is_hidden, spread},
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

/// Timeout of a write to the Southbound, and of a check that Nova is there.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);
/// By this lock of a server the agents that are connected to it write one after another. A follower has the leader decide on
/// each write, and the leader refuses all that did not know of the last one, to be tried again: with hundreds of writes
/// under way a cluster does nothing else (raft_handle_execute_command_request() in Open vSwitch's ovsdb/raft.c).
const HEARTBEAT_LOCK: &str = "metadata_agent_heartbeat";
/// After how long it is written all the same.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(20);
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

/// A connection and what is known of its state.
#[derive(Debug)]
struct Database {
    client: Client,
    name: &'static str,
    /// The contents have been complete at least once.
    synced: bool,
    /// The latest state of the conditions that is in force.
    in_force: Option<Generation>,
    /// Reason for which there is no connection.
    down: Option<String>,
    /// Time since which there is one, or none.
    since: Instant,
    /// Messages logged about each remote since there was one.
    told: BTreeSet<String>,
}

/// A database as it is now, and what its client counted.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseStatus {
    /// Its name in the protocol.
    pub name: &'static str,
    /// True if there is a connection, and the rows are those of its server.
    pub connected: bool,
    /// The rows that are kept, of all tables.
    pub rows: usize,
    /// Counters of the client.
    pub counters: Counters,
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
        [&self.ovs, &self.southbound].map(|database| DatabaseStatus {
            name: database.name,
            connected: database.synced && database.down.is_none(),
            rows: database.client.rows(),
            counters: database.client.counters(),
        })
    }

    /// Both, for who explains.
    pub fn databases_seen(&self) -> [DatabaseSeen; 2] {
        [&self.ovs, &self.southbound]
            .map(|database| DatabaseSeen { down: database.down.clone(), since: database.since.elapsed() })
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

    /// Writes this chassis' row if it is time to; returns when to ask again. Neither writing nor failing to is waited
    /// for: the row itself tells what came of it.
    fn heartbeat(&mut self) -> Option<Instant> {
        if !self.able || self.ovs.down.is_some() || self.southbound.down.is_some() {
            return None;
        }
        let chassis = self.chassis.as_ref()?;
        let table = self.southbound.client.table::<ChassisPrivate>();
        let (uuid, row) = table.iter().find(|(_, row)| row.name == chassis.name)?;
        let nb_cfg = self.southbound.client.table::<SbGlobal>().iter().next()?.1.nb_cfg;
        if is_hidden(&row.external_ids) != self.told_hidden {
            self.told_hidden = !self.told_hidden;
            if self.told_hidden {
                warn!(
                    chassis = row.name,
                    "Neutron (2025.2 and later) lists this chassis' neutron-ovn-agent and not this agent, by the key \
                     neutron:ovn-neutron-agent-id of the row in Chassis_Private; if that agent is gone for good, remove \
                     the key"
                );
            }
        }
        match self.liveness.step(Instant::now(), chassis, &row.external_ids, nb_cfg) {
            Step::Rest => None,
            Step::Wait(at) => Some(at),
            // It is repeated if nothing comes of the one that is under way.
            Step::Write(_) if self.beat.as_ref().is_some_and(|beat| !beat.is_finished()) => self.heartbeat(),
            Step::Write(keys) => {
                // Another one than the last write's: what came too late for that is nothing to this one.
                self.locked = Arc::default();
                let (handle, locked) = (self.southbound.client.handle(), self.locked.clone());
                let (operation, nova) = (set_keys(*uuid, keys), self.nova.clone());
                self.beat = Some(tokio::spawn(async move {
                    match beat(&handle, &locked, &nova, operation).await {
                        Ok(()) => debug!(nb_cfg, "told Neutron that the agent is alive"),
                        Err(error) => warn!(error, "Neutron is not told that the agent is alive"),
                    }
                }));
                self.heartbeat()
            }
        }
    }
}

/// Writes when it is this agent's turn; why that failed, if so.
async fn beat(
    handle: &Handle,
    locked: &Notify,
    nova: &Reachability,
    operation: Operation,
) -> Result<(), String> {
    // An agent that cannot reach Nova is up, but of no use to anybody.
    timeout(HEARTBEAT_TIMEOUT, nova.check())
        .await
        .unwrap_or_else(|_| Err("nova does not answer in time".into()))?;
    handle.lock(HEARTBEAT_LOCK).await.map_err(|error| error.to_string())?;
    // Whoever holds it for ever keeps nobody from writing.
    let _late = timeout(HEARTBEAT_PATIENCE, locked.notified()).await;
    let written = timeout(HEARTBEAT_TIMEOUT, handle.transact(vec![operation])).await;
    let unlocked = handle.unlock(HEARTBEAT_LOCK).await;
    match written {
        Ok(Ok(_)) => unlocked.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// Sets keys of a chassis' external_ids and leaves the others: an insertion does not change a key that is there.
fn set_keys(chassis: Uuid, keys: BTreeMap<String, String>) -> Operation {
    let keys_alone = keys.keys().cloned().collect::<Vec<_>>();
    let ids = ChassisPrivate::external_ids;
    Operation::mutate_row(chassis, [ids.delete_keys(keys_alone), ids.insert(keys)])
}

impl Database {
    fn new(client: Client, name: &'static str) -> Self {
        Self {
            client,
            name,
            synced: false,
            in_force: None,
            down: Some("not connected yet".to_owned()),
            since: Instant::now(),
            told: BTreeSet::new(),
        }
    }

    /// Notes an event; returns whether rows or the state of the connection changed.
    fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::Connected { remote } => {
                info!(database = self.name, %remote, "connected");
                false
            }
            Event::Disconnected { remote, reason, retry } => {
                let text = format!("{remote}: {reason}");
                // Attempts go on for ever, with one remote after another; what is the same is told once.
                if self.told.insert(text.clone()) {
                    warn!(database = self.name, %remote, %reason, ?retry, "not connected");
                } else {
                    debug!(database = self.name, %remote, %reason, ?retry, "still not connected");
                }
                self.note_down(Some(text));
                true
            }
            Event::Synced => {
                self.synced = true;
                self.note_down(None);
                self.told.clear();
                true
            }
            Event::ConditionInForce(generation) => {
                self.in_force = Some(*generation);
                true
            }
            Event::Batch(_) => true,
            Event::Waiting { remote, awaited } => {
                info!(database = self.name, %remote, %awaited, "a server took the connection and says nothing yet");
                false
            }
            Event::ConditionRefused { error, .. } => {
                warn!(database = self.name, error, "the server refused which rows it was asked for");
                false
            }
            Event::ClauseLeftOut { table, column, problem } => {
                warn!(database = self.name, table, column, problem, "rows are not asked for by this column");
                false
            }
            Event::Closed => {
                self.note_down(Some(
                    "the task that keeps the connection is gone: restart the agent".to_owned(),
                ));
                error!(database = self.name, "the task that keeps the connection is gone: restart the agent");
                true
            }
            // The rest is not asked for.
            _ => false,
        }
    }

    fn note_down(&mut self, reason: Option<String>) {
        if self.down.is_some() != reason.is_some() {
            self.since = Instant::now();
        }
        self.down = reason;
    }

    /// True if the rows of that state of the conditions are here.
    fn has(&self, generation: Option<Generation>) -> bool {
        self.synced && self.in_force >= generation
    }

    fn pending(&self) -> Option<Problem> {
        self.down.as_ref().map(|reason| Problem::of(self.name, format!("{}: {reason}", self.name)))
    }
}
