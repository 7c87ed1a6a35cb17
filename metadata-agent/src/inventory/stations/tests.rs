//! Stations by rows of both databases, and those that are not served with their reasons.
use std::{net::IpAddr, time::Duration};

use tokio::time::Instant;

use super::*;
use crate::inventory::{
    bindings::LOCALPORT,
    ids::{Ids, NETWORK_KEY},
    vif::{NoTap, OtherWay},
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
    let inputs = Inputs {
        switch: &switch,
        interfaces: &plugged.iter().chain(interfaces).collect::<Vec<_>>(),
        bindings: &bindings,
        tapless: &tapless,
        external: &external,
        asks_for: &|_| true,
    };
    decide(&inputs, |_| None)
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
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
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
    let mut count = |seconds, way| doubts.settle(start + Duration::from_secs(seconds), tapless(way)).len();
    assert_eq!((count(0, OtherWay::None), count(0, OtherWay::Switch)), (0, 1));
    assert_eq!((count(1, OtherWay::SwitchPerhaps), count(2, OtherWay::SwitchPerhaps)), (0, 0));
    assert_eq!(count(3, OtherWay::SwitchPerhaps), 1);
    assert_eq!((count(4, OtherWay::None), count(5, OtherWay::SwitchPerhaps)), (0, 0), "it had one meanwhile");
}
