//! Makes kernel and proxy agree with what should be served.
//!
//! The order is what makes it safe: a port's identity is in the maps and the directory before the program is on its
//! tap; what leads to a port is gone before its index can be used again.
#![forbid(unsafe_code)]
mod ending;
mod seen;
mod served;
mod upkeep;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use metadata_ebpf::map::{Network, Port as Entered, PortKey};
use serde_json::Value;
use tracing::{debug, error, info, warn};

use crate::{
    datapath::{Adopted, Assignment, Datapath, Device, Error, Indexes, announce},
    directory::{Directory, Port, Signer},
    health::Applied,
    inventory::{Desired, DesiredPort},
    tokens::Tokens,
};
use ending::Ended;
pub use seen::PortLine;
pub use served::FrameLimits;
use served::{Issuer, NOT_YET, Served, limited_as, network, owner};

/// Time slice of attaching, for which the control plane does no other work: a TCX link waits for the kernel's RCU grace period,
/// which is some ten milliseconds for each tap and cannot be had in parallel (the kernel holds its RTNL lock meanwhile).
const ATTACHING: Duration = Duration::from_millis(100);

/// The one owner of the datapath and the directory's only writer.
#[derive(Debug)]
pub struct Reconciler {
    datapath: Datapath,
    indexes: Indexes,
    limits: FrameLimits,
    /// Assignments of a former agent, until the first time that something is applied.
    adopted: Option<BTreeMap<PortKey, Adopted>>,
    /// True if agents of other layouts may have left something.
    succeeding: bool,
    /// True while a successor's changes are not put right, which did not come to serve.
    is_disturbed: bool,
    /// Apart from their keys: a map has room for more than it holds.
    served: BTreeMap<PortKey, Box<Served>>,
    /// The networks' devices, as the map has them.
    networks: BTreeMap<u32, Network>,
    /// Ports for which there was no room.
    refused: BTreeMap<PortKey, DesiredPort>,
    /// Assignments that have ended, and when.
    ended: VecDeque<(Instant, Assignment)>,
    /// Index among the taps at which the next look begins.
    looked_at: usize,
    /// Kept for the agent's own guest.
    reserved: Option<Assignment>,
    /// The agent's own guest.
    probe: Option<ProbePort>,
    directory: Arc<Directory>,
    issuer: Issuer,
}

/// The port of the agent's own guest.
#[derive(Debug)]
struct ProbePort {
    device: Device,
    assignment: Assignment,
    entry: Arc<Port>,
}

impl Reconciler {
    /// Over a datapath that may hold the assignments of a former agent.
    pub fn new(
        mut datapath: Datapath,
        limits: FrameLimits,
        directory: Arc<Directory>,
        signer: Signer,
    ) -> Result<Self, Error> {
        let (adopted, mut indexes) = datapath.assignments()?;
        let reserved = indexes.take_last();
        if !adopted.is_empty() {
            info!(ports = adopted.len(), "adopting the ports of a former agent");
        }
        Ok(Self {
            datapath,
            indexes,
            limits,
            adopted: Some(adopted),
            succeeding: true,
            is_disturbed: false,
            served: BTreeMap::new(),
            networks: BTreeMap::new(),
            refused: BTreeMap::new(),
            ended: VecDeque::new(),
            looked_at: 0,
            reserved,
            probe: None,
            directory,
            issuer: Issuer { signer, tokens: None },
        })
    }

    /// Has it issue session tokens' policies with the identities from now on.
    pub fn with_tokens(mut self, tokens: Tokens) -> Self {
        self.issuer.tokens = Some(tokens);
        self
    }

    /// Applies the difference.
    pub fn apply(&mut self, desired: &Desired) -> Applied {
        // Before any program is taken off: a question waits for as long as the kernel takes one off.
        let gone: Vec<(PortKey, bool)> = self
            .served
            .iter()
            .filter(|(key, served)| !served.continues_as(desired.get(key)))
            .map(|(key, served)| (*key, self.datapath.is_on(served.device())))
            .collect();
        let gone: Vec<Ended> =
            gone.into_iter().filter_map(|(key, hears)| self.end(key, hears, desired)).collect();
        // What comes later comes to taps that nobody else has served.
        let foreign_until = if self.adopted.is_some() { self.datapath.foreign_until() } else { 0 };
        let mut adopted = self.adopted.take().map(|adopted| self.sweep(adopted, desired)).unwrap_or_default();
        self.refused.retain(|key, port| desired.get(key) == Some(port));

        for (key, wanted) in desired {
            self.serve(*key, wanted, adopted.remove(key), foreign_until);
        }
        // Before anybody is served by it.
        self.note_served();
        self.enter();
        self.publish();
        // Its connections are reset where they are, by whoever hears of what was published.
        for Ended { assignment, hears } in gone {
            if hears {
                self.ended.push_back((Instant::now(), assignment));
            } else {
                self.release(assignment);
            }
        }
        let mut applied = self.attach();
        applied.failed += self.refused.len();
        applied.ports = desired.len();
        if self.succeeding && applied.waiting == 0 {
            self.succeeding = false;
            let probe = self.probe.iter().map(|probe| probe.device.ifindex);
            let served = self.served.keys().map(|key| key.ifindex).chain(probe).collect();
            if let Err(error) = self.datapath.remove_other_layouts(&served) {
                error!(%error, "cannot remove what an agent of another version left");
            }
        }
        applied
    }

    /// True if others can remove programs from devices.
    pub fn is_removable(&self) -> bool {
        self.datapath.is_removable()
    }

    /// Notes that these devices lost a filter: programs that may be gone are put back by the next [`Self::apply`].
    pub fn restore(&mut self, stripped: &BTreeSet<u32>) {
        if stripped.contains(&self.datapath.service_ifindex())
            && let Err(error) = self.datapath.attach_service()
        {
            error!(%error, "cannot put the program back on the service device");
        }
        for served in self.served.values_mut().filter(|served| stripped.contains(&served.device().ifindex)) {
            info!(tap = served.device().name, "somebody removed a filter, putting the program back");
            served.attached = Err("somebody removed the program".to_owned());
        }
    }

    fn note_served(&mut self) {
        let served = self.served.iter().filter_map(|(key, served)| Some((*key, served.owner, served.first?)));
        if let Some(tokens) = &mut self.issuer.tokens
            && let Err(error) = tokens.note_served(served)
        {
            warn!(%error, "cannot note when ports were served first: after a restart they need tokens at once");
        }
    }

    /// An error unless there is room for the agent's own guest.
    pub fn check_room(&self) -> Result<(), Error> {
        (self.reserved.is_some() || self.indexes.has_free()).then_some(()).ok_or(Error::Full)
    }

    /// Makes the agent's own guest a port, in place of the one before, or says why not.
    pub fn serve_probe(&mut self, device: &Device) -> Result<(), Error> {
        if let Some(former) = self.probe.take() {
            self.ended.push_back((Instant::now(), former.assignment));
            self.datapath.detach(former.device.ifindex)?;
            self.datapath.end(PortKey::tap(former.device.ifindex, 0), former.assignment)?;
        }
        self.datapath.set_probe(device)?;
        let key = PortKey::tap(device.ifindex, 0);
        let assignment = self.reserved.take().or_else(|| self.indexes.take()).ok_or(Error::Full)?;
        let tap = self.directory.tap(&device.name);
        let entry = Arc::new(Port::probe(&device.name, tap, assignment.generation));
        self.probe = Some(ProbePort { device: device.clone(), assignment, entry });
        self.datapath.begin(key, assignment)?;
        self.datapath.enter(key, Entered::new(assignment.index, assignment.generation))?;
        self.publish();
        self.datapath.attach(device)
    }

    /// Id of the port that is served behind a key now.
    pub fn served(&self, key: PortKey) -> Option<&str> {
        self.served.get(&key).map(|served| served.wanted.port.as_str())
    }

    /// Ports that are served, and those there was no room for, for the admin interface.
    pub fn describe(&self) -> Vec<Value> {
        let served = self.served.iter().map(|(key, served)| {
            // Without them, all the rest is still worth to be told.
            let frames = self.datapath.port_frames(served.assignment).unwrap_or_default();
            served.describe(*key, &frames)
        });
        let full = Error::Full.to_string();
        let refused = self.refused.iter().map(|(key, port)| served::describe_refused(*key, port, &full));
        served.chain(refused).collect()
    }

    /// Number of ports of each state that `describe` tells.
    pub fn identities(&self) -> [(&'static str, i64); 3] {
        ["known", "unknown", "conflict"].map(|state| {
            let count = self.served.values().filter(|served| served.state().0 == state).count();
            (state, count as i64)
        })
    }

    /// Number of ports without a program on their tap, or without room.
    pub fn unattached(&self) -> usize {
        self.served.values().filter(|served| served.attached.is_err()).count() + self.refused.len()
    }

    /// The datapath, to read its counters.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Switches of the programs.
    pub fn datapath_mut(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Gives a port its assignment, or updates what is known about one that has it. An assignment of a former agent is
    /// kept: the sources learned behind the tap stay known.
    fn serve(&mut self, key: PortKey, wanted: &DesiredPort, adopted: Option<Adopted>, foreign_until: u64) {
        if wanted.policed
            && self.is_removable()
            && !self.served.get(&key).is_some_and(|served| served.wanted.policed)
        {
            warn!(
                tap = wanted.device.name,
                "Open vSwitch cannot apply ingress_policing_rate to this tap: it needs the ingress qdisc, whose place our \
                 clsact has. Limit the port by OVN's QoS (qos_max_rate), or use a kernel with TCX (Linux 6.6)"
            );
        }
        match self.served.entry(key) {
            Entry::Occupied(mut served) => served.get_mut().update(&self.issuer, wanted),
            Entry::Vacant(vacant) => {
                let device = &wanted.device;
                let assignment = match adopted {
                    Some(adopted) => adopted.assignment,
                    None => {
                        let Some(assignment) = self.indexes.take() else {
                            if self.refused.is_empty() {
                                error!(
                                    tap = device.name,
                                    "cannot serve this and further ports: {}",
                                    Error::Full
                                );
                            }
                            self.refused.insert(key, wanted.clone());
                            return;
                        };
                        if let Err(error) = self.datapath.begin(key, assignment) {
                            error!(%error, tap = device.name, "cannot assign a port");
                            self.indexes.give_back(assignment);
                            self.refused.insert(key, wanted.clone());
                            return;
                        }
                        assignment
                    }
                };
                self.refused.remove(&key);
                let tap = self.directory.tap(&limited_as(key, device));
                info!(%tap, ifindex = device.ifindex, port = wanted.port, "port found");
                let is_adopted = adopted.is_some();
                let owner = adopted.map_or_else(|| owner(wanted), |adopted| adopted.owner);
                let first = self.issuer.first(key, served::owner(wanted), adopted.as_ref());
                let issuer = &self.issuer;
                let served = Served::new(issuer, wanted, tap, assignment, owner, first, foreign_until);
                vacant.insert(Box::new(served)).announced |= is_adopted;
            }
        }
    }

    /// Brings the maps up to date with what is served.
    fn enter(&mut self) {
        let meters: HashMap<u32, u32> = self
            .served
            .iter()
            .filter(|(key, _)| key.vlan == 0 && !key.is_station())
            .map(|(key, served)| (key.ifindex, served.assignment.index))
            .collect();
        for (key, served) in &mut self.served {
            if let Some(value) = served.wanted.metadata_port.as_ref().map(network)
                && self.networks.get(&key.ifindex) != Some(&value)
            {
                match self.datapath.enter_network(key.ifindex, value) {
                    Ok(()) => {
                        self.networks.insert(key.ifindex, value);
                    }
                    Err(error) => {
                        error!(%error, device = served.device().name, "cannot enter a network");
                        served.attached = Err(error.to_string());
                        continue;
                    }
                }
            }
            let meter = meters.get(&key.ifindex).copied().unwrap_or(served.assignment.index);
            let value = served.value(self.limits, meter);
            if served.entered == Some(value) {
                continue;
            }
            match self.datapath.enter(*key, value) {
                Ok(()) => served.entered = Some(value),
                Err(error) => {
                    error!(%error, tap = served.device().name, "cannot enter a port");
                    served.attached = Err(error.to_string());
                }
            }
        }
    }

    fn publish(&self) {
        let served = self.served.values().map(|served| (served.assignment.index, served.entry.clone()));
        let probe = self.probe.iter().map(|probe| (probe.assignment.index, probe.entry.clone()));
        self.directory.publish(served.chain(probe).collect());
    }

    fn attach(&mut self) -> Applied {
        let started = Instant::now();
        let mut applied = Applied::default();
        let mut waiting: Vec<_> =
            self.served.iter_mut().filter(|(_, served)| served.attached.is_err()).collect();
        // Those that failed before come last, or they would keep the others waiting. The newest device comes first: of many
        // that wait it is the one whose guest has just booted, and asks. The kernel counts devices up.
        waiting.sort_by_key(|(key, served)| {
            let failed_before = served.attached.as_ref().is_err_and(|error| error != NOT_YET);
            (failed_before, Reverse(key.ifindex))
        });
        for (key, served) in waiting {
            if started.elapsed() > ATTACHING {
                let failed_before = served.attached.as_ref().is_err_and(|error| error != NOT_YET);
                *(if failed_before { &mut applied.failed } else { &mut applied.waiting }) += 1;
                continue;
            }
            if served.entered.is_none() {
                applied.failed += 1;
                continue;
            }
            let device = served.device();
            let result = self.datapath.attach(device).map_err(|error| error.to_string());
            match &result {
                Ok(()) => debug!(tap = device.name, ifindex = device.ifindex, "attached"),
                Err(error) => {
                    if served.attached.as_ref() != Err(error) {
                        warn!(tap = device.name, "{error}; trying again");
                    }
                    applied.failed += 1;
                }
            }
            served.attached = result;
            if let (Ok(()), Some(port), false) =
                (&served.attached, &served.wanted.metadata_port, served.announced)
            {
                served.announced = true;
                announce(served.device(), port.mac, key.mac, served.entry.gone.clone());
            }
        }
        applied
    }
}
