//! Desired state: the taps of this host that should be served, and who is behind each, from links and a source of identities.
//!
//! Each input is kept as it stands now, events only update it; the ports are derived from the whole by a pure function.
//! So it does not matter whether events are lost, merged or reordered.
#![forbid(unsafe_code)]
mod bindings;
mod bound;
mod evidence;
mod external;
mod fixed;
mod ids;
mod join;
mod links;
mod liveness;
mod lost_devices;
mod network_devices;
mod one_shot;
mod ovn;
mod remembered;
mod rows;
mod stations;
mod subscription;
mod through_switch;
mod vif;

use std::{collections::BTreeMap, net::IpAddr};

use metadata_ebpf::map::{Mac, PortKey};

pub use bound::{Bound, bind, bound_by_others, release};
pub use fixed::Inventory as StaticInventory;
pub use links::{HostLinks, LinkTable};
pub use network_devices::remove_network_devices;
pub use ovn::{DatabaseStatus, Ovn};

use crate::{datapath::Device, directory::Identity};

/// A port as it should be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredPort {
    /// The tap.
    pub device: Device,
    /// Neutron's port that the tap is plugged for.
    pub port: String,
    /// Identity behind it.
    pub who: Who,
    /// The port's own addresses, of which guests that route for others have more than they have places for.
    pub own: Vec<IpAddr>,
    /// True if Open vSwitch is to limit what the guest sends, for which it needs the tap's ingress qdisc.
    pub policed: bool,
    /// On a network's device, the metadata port as which it answers.
    pub metadata_port: Option<MetadataPort>,
    /// True if it is outside of the switch, in a physical network that has to learn where the metadata port is.
    pub is_external: bool,
}

impl DesiredPort {
    /// One that has a tap.
    pub fn on_tap(device: Device, port: String, who: Who, own: Vec<IpAddr>) -> Self {
        Self { device, port, who, own, policed: false, metadata_port: None, is_external: false }
    }
}

/// The metadata port of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataPort {
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
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

/// A port that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnservedPort {
    /// Name of the Interface of Open vSwitch that is plugged for it, or of its network's device if none is.
    pub interface: String,
    /// Reason for which it cannot be served.
    pub reason: String,
}

/// The key of a tap's untagged frames.
fn untagged(ifindex: u32) -> PortKey {
    PortKey::tap(ifindex, 0)
}
