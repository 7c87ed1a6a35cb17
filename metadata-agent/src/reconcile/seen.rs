//! State in force for a port that is served, asked of the kernel for `explain`.
use std::collections::BTreeSet;

use metadata_ebpf::map::PortKey;

use super::{
    Reconciler,
    served::{Served, mac},
};
use crate::{
    directory::Resolution,
    explain::{ServedSeen, Word},
    inventory::Who,
    link::PortNumber,
};

/// A port in a list of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortLine {
    /// Its assignment.
    pub number: PortNumber,
    /// Neutron's port.
    pub port: String,
    /// Its device, with the VLAN or the MAC address if it shares that.
    pub tap: String,
    /// The instance, if that is known.
    pub instance: Option<String>,
    /// Frames of it that were dropped.
    pub dropped: u64,
}

impl Reconciler {
    /// All ports that are served.
    pub fn lines(&self) -> Vec<PortLine> {
        let line = |(key, served): (&PortKey, &Served)| {
            let name = &served.device().name;
            let frames = self.datapath.port_frames(served.assignment).unwrap_or_default().frames;
            PortLine {
                number: served.number(),
                port: served.wanted.port.clone(),
                tap: match (mac(*key), key.vlan) {
                    (Some(mac), _) => format!("{name}/{mac}"),
                    (None, 0) => name.clone(),
                    (None, vlan) => format!("{name}.{vlan}"),
                },
                instance: match &served.wanted.who {
                    Who::Known(identity) => Some(identity.instance.clone()),
                    Who::Pending(_) | Who::Conflict(_) => None,
                },
                dropped: frames.iter().filter(|(counter, _)| counter.is_drop()).map(|(_, count)| count).sum(),
            }
        };
        self.served.iter().map(|(key, served)| line((key, served))).collect()
    }

    /// The assignments of the ports that a word means: a tap, or the id of a port or an instance.
    pub fn find(&self, what: &str) -> BTreeSet<PortNumber> {
        let is_meant = |served: &&Served| {
            let wanted = &served.wanted;
            let is_instance = matches!(&wanted.who, Who::Known(identity) if identity.instance == what);
            wanted.port == what || wanted.device.name == what || is_instance
        };
        self.served.values().map(AsRef::as_ref).filter(is_meant).map(Served::number).collect()
    }

    /// The assignment of the port with that id, if it is served, and behind one device only.
    pub fn number_of(&self, port: &str) -> Option<PortNumber> {
        let mut of_port = self.served.values().filter(|served| served.wanted.port == port);
        of_port.next().filter(|_| of_port.next().is_none()).map(|served| served.number())
    }

    /// The ports that are served and that `wanted` holds of, given its id, its device and who it is: what is in force for
    /// each, and its assignment.
    pub fn seen(
        &mut self,
        wanted: impl Fn(&str, &str, &Who) -> bool,
    ) -> Vec<(String, PortNumber, ServedSeen)> {
        let keys: Vec<PortKey> = self
            .served
            .iter()
            .filter(|(_, served)| wanted(&served.wanted.port, &served.device().name, &served.wanted.who))
            .map(|(key, _)| *key)
            .collect();
        let Self { served, datapath, .. } = self;
        let mut see = |key: PortKey| {
            let served: &Served = served.get(&key)?;
            let assignment = served.assignment;
            let who = match (served.entry.resolution(), &served.wanted.who) {
                (Resolution::Known(_), Who::Known(identity)) => Word::Known(identity.clone()),
                _ => Word::Doubt(served.state().1),
            };
            let seen = ServedSeen {
                device: served.device().name.clone(),
                ifindex: key.ifindex,
                vlan: key.vlan,
                mac: mac(key),
                who,
                attached: served.attached.clone(),
                is_on: datapath.is_on(served.device()),
                // Without them, all the rest is still worth to be told.
                frames: datapath.port_frames(assignment).unwrap_or_default(),
                sources: datapath.sources(assignment).unwrap_or_default(),
                exhausted: datapath.exhausted(assignment).unwrap_or_default(),
            };
            Some((served.wanted.port.clone(), served.number(), seen))
        };
        keys.into_iter().filter_map(&mut see).collect()
    }
}
