//! Makes kernel and proxy agree with what should be served.
//!
//! The order is what makes it safe: a port's identity is in the maps and the directory before the program is on its
//! tap; what leads to a port is gone before its index can be used again.
#![forbid(unsafe_code)]
mod seen;
mod served;

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
    boot_clock,
    datapath::{Adopted, Assignment, Datapath, Device, Error, Indexes, announce},
    directory::{Directory, Port, Signer},
    health::Applied,
    inventory::{Desired, DesiredPort},
    tokens::Tokens,
};
pub use seen::PortLine;
pub use served::Limits;
use served::{Issuer, NOT_YET, Served, limited_as, network, owner};

/// Time slice of attaching, for which the control plane does no other work: a TCX link waits for the kernel's RCU grace period,
/// which is some ten milliseconds for each tap and cannot be had in parallel (the kernel holds its RTNL lock meanwhile).
const ATTACHING: Duration = Duration::from_millis(100);

/// Time for which resets still find their way out of an assignment that has ended.
const ENDING: Duration = Duration::from_secs(1);

/// Batch size of asking the kernel about taps: each is a moment in which the control plane does nothing else.
const AT_A_TIME: usize = 512;

/// The one owner of the datapath and the directory's only writer.
#[derive(Debug)]
pub struct Reconciler {
    datapath: Datapath,
    indexes: Indexes,
    limits: Limits,
    /// Assignments of a former agent, until the first time that something is applied.
    adopted: Option<BTreeMap<PortKey, Adopted>>,
    /// True if agents of other layouts may have left something.
    succeeding: bool,
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

/// An assignment that ends.
#[derive(Debug)]
struct Ended {
    assignment: Assignment,
    /// True if its guest is still there, to hear the resets of its connections.
    hears: bool,
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
        limits: Limits,
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

    /// Asks the kernel whether each tap still has the program, and notes those that have not for the next
    /// [`Self::apply`]. Also what is to be done now and then: the sign of life to the programs, pins, sources that were
    /// refused, assignments whose end is over.
    ///
    /// The programs hear that the agent lives, and indexes come back, whatever was done to pins and devices.
    pub fn look_after(&mut self, now: Instant) -> Result<(), Error> {
        let renewed = self.datapath.renew();
        self.release_ended(now);
        self.renew_token_keys();
        let programs = self.keep_programs();
        let told = self.tell_exhausted();
        renewed.and(programs).and(told)
    }

    fn renew_token_keys(&mut self) {
        let renewed = self.issuer.tokens.as_mut().map(|tokens| tokens.renew_key(boot_clock::now()));
        match renewed {
            Some(Ok(true)) => {
                for served in self.served.values_mut() {
                    served.resolve(&self.issuer);
                }
                self.publish();
            }
            Some(Err(error)) => error!(%error, "the key for session tokens stays as it is"),
            _ => {}
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

    fn keep_programs(&mut self) -> Result<(), Error> {
        self.datapath.keep_pinned()?;
        if self.datapath.service_lacks_program()? {
            warn!("somebody removed the program of the service device or its pin, putting it back");
            self.datapath.attach_service()?;
        }
        let attached =
            self.served.values().filter(|served| served.attached.is_ok()).map(|served| served.device());
        let probe = self.probe.iter().map(|probe| &probe.device);
        let mut taps: Vec<Device> = attached.chain(probe).cloned().collect();
        taps.dedup();
        // All others wait while some are looked at.
        let count = taps.len().max(1);
        taps.rotate_left(self.looked_at % count);
        taps.truncate(AT_A_TIME);
        self.looked_at = (self.looked_at + AT_A_TIME) % count;
        let lacking: BTreeSet<u32> = self.datapath.lacking(&taps)?.into_iter().collect();
        if let Some(first) = taps.iter().find(|tap| lacking.contains(&tap.ifindex)) {
            let taps = lacking.len();
            warn!(taps, first = first.name, "somebody removed the program or its pin, putting it back");
        }
        for served in self.served.values_mut().filter(|served| lacking.contains(&served.device().ifindex)) {
            served.attached = Err("somebody removed the program".to_owned());
        }
        match self.probe.as_ref().filter(|probe| lacking.contains(&probe.device.ifindex)) {
            Some(probe) => self.datapath.attach(&probe.device),
            None => Ok(()),
        }
    }

    /// Says once for each port that it had too many sources.
    fn tell_exhausted(&mut self) -> Result<(), Error> {
        for served in self.served.values_mut().filter(|served| !served.told_exhausted) {
            if self.datapath.exhausted(served.assignment)? > 0 {
                served.told_exhausted = true;
                warn!(
                    tap = served.device().name,
                    port = served.wanted.port,
                    "more sources at once than the port has places for: connections of some of them have to wait; its own \
                     addresses are not concerned"
                );
            }
        }
        Ok(())
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

    /// Ends an assignment. The program stays on a tap that somebody else is to be served on.
    ///
    /// A device that has the program is the one that the guest is behind, and `hears` of the end. Another one may have its
    /// name and its index by now, and is not to hear of connections that were not its own.
    fn end(&mut self, key: PortKey, hears: bool, desired: &Desired) -> Option<Ended> {
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

    fn release(&mut self, assignment: Assignment) {
        if let Err(error) = self.datapath.release(assignment) {
            error!(%error, index = assignment.index, "cannot release a port's entry");
        }
        self.indexes.give_back(assignment);
    }

    fn release_ended(&mut self, now: Instant) {
        while let Some((_, assignment)) =
            self.ended.pop_front_if(|(since, _)| now.saturating_duration_since(*since) >= ENDING)
        {
            self.release(assignment);
        }
    }

    /// Removes what a former agent left for ports that are gone, or that belong to somebody else by now: their entries,
    /// and the links of their devices. Returns the assignments of those that are still there.
    fn sweep(
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
