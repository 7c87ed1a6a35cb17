//! Ports without a tap, which are reached through the switch: by one device for each network, that is bound to the
//! network's metadata port, and on which a port is known by its MAC address. Pure, with the time
//! passed in.
//!
//! Behind a network's device are those ports of this host alone that have no tap (`vif.rs` says why), and those outside of
//! the switch that OVN made this chassis responsible for. Whoever else is in the network is not served there.
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use metadata_ebpf::map::{Mac, PortKey};
use ovsdb_client::Uuid;
use tokio::time::Instant;

use super::{
    Desired, DesiredPort, MetadataPort, Unserved, UnservedPort, Who,
    bindings::{Bindings, EXTERNAL},
    join::{Tapless, identify, network},
    network_devices::{device_name, is_of},
    rows::{Interface, PortBinding},
    vif::{OtherWay, Switch},
};
use crate::datapath::Device;

/// Time for which a port may be about to get a tap.
const PATIENCE: Duration = Duration::from_secs(2);

/// Inputs of the decision, as they are now.
pub(super) struct Sources<'a> {
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

/// Ports whose taps may be about to be heard of, and since when.
#[derive(Debug, Default)]
pub(super) struct Doubts(BTreeMap<String, Instant>);

impl Doubts {
    /// Leaves those that are reached through the switch, once that is certain.
    pub(super) fn settle<'a>(&mut self, now: Instant, mut tapless: Vec<Tapless<'a>>) -> Vec<Tapless<'a>> {
        let former = std::mem::take(&mut self.0);
        tapless.retain(|Tapless { binding, no_tap, .. }| match no_tap.way {
            OtherWay::None => false,
            OtherWay::Switch => true,
            OtherWay::SwitchPerhaps => {
                let port = &binding.logical_port;
                let since = former.get(port).copied().unwrap_or(now);
                self.0.insert(port.clone(), since);
                now.saturating_duration_since(since) >= PATIENCE
            }
        });
        tapless
    }
}

/// Decides. `served` tells which port is served behind a key now.
pub(super) fn decide<'b>(sources: &Sources<'_>, served: impl Fn(PortKey) -> Option<&'b str>) -> Decision {
    let mut decision = Decision::default();
    for (network, group) in groups(sources, &mut decision.unserved) {
        decision.networks.insert(network.to_owned());
        let (metadata_port, mac) = match metadata_port(sources, network, &group) {
            Ok(found) => found,
            Err(reason) => {
                if !(sources.asks_for)(network) {
                    decision.undecided.insert(network.to_owned());
                }
                refuse(&mut decision.unserved, network, &group, &reason);
                continue;
            }
        };
        let id = metadata_port.logical_port.as_str();
        let mut bound = sources
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
        if sources.interfaces.iter().any(|row| row.name == name && !is_of(row, network)) {
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
        decision.present.insert(network.to_owned(), sources.switch.has(&name));
        let is_served = |ifindex| {
            let mut stations = group.stations.iter();
            stations.any(|station| {
                served(PortKey::station(ifindex, station.mac)) == Some(station.row.logical_port.as_str())
            })
        };
        let ifindex = match sources.switch.device(interface, is_served) {
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
fn groups<'a>(sources: &Sources<'a>, unserved: &mut Unserved) -> BTreeMap<&'a str, Group<'a>> {
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
    for Tapless { interface, binding, no_tap } in sources.tapless {
        add(binding, Some(interface), &no_tap.reason);
    }
    for row in sources.external {
        add(row, None, "it is outside of the switch (type=external)");
    }
    groups
}

/// The row and the MAC address of a network's metadata port.
fn metadata_port<'a>(
    sources: &Sources<'a>,
    network: &str,
    group: &Group<'_>,
) -> Result<(&'a PortBinding, Mac), String> {
    let found = sources.bindings.metadata_port(network, group.datapath);
    let row = found.ok_or_else(|| {
        if (sources.asks_for)(network) {
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

/// The MAC address that a port has itself: those of address pairs stand there as well, without an address.
fn primary_mac(row: &PortBinding) -> Option<Mac> {
    let entries = || row.mac.iter().filter_map(|entry| parse(entry));
    let with_address = entries().find(|(_, addresses)| !addresses.is_empty());
    with_address.or_else(|| entries().next()).map(|(mac, _)| mac)
}

/// An entry `MAC ADDRESS ...`. Whole networks among the addresses are left out: they are no single source.
fn parse(entry: &str) -> Option<(Mac, Vec<IpAddr>)> {
    let mut words = entry.split_whitespace();
    let mac = words.next()?.parse().ok().filter(|mac| *mac != Mac::NONE)?;
    Some((mac, words.filter_map(|word| word.parse().ok()).collect()))
}

/// The addresses that a row has with a MAC address: fixed ones, and those that it may send as besides.
fn addresses(row: &PortBinding, mac: Mac) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (of, some) in row.mac.iter().chain(&row.port_security).filter_map(|entry| parse(entry)) {
        for address in some.into_iter().filter(|_| of == mac) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// The addresses that a station may ask from.
fn own(station: &Station<'_>, who: &Who) -> Vec<IpAddr> {
    let mut own = match who {
        Who::Known(identity) => identity.fixed_ips.clone(),
        Who::Pending(_) | Who::Conflict(_) => Vec::new(),
    };
    for address in addresses(station.row, station.mac) {
        if !own.contains(&address) {
            own.push(address);
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{
        bindings::LOCALPORT,
        ids::{Ids, NETWORK_KEY},
        vif::NoTap,
    };

    const VM: &str = "0b0c9c6c-9c1c-4f9e-8d7a-1c9c1c9c1c9c";
    const NET: &str = "0c6a1b2e-5f7d-4c1a-9c55-0d7c1b2e3f4a";
    const DEVICE: &str = "mdn0c6a1b2e5f7d";
    const DATAPATH: Uuid = Uuid::from_u128(7);

    fn map(pairs: &[(&str, &str)]) -> Ids {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn row(port: &str, kind: &str, mac: &[&str]) -> PortBinding {
        let ids = [
            ("neutron:device_id", VM),
            ("neutron:project_id", "project"),
            ("neutron:network_name", &format!("neutron-{NET}")),
            ("neutron:cidrs", "192.168.1.10/24"),
        ];
        PortBinding {
            logical_port: port.into(),
            kind: kind.into(),
            datapath: DATAPATH,
            mac: mac.iter().map(|text| (*text).to_owned()).collect(),
            external_ids: map(&ids),
            ..PortBinding::default()
        }
    }

    fn metadata_port() -> PortBinding {
        let ids = [("neutron:device_id", &*format!("ovnmeta-{NET}"))];
        let mac = &["fa:16:3e:00:00:02 192.168.1.2 fd00::2"];
        PortBinding { external_ids: map(&ids), ..row("metadata", LOCALPORT, mac) }
    }

    fn interface(name: &str, ids: &[(&str, &str)]) -> Interface {
        let (name, kind) = (name.to_owned(), "internal".to_owned());
        Interface { name, kind, ifindex: Some(9), external_ids: map(ids), ..Interface::default() }
    }

    fn ours() -> Interface {
        interface(DEVICE, &[("iface-id", "metadata"), (NETWORK_KEY, NET)])
    }

    /// Of external ports and of those on an internal port, with these Interfaces besides.
    fn decided(external: &[PortBinding], internal: &[PortBinding], interfaces: &[Interface]) -> Decision {
        let links = [(9, DEVICE.to_owned())].into();
        let switch = Switch::new(&links, &[], [].into_iter(), [].into_iter());
        let bindings: Bindings = [&metadata_port()].into_iter().collect();
        let plugged: Vec<_> = internal
            .iter()
            .map(|row| interface(&format!("int-{}", row.logical_port), &[("iface-id", &row.logical_port)]))
            .collect();
        let tapless: Vec<_> = plugged
            .iter()
            .zip(internal)
            .map(|(interface, binding)| {
                let no_tap = NoTap { reason: "it is internal".into(), way: OtherWay::Switch };
                Tapless { interface, binding, no_tap }
            })
            .collect();
        let external: Vec<_> = external.iter().cloned().map(Arc::new).collect();
        let sources = Sources {
            switch: &switch,
            interfaces: &plugged.iter().chain(interfaces).collect::<Vec<_>>(),
            bindings: &bindings,
            tapless: &tapless,
            external: &external,
            asks_for: &|_| true,
        };
        decide(&sources, |_| None)
    }

    fn why(decision: &Decision, port: &str) -> String {
        assert!(decision.desired.values().all(|desired| desired.port != port));
        decision.unserved[port].reason.clone()
    }

    #[test]
    fn ports_without_a_tap_share_the_device_of_their_network() {
        let external = [row("a", EXTERNAL, &["fa:16:3e:00:00:0a 192.168.1.10"])];
        let internal = [row("b", "", &["fa:16:3e:00:00:0b 192.168.1.11 fd00::b"])];
        let decision = decided(&external, &internal, &[ours()]);
        let ports: Vec<_> = decision.desired.iter().collect();
        let [(key, a), (_, b)] = ports.as_slice() else { panic!("{ports:?}") };
        assert_eq!(key.ifindex, 9);
        assert_eq!(key.mac.to_string(), "fa:16:3e:00:00:0a");
        assert_eq!((a.port.as_str(), b.port.as_str()), ("a", "b"));
        assert_eq!((a.is_external, b.is_external), (true, false));
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(b.own, addresses(&["192.168.1.10", "192.168.1.11", "fd00::b"]));
        let port = b.metadata_port.as_ref().unwrap();
        assert_eq!(port.mac.to_string(), "fa:16:3e:00:00:02");
        assert_eq!(port.addresses, addresses(&["192.168.1.2", "fd00::2"]));
        assert_eq!(decision.devices, BTreeMap::from([(NET.to_owned(), "metadata".to_owned())]));
        assert!(decision.unserved.is_empty() && decision.undecided.is_empty());
    }

    #[test]
    fn a_device_is_wanted_before_it_is_there_and_not_where_somebody_else_has_one() {
        let external = [row("a", EXTERNAL, &["fa:16:3e:00:00:0a 192.168.1.10"])];
        let decision = decided(&external, &[], &[]);
        assert!(why(&decision, "a").contains("not made yet") && decision.devices.contains_key(NET));
        let other = interface("tapother", &[("iface-id", "metadata")]);
        for interfaces in [vec![other.clone()], vec![ours(), other]] {
            let decision = decided(&external, &[], &interfaces);
            assert!(why(&decision, "a").contains("tapother") && decision.devices.is_empty());
        }
        let taken = interface(DEVICE, &[]);
        let decision = decided(&external, &[], &[taken]);
        assert!(why(&decision, "a").contains("another interface mdn") && decision.devices.is_empty());
    }

    #[test]
    fn who_could_be_mistaken_is_not_served() {
        let mac = "fa:16:3e:00:00:0a 192.168.1.10";
        let external = [row("a", EXTERNAL, &[mac]), row("b", EXTERNAL, &["FA:16:3E:00:00:0A 192.168.1.11"])];
        let decision = decided(&external, &[], &[ours()]);
        assert!(why(&decision, "b").contains("port a of its network has the same MAC"));
        let nobody = PortBinding {
            external_ids: map(&[("neutron:device_id", "dhcp"), ("neutron:network_name", "neutron-net")]),
            ..row("c", "", &[mac])
        };
        let decision = decided(&[], &[nobody], &[ours()]);
        assert!(why(&decision, "c").contains("no instance") && decision.devices.is_empty());
        let unknown = row("d", "", &["unknown"]);
        assert!(why(&decided(&[], &[unknown], &[ours()]), "d").contains("no MAC address"));
        let none = row("e", "", &["00:00:00:00:00:00 192.168.1.10"]);
        assert!(why(&decided(&[], &[none], &[ours()]), "e").contains("no MAC address"));
    }

    #[test]
    fn a_port_is_known_by_its_own_mac_address_and_not_by_that_of_a_pair() {
        let pairs = PortBinding {
            port_security: [
                "fa:16:3e:00:00:0a 192.168.1.10 192.168.1.200 10.0.0.0/24",
                "00:00:5e:00:01:01 192.168.1.201",
            ]
            .map(str::to_owned)
            .into(),
            ..row("a", "", &["00:00:5e:00:01:01", "fa:16:3e:00:00:0a 192.168.1.10", "unknown"])
        };
        let decision = decided(&[], &[pairs], &[ours()]);
        let (key, port) = decision.desired.first_key_value().unwrap();
        assert_eq!((key.mac.to_string().as_str(), decision.desired.len()), ("fa:16:3e:00:00:0a", 1));
        assert_eq!(port.own, ["192.168.1.10", "192.168.1.200"].map(|text| text.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn what_may_still_get_a_tap_is_waited_for() {
        let (binding, plugged) = (row("a", "", &[]), interface("tap0", &[]));
        let tapless = |way| {
            let no_tap = NoTap { reason: String::new(), way };
            vec![Tapless { interface: &plugged, binding: &binding, no_tap }]
        };
        let (mut doubts, start) = (Doubts::default(), Instant::now());
        let mut count =
            |seconds, way| doubts.settle(start + Duration::from_secs(seconds), tapless(way)).len();
        assert_eq!((count(0, OtherWay::None), count(0, OtherWay::Switch)), (0, 1));
        assert_eq!((count(1, OtherWay::SwitchPerhaps), count(2, OtherWay::SwitchPerhaps)), (0, 0));
        assert_eq!(count(3, OtherWay::SwitchPerhaps), 1);
        assert_eq!(
            (count(4, OtherWay::None), count(5, OtherWay::SwitchPerhaps)),
            (0, 0),
            "it had one meanwhile"
        );
    }
}
