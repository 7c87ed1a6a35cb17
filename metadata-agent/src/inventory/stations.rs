//! Ports without a tap, which are reached through the switch: by one device for each network, that is bound to the
//! network's metadata port, and on which a port is known by its MAC address. Pure, with the time
//! passed in.
//!
//! Behind a network's device are those ports of this host alone that have no tap (`vif.rs` says why), and those outside of
//! the switch that OVN made this chassis responsible for. Whoever else is in the network is not served there.
mod addresses;
mod doubts;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use metadata_ebpf::map::{Mac, PortKey};
use ovsdb_client::Uuid;

use self::addresses::{addresses, own, primary_mac};
pub(super) use self::doubts::Doubts;
use super::{
    Desired, DesiredPort, MetadataPort, Unserved, UnservedPort,
    bindings::{Bindings, EXTERNAL},
    join::{Tapless, identify, network},
    network_devices::{device_name, is_of},
    rows::{Interface, PortBinding},
    vif::Switch,
};
use crate::datapath::Device;

/// Inputs of the decision, as they are now.
pub(super) struct Inputs<'a> {
    pub(super) switch: &'a Switch<'a>,
    pub(super) interfaces: &'a [&'a Interface],
    pub(super) bindings: &'a Bindings,
    /// Ports of this host that are reached through the switch.
    pub(super) tapless: &'a [Tapless<'a>],
    /// Ports outside of the switch, of this chassis.
    pub(super) external: &'a [Arc<PortBinding>],
    /// True if the Southbound has been asked for the metadata port of a network.
    pub(super) asks_for: &'a dyn Fn(&str) -> bool,
}

/// A port behind the device of its network.
struct Station<'a> {
    row: &'a PortBinding,
    /// The Interface that is plugged for it, if one is.
    interface: Option<&'a Interface>,
    mac: Mac,
    /// Reason for which it has no tap.
    why: &'a str,
}

/// Those that are behind one device.
struct Group<'a> {
    datapath: Uuid,
    stations: Vec<Station<'a>>,
}

/// Decision: which networks need a device, and whom each of them serves.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Ports to be served, by devices that are there.
    pub(super) desired: Desired,
    /// Ports that are not, and why; what is not among them and was unserved for lack of a tap is served.
    pub(super) unserved: Unserved,
    /// The metadata ports to which devices have to be bound, by network.
    pub(super) devices: BTreeMap<String, String>,
    /// The networks of which the metadata port has to be known.
    pub(super) networks: BTreeSet<String>,
    /// Those of them of which it is not known yet.
    pub(super) undecided: BTreeSet<String>,
    /// Those of which the device has an Interface, each with true if this host has the device.
    pub(super) present: BTreeMap<String, bool>,
}

/// Decides. `served` tells which port is served behind a key now.
pub(super) fn decide<'b>(inputs: &Inputs<'_>, served: impl Fn(PortKey) -> Option<&'b str>) -> Decision {
    let mut decision = Decision::default();
    for (network, group) in groups(inputs, &mut decision.unserved) {
        decision.networks.insert(network.to_owned());
        let (metadata_port, mac) = match metadata_port(inputs, network, &group) {
            Ok(found) => found,
            Err(reason) => {
                if !(inputs.asks_for)(network) {
                    decision.undecided.insert(network.to_owned());
                }
                refuse(&mut decision.unserved, network, &group, &reason);
                continue;
            }
        };
        let id = metadata_port.logical_port.as_str();
        let mut bound = inputs
            .interfaces
            .iter()
            .filter(|row| row.external_ids.get("iface-id").is_some_and(|of| of == id));
        if let Some(other) = bound.clone().find(|row| !is_of(row, network)) {
            let reason = format!(
                "another agent's interface, {}, is bound to its network's metadata port: both would fight for it",
                other.name
            );
            refuse(&mut decision.unserved, network, &group, &reason);
            continue;
        }
        let name = device_name(network);
        if inputs.interfaces.iter().any(|row| row.name == name && !is_of(row, network)) {
            let reason =
                format!("its network's device cannot be made: Open vSwitch has another interface {name}");
            refuse(&mut decision.unserved, network, &group, &reason);
            continue;
        }
        decision.devices.insert(network.to_owned(), id.to_owned());
        let Some(interface) = bound.find(|row| row.name == name) else {
            refuse(&mut decision.unserved, network, &group, "its network's device is not made yet");
            continue;
        };
        decision.present.insert(network.to_owned(), inputs.switch.has(&name));
        let is_served = |ifindex| {
            let mut stations = group.stations.iter();
            stations.any(|station| {
                served(PortKey::station(ifindex, station.mac)) == Some(station.row.logical_port.as_str())
            })
        };
        let ifindex = match inputs.switch.device(interface, is_served) {
            Ok(ifindex) => ifindex,
            Err(no_device) => {
                let reason = format!("of its network's device: {}", no_device.reason);
                refuse(&mut decision.unserved, network, &group, &reason);
                continue;
            }
        };
        let addresses = addresses(metadata_port, mac);
        for station in &group.stations {
            let nobody = Interface::default();
            let who = identify(station.interface.unwrap_or(&nobody), station.row, station.row);
            let port = DesiredPort {
                device: Device::network(ifindex, &interface.name),
                port: station.row.logical_port.clone(),
                own: own(station, &who),
                who,
                policed: false,
                metadata_port: Some(MetadataPort { mac, addresses: addresses.clone() }),
                is_external: station.row.kind == EXTERNAL,
            };
            decision.desired.insert(PortKey::station(ifindex, station.mac), port);
        }
    }
    decision
}

/// The ports that are reached through the switch, by network. Those that cannot be are added to `unserved`.
fn groups<'a>(inputs: &Inputs<'a>, unserved: &mut Unserved) -> BTreeMap<&'a str, Group<'a>> {
    let mut groups = BTreeMap::<&str, Group<'_>>::new();
    let mut taken = BTreeMap::<(&str, Mac), &PortBinding>::new();
    let mut add = |row: &'a PortBinding, interface: Option<&'a Interface>, why: &'a str| {
        let mut refuse = |reason: &str| {
            let interface = interface.map_or_else(String::new, |interface| interface.name.clone());
            let reason = format!("{why}, and {reason}");
            unserved.insert(row.logical_port.clone(), UnservedPort { interface, reason });
        };
        let who = row.external_ids.get("neutron:device_id").map_or("", String::as_str);
        if Uuid::try_parse(who).is_err() {
            return refuse("its row in the Southbound names no instance (neutron:device_id)");
        }
        let Some(network) = network(row) else {
            return refuse("its row in the Southbound names no network (neutron:network_name)");
        };
        let Some(mac) = primary_mac(row) else {
            return refuse("its row in the Southbound has no MAC address by which it could be known");
        };
        match taken.entry((network, mac)) {
            Entry::Vacant(vacant) => {
                vacant.insert(row);
            }
            // Neutron has each once in a network.
            Entry::Occupied(other) => {
                let other = &other.get().logical_port;
                return refuse(&format!("port {other} of its network has the same MAC address"));
            }
        }
        let group = groups.entry(network).or_insert(Group { datapath: row.datapath, stations: Vec::new() });
        group.stations.push(Station { row, interface, mac, why });
    };
    for Tapless { interface, binding, no_tap } in inputs.tapless {
        add(binding, Some(interface), &no_tap.reason);
    }
    for row in inputs.external {
        add(row, None, "it is outside of the switch (type=external)");
    }
    groups
}

/// The row and the MAC address of a network's metadata port.
fn metadata_port<'a>(
    inputs: &Inputs<'a>,
    network: &str,
    group: &Group<'_>,
) -> Result<(&'a PortBinding, Mac), String> {
    let found = inputs.bindings.metadata_port(network, group.datapath);
    let row = found.ok_or_else(|| {
        if (inputs.asks_for)(network) {
            "its network has no metadata port in the Southbound".to_owned()
        } else {
            "its network's metadata port has not been asked for yet".to_owned()
        }
    })?;
    let mac = primary_mac(row).ok_or_else(|| {
        format!("its network's metadata port, {}, has no MAC address in the Southbound", row.logical_port)
    })?;
    Ok((row, mac))
}

fn refuse(unserved: &mut Unserved, network: &str, group: &Group<'_>, reason: &str) {
    for station in &group.stations {
        let interface =
            station.interface.map_or_else(|| device_name(network), |interface| interface.name.clone());
        let reason = format!("{}, and {reason}", station.why);
        unserved.insert(station.row.logical_port.clone(), UnservedPort { interface, reason });
    }
}

#[cfg(test)]
mod tests;
