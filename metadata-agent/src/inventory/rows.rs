//! The rows of Open vSwitch's and OVN's databases that are followed, and of those the columns that are used.
use std::collections::{BTreeMap, BTreeSet};

use ovsdb_client::Uuid;

use super::ids::Ids;

ovsdb_client::row! {
    /// The local Open vSwitch itself, a single row (ovs-vswitchd.conf.db(5)).
    pub(super) struct OpenVSwitch in "Open_vSwitch" {
        /// `system-id` is the chassis' name, `ovn-bridge` its integration bridge (ovn-controller(8)).
        external_ids: BTreeMap<String, String>,
    }
}

ovsdb_client::row! {
    /// An interface of the local Open vSwitch.
    pub(super) struct Interface in "Interface" {
        /// Name of the device.
        name: String,
        /// Index of the device; 0 while there is none, absent until ovs-vswitchd has looked.
        ifindex: Option<i64>,
        /// Empty or `system` for a device of the kernel.
        kind: String = "type",
        /// `peer` is the name of a patch port's other side.
        options: BTreeMap<String, String>,
        /// Rate limit for what the guest sends, in kbit/s; 0 for none.
        ingress_policing_rate: i64 as optional,
        /// `iface-id`, the logical port, and `vm-uuid`, the instance, come from nova and libvirt.
        external_ids: Ids,
    }
}

ovsdb_client::row! {
    /// A port of a bridge, which is mostly one interface.
    pub(super) struct Port in "Port" {
        interfaces: BTreeSet<Uuid>,
    }
}

ovsdb_client::row! {
    /// A bridge.
    pub(super) struct Bridge in "Bridge" {
        name: String,
        ports: BTreeSet<Uuid>,
    }
}

ovsdb_client::row! {
    /// A logical port (ovn-sb(5)).
    pub(super) struct PortBinding in "Port_Binding" {
        /// Neutron's port.
        logical_port: String,
        /// The network, by its row in Datapath_Binding.
        datapath: Uuid,
        /// The row of the chassis where it is bound, or that was made responsible for it.
        chassis: Option<Uuid>,
        /// The chassis where it is to be besides, while its machine is migrated live.
        requested_additional_chassis: BTreeSet<Uuid> as optional,
        /// The port of the tap that carries this one's frames, for a subport of a trunk.
        parent_port: Option<String>,
        /// The VLAN that a subport's frames are tagged with there.
        tag: Option<i64>,
        /// Empty for a port of a guest, `external` for one outside of the switch, `localport` for a network's metadata port.
        kind: String = "type",
        /// Its MAC address, and the addresses that go with it, each as `MAC ADDRESS ...`.
        mac: BTreeSet<String>,
        /// Addresses that it may send from, in the same form: with Neutron's allowed address pairs.
        port_security: BTreeSet<String> as optional,
        /// Neutron's ids, copied by ovn-northd from the Northbound.
        external_ids: Ids,
    }
}

ovsdb_client::row! {
    /// A chassis, whose row is what rows of ports name.
    pub(super) struct ChassisRow in "Chassis" {
        /// Its system-id.
        name: String,
    }
}

ovsdb_client::row! {
    /// A chassis' own row, in a table that other chassis do not follow.
    pub(super) struct ChassisPrivate in "Chassis_Private" {
        /// The chassis' name, its system-id.
        name: String,
        /// Neutron's agents put their keys here.
        external_ids: BTreeMap<String, String>,
    }
}

ovsdb_client::row! {
    /// The Southbound itself, a single row.
    pub(super) struct SbGlobal in "SB_Global" {
        /// Raised by whoever wants to know which chassis keep up.
        nb_cfg: i64,
    }
}
