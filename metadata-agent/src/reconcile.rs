//! Makes kernel and proxy agree with what should be served.
//!
//! The order is what makes it safe: a port's identity is in the maps and the directory before the program is on its
//! tap; what leads to a port is gone before its index can be used again.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use metadata_ebpf::map::PortKey;
use serde_json::{Value, json};
use tracing::{debug, error, info, warn};

use crate::{
    datapath::{Assignment, Datapath, Error, Indexes},
    inventory::{Desired, DesiredPort, Who},
    proxy::directory::{Directory, Port, Resolution, Signer},
};

/// How long attaching may keep the control plane from its other work: a TCX link waits for the kernel's RCU grace period,
/// which is some ten milliseconds for each tap and cannot be had in parallel (the kernel holds its RTNL lock meanwhile).
const ATTACHING: Duration = Duration::from_millis(100);

/// Why a device has no program that nobody has tried to attach yet.
const NOT_YET: &str = "not yet";

/// What came of applying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// All of it is in force.
    Complete,
    /// There are taps left that nothing is wrong with: to be called again as soon as events have had their turn.
    Partly,
    /// Something failed: to be called again soon.
    Failed,
}

/// The one owner of the datapath and the directory's only writer.
#[derive(Debug)]
pub struct Reconciler {
    datapath: Datapath,
    indexes: Indexes,
    /// Assignments of a former agent, until the first time that something is applied.
    adopted: Option<BTreeMap<PortKey, Assignment>>,
    /// Whether agents of other layouts may have left something.
    succeeding: bool,
    served: BTreeMap<PortKey, Served>,
    directory: Arc<Directory>,
    signer: Signer,
}

/// A port that is being served.
#[derive(Debug)]
struct Served {
    assignment: Assignment,
    wanted: DesiredPort,
    /// Instance and project it was last known to be; it stays them, also while the source has lost them.
    identity: Option<(String, String)>,
    /// Whether the program is on the tap, and if not, why.
    attached: Result<(), String>,
    entry: Arc<Port>,
}

impl Reconciler {
    /// Over a datapath that may hold the assignments of a former agent.
    pub fn new(mut datapath: Datapath, directory: Arc<Directory>, signer: Signer) -> Result<Self, Error> {
        let (adopted, indexes) = datapath.assignments()?;
        if !adopted.is_empty() {
            info!(ports = adopted.len(), "adopting the ports of a former agent");
        }
        Ok(Self {
            datapath,
            indexes,
            adopted: Some(adopted),
            succeeding: true,
            served: BTreeMap::new(),
            directory,
            signer,
        })
    }

    /// Applies the difference.
    pub fn apply(&mut self, desired: &Desired) -> Applied {
        let gone: Vec<PortKey> = self
            .served
            .iter()
            .filter(|(key, served)| !served.continues_as(desired.get(key)))
            .map(|(key, _)| *key)
            .collect();
        let gone: Vec<Served> = gone.into_iter().filter_map(|key| self.release(key)).collect();
        let mut adopted = self.adopted.take().map(|adopted| self.sweep(adopted, desired)).unwrap_or_default();

        let mut complete = true;
        for (key, wanted) in desired {
            complete &= self.serve(*key, wanted, adopted.remove(key));
        }
        self.publish();
        for served in gone {
            served.entry.gone.cancel();
            self.indexes.give_back(served.assignment);
        }
        let attached = self.attach();
        if self.succeeding && attached != Applied::Partly {
            self.succeeding = false;
            let served = self.served.keys().map(|key| key.ifindex).collect();
            if let Err(error) = self.datapath.remove_other_layouts(&served) {
                error!(%error, "cannot remove what an agent of another version left");
            }
        }
        if complete { attached } else { Applied::Failed }
    }

    /// Whether others can remove programs from devices.
    pub fn is_removable(&self) -> bool {
        self.datapath.is_removable()
    }

    /// Notes that these devices lost a filter: programs that may be gone are put back by the next [`Self::apply`].
    pub fn restore(&mut self, stripped: &BTreeSet<u32>) {
        for ifindex in stripped {
            if let Err(error) = self.datapath.attach_service(*ifindex) {
                error!(%error, "cannot put the program back on the service device");
            }
            for served in self.served.values_mut().filter(|served| served.wanted.device.ifindex == *ifindex) {
                info!(tap = served.wanted.device.name, "somebody removed a filter, putting the program back");
                served.attached = Err("somebody removed the program".to_owned());
            }
        }
    }

    /// Which port is served behind a key now.
    pub fn served(&self, key: PortKey) -> Option<&str> {
        self.served.get(&key).map(|served| served.wanted.port.as_str())
    }

    /// What is served, for the admin interface.
    pub fn describe(&self) -> Value {
        self.served.iter().map(|(key, served)| served.describe(*key)).collect()
    }

    /// How many ports there are of each state that `describe` tells.
    pub fn identities(&self) -> [(&'static str, i64); 3] {
        ["known", "unknown", "conflict"].map(|state| {
            let count = self.served.values().filter(|served| served.state().0 == state).count();
            (state, count as i64)
        })
    }

    /// What the datapath counted.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Switches the programs' log records.
    pub fn datapath_mut(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    fn release(&mut self, key: PortKey) -> Option<Served> {
        let served = self.served.remove(&key)?;
        let device = &served.wanted.device;
        info!(tap = device.name, ifindex = device.ifindex, port = served.wanted.port, "port gone");
        let shared = self.served.keys().any(|other| other.ifindex == key.ifindex);
        if !shared && let Err(error) = self.datapath.detach(key.ifindex) {
            error!(%error, tap = device.name, "cannot detach");
        }
        if let Err(error) = self.datapath.release(key, served.assignment) {
            error!(%error, tap = device.name, "cannot release a port's entries");
        }
        Some(served)
    }

    /// Removes what a former agent left for ports that are gone: their entries, and the links of their devices. Returns
    /// the assignments of those that are still there.
    fn sweep(
        &mut self,
        adopted: BTreeMap<PortKey, Assignment>,
        desired: &Desired,
    ) -> BTreeMap<PortKey, Assignment> {
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            adopted.into_iter().partition(|(key, _)| desired.contains_key(key));
        for (key, assignment) in gone {
            debug!(ifindex = key.ifindex, "releasing a former agent's port");
            let shared = desired.keys().any(|other| other.ifindex == key.ifindex);
            if !shared && let Err(error) = self.datapath.detach(key.ifindex) {
                error!(%error, ifindex = key.ifindex, "cannot detach");
            }
            if let Err(error) = self.datapath.release(key, assignment) {
                error!(%error, ifindex = key.ifindex, "cannot release a port's entries");
            }
            self.indexes.give_back(assignment);
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

    /// Enters a port into the maps, or updates what is known about one that is there. An assignment of a former agent is
    /// kept: the sources learned behind the tap stay known.
    fn serve(&mut self, key: PortKey, wanted: &DesiredPort, adopted: Option<Assignment>) -> bool {
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
            Entry::Occupied(mut served) => {
                let served = served.get_mut();
                if served.wanted != *wanted {
                    served.entry.resolve(resolve(&self.signer, &wanted.who, &wanted.port));
                    served.wanted = wanted.clone();
                    served.identity = identity(&wanted.who).or(served.identity.take());
                }
                true
            }
            Entry::Vacant(vacant) => {
                let assignment = match adopted {
                    Some(assignment) => {
                        if let Err(error) = self.datapath.confirm(key, assignment) {
                            error!(%error, tap = wanted.device.name, "cannot set a port's limits");
                            return false;
                        }
                        assignment
                    }
                    None => {
                        let Some(assignment) = self.indexes.take() else {
                            error!(tap = wanted.device.name, "cannot serve: {}", Error::Full);
                            return false;
                        };
                        if let Err(error) = self.datapath.assign(key, assignment) {
                            error!(%error, tap = wanted.device.name, "cannot assign a port");
                            self.indexes.give_back(assignment);
                            return false;
                        }
                        assignment
                    }
                };
                let device = &wanted.device;
                info!(tap = device.name, ifindex = device.ifindex, port = wanted.port, "port found");
                let resolution = resolve(&self.signer, &wanted.who, &wanted.port);
                let (id, tap) = (wanted.port.clone(), self.directory.tap(&device.name));
                let entry = Arc::new(Port::new(id, tap, assignment.generation, resolution));
                let attached = Err(NOT_YET.to_owned());
                let identity = identity(&wanted.who);
                vacant.insert(Served { assignment, wanted: wanted.clone(), identity, attached, entry });
                true
            }
        }
    }

    fn publish(&self) {
        let ports: HashMap<u32, Arc<Port>> =
            self.served.values().map(|served| (served.assignment.index, served.entry.clone())).collect();
        self.directory.publish(ports);
    }

    fn attach(&mut self) -> Applied {
        let started = Instant::now();
        let mut attached = Applied::Complete;
        let mut waiting: Vec<&mut Served> =
            self.served.values_mut().filter(|served| served.attached.is_err()).collect();
        // Those that failed before come last, or they would keep the others waiting.
        waiting.sort_by_key(|served| served.attached.as_ref().is_err_and(|error| error != NOT_YET));
        for served in waiting {
            if started.elapsed() > ATTACHING {
                return Applied::Partly;
            }
            let device = &served.wanted.device;
            let result = self.datapath.attach(device).map_err(|error| error.to_string());
            match &result {
                Ok(()) => debug!(tap = device.name, ifindex = device.ifindex, "attached"),
                Err(error) => {
                    if served.attached.as_ref() != Err(error) {
                        warn!(tap = device.name, "{error}; trying again");
                    }
                    attached = Applied::Failed;
                }
            }
            served.attached = result;
        }
        attached
    }
}

impl Served {
    /// Whether this assignment may go on as what is wanted now. A port's addresses may change under it; which port,
    /// instance or project it is may not, because connections and learned sources belong to who it was.
    fn continues_as(&self, wanted: Option<&DesiredPort>) -> bool {
        let Some(wanted) = wanted else { return false };
        let same_identity = match (&self.identity, identity(&wanted.who)) {
            (Some(old), Some(new)) => *old == new,
            _ => true,
        };
        self.wanted.port == wanted.port && self.wanted.device == wanted.device && same_identity
    }

    /// What is known of the identity, and what is wrong with it.
    fn state(&self) -> (&'static str, String) {
        match self.entry.resolution() {
            Resolution::Known(_) => ("known", String::new()),
            Resolution::Pending(reason) => ("unknown", reason.to_string()),
            Resolution::Conflict(reason) => ("conflict", reason.to_string()),
        }
    }

    fn describe(&self, key: PortKey) -> Value {
        let (state, reason) = self.state();
        let reason = match &self.attached {
            Ok(()) => reason,
            Err(error) => format!("not attached: {error}"),
        };
        let identity = match &self.wanted.who {
            Who::Known(identity) => Some(identity),
            _ => None,
        };
        json!({
            "port": self.wanted.port,
            "tap": self.wanted.device.name,
            "ifindex": key.ifindex,
            "vlan": key.vlan,
            "index": self.assignment.index,
            "generation": self.assignment.generation,
            "state": state,
            "reason": reason,
            "instance": identity.map(|identity| &identity.instance),
            "project": identity.map(|identity| &identity.project),
            "network": identity.map(|identity| &identity.network),
            "fixed_ips": identity.map_or_else(Vec::new, |identity| identity.fixed_ips.clone()),
        })
    }
}

/// Instance and project, which an assignment may not change.
fn identity(who: &Who) -> Option<(String, String)> {
    match who {
        Who::Known(identity) => Some((identity.instance.clone(), identity.project.clone())),
        Who::Pending(_) | Who::Conflict(_) => None,
    }
}

fn resolve(signer: &Signer, who: &Who, port: &str) -> Resolution {
    match who {
        Who::Pending(reason) => Resolution::Pending(reason.as_str().into()),
        Who::Conflict(reason) => {
            error!(port, reason, "contradictory identity, the port is not served");
            Resolution::Conflict(reason.as_str().into())
        }
        Who::Known(identity) => match signer.sign(identity.clone()) {
            Ok(signed) => Resolution::Known(Arc::new(signed)),
            Err(error) => {
                warn!(port, %error, "unusable identity");
                Resolution::Pending(error.to_string().into())
            }
        },
    }
}
