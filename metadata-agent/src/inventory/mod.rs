//! Desired state: the taps of this host that should be served, and who is behind each, from links and a source of identities.
//!
//! Each input is kept as it stands now, events only update it; the ports are derived from the whole by a pure function.
//! So it does not matter whether events are lost, merged or reordered.
#![forbid(unsafe_code)]
mod bindings;
mod fixed;
mod join;
mod links;
mod liveness;
mod ovn;
mod remembered;
mod rows;
mod subscription;
mod vif;

use std::{collections::BTreeMap, net::IpAddr};

use metadata_ebpf::map::PortKey;

pub use fixed::Inventory as StaticInventory;
pub use links::{LinkTable, Links};
pub use ovn::{DatabaseStatus, Ovn};

use crate::{datapath::Device, directory::Identity};

/// A port as it should be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredPort {
    /// The tap.
    pub device: Device,
    /// Neutron's port that the tap is plugged for.
    pub port: String,
    /// Who is behind it.
    pub who: Who,
    /// The port's own addresses, of which guests that route for others have more than they have places for.
    pub own: Vec<IpAddr>,
    /// Whether Open vSwitch is to limit what the guest sends, for which it needs the tap's ingress qdisc.
    pub policed: bool,
}

/// Identity behind a port, as the sources have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Something is missing; the text says what.
    Pending(String),
    /// This one.
    Known(Identity),
    /// They contradict each other; the text says how.
    Conflict(String),
}

/// All ports of this host that should be served.
pub type Desired = BTreeMap<PortKey, DesiredPort>;

/// Ports that are plugged on this host and cannot be served, by their ids.
pub type Unserved = BTreeMap<String, UnservedPort>;

/// An Interface of Open vSwitch that names a port and has no tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnservedPort {
    /// Its name.
    pub interface: String,
    /// Why it cannot be served.
    pub reason: String,
}

/// The key of a tap's untagged frames.
fn untagged(ifindex: u32) -> PortKey {
    PortKey { ifindex, vlan: 0 }
}
