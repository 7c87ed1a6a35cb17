//! Facts about the node and about a port, as the parts of the agent see them.
use std::time::Duration;

use metadata_ebpf::map::Mac;

use crate::{
    datapath::{PortFrames, SourceSeen},
    directory::Identity,
    link::{PortReport, ProbeReport},
};

/// A database, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSeen {
    /// Reason for which its rows are not those of a server that is there, if so.
    pub down: Option<String>,
    /// Time for which that has been so, or has not been so.
    pub since: Duration,
}

/// Facts that concern all ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The local Open vSwitch's database and the Southbound; none with a static inventory.
    pub databases: Option<[DatabaseSeen; 2]>,
    /// Troubles of the datapath and of the guest-facing process.
    pub problems: Vec<String>,
    /// Warnings.
    pub notes: Vec<String>,
    /// True if guests are served over IPv6.
    pub has_ipv6: bool,
    /// Reason for which Nova cannot be reached, if so.
    pub nova: Option<String>,
}

/// A row of the local Open vSwitch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSeen {
    /// Name of the device.
    pub name: String,
    /// Type of the interface.
    pub kind: String,
    /// Index of the device, as ovs-vswitchd has found it.
    pub ifindex: Option<i64>,
    /// The instance that the hypervisor names.
    pub instance: Option<String>,
}

/// A row of the Southbound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingSeen {
    /// Type of the port.
    pub kind: String,
    /// True if it names this chassis, false if another one.
    pub chassis: Option<bool>,
    /// Neutron's device_id.
    pub device_id: Option<String>,
    /// Neutron's addresses.
    pub cidrs: String,
    /// MAC addresses that the port may have.
    pub macs: Vec<Mac>,
}

/// Evidence of the sources of identity for one port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Neutron's port.
    pub port: String,
    /// The Interface that is plugged for it.
    pub interface: Option<InterfaceSeen>,
    /// Its row in the Southbound.
    pub binding: Option<BindingSeen>,
}

/// Identity of a port, as the agent has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// This one.
    Known(Identity),
    /// Not known, or in contradiction, and why.
    Doubt(String),
}

/// A port that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedSeen {
    /// Name of its device.
    pub device: String,
    /// Index of that.
    pub ifindex: u32,
    /// Its VLAN, 0 for untagged frames.
    pub vlan: u32,
    /// Its MAC address, if it has no tap.
    pub mac: Option<String>,
    /// Its identity.
    pub who: Word,
    /// Reason for which the program could not be put on the device, if so.
    pub attached: Result<(), String>,
    /// True if the kernel says that the program is there.
    pub is_on: bool,
    /// Its frames.
    pub frames: PortFrames,
    /// Addresses that it has asked from.
    pub sources: Vec<SourceSeen>,
    /// New addresses for which there was no place.
    pub exhausted: u64,
}

/// Everything that is known about one port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortFacts {
    /// The operator's word for it, if nothing is known of it.
    pub asked: String,
    /// Evidence of the sources.
    pub evidence: Evidence,
    /// The device of the interface's name, or of what was asked for: its index, if there is one.
    pub link: Option<u32>,
    /// Reason for which it is not served, if it is plugged and is not.
    pub unserved: Option<String>,
    /// State of its service, if it is served.
    pub served: Option<ServedSeen>,
    /// Report of the guest-facing process.
    pub report: Option<PortReport>,
    /// Result of a request in its name, if one was wanted; an error if that process does not answer.
    pub probe: Option<Result<ProbeReport, String>>,
}
