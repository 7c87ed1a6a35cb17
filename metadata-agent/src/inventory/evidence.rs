//! Evidence of what Open vSwitch and the Southbound say of each port, for who explains it.
use std::collections::BTreeMap;

use ovsdb_client::Uuid;

use super::{
    bindings::LOCALPORT,
    join::{id, local_instance},
    rows::{Interface, PortBinding},
};
use crate::explain::{BindingSeen, Evidence, InterfaceSeen};

/// Ports that an interface is plugged for or that have a row here, by their ids. A trunk's subport has the row of its
/// parent's interface.
pub(super) fn collect<'a>(
    interfaces: impl Iterator<Item = &'a Interface>,
    rows: impl Iterator<Item = &'a PortBinding>,
    chassis: Option<Uuid>,
) -> Vec<Evidence> {
    let mut found = BTreeMap::<String, Evidence>::new();
    for interface in interfaces {
        let Some(port) = interface.external_ids.get("iface-id") else { continue };
        let evidence = Evidence {
            port: port.clone(),
            interface: Some(InterfaceSeen {
                name: interface.name.clone(),
                kind: interface.kind.clone(),
                ifindex: interface.ifindex,
                instance: local_instance(interface).cloned(),
            }),
            binding: None,
        };
        found.insert(port.clone(), evidence);
    }
    for row in rows.filter(|row| row.kind != LOCALPORT) {
        let parent = row.parent_port.as_ref().and_then(|parent| found.get(parent)?.interface.clone());
        let evidence = found.entry(row.logical_port.clone()).or_default();
        evidence.port.clone_from(&row.logical_port);
        evidence.interface = evidence.interface.take().or(parent);
        evidence.binding = Some(BindingSeen {
            kind: row.kind.clone(),
            chassis: row.chassis.map(|of| chassis == Some(of)),
            device_id: id(row, "neutron:device_id").map(str::to_owned),
            cidrs: id(row, "neutron:cidrs").unwrap_or_default().to_owned(),
            macs: row.mac.iter().filter_map(|entry| entry.split_whitespace().next()?.parse().ok()).collect(),
        });
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_what_both_say_of_it() {
        let ids = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let interface = Interface {
            name: "tap0".into(),
            ifindex: Some(7),
            external_ids: ids(&[("iface-id", "plugged"), ("vm-uuid", "vm")]),
            ..Interface::default()
        };
        let row = |port: &str, kind: &str| PortBinding {
            logical_port: port.into(),
            kind: kind.into(),
            external_ids: ids(&[("neutron:device_id", "vm"), ("neutron:cidrs", "10.0.0.5/24")]),
            mac: ["FA:16:3E:00:00:0A 10.0.0.5", "unknown"].map(str::to_owned).into(),
            ..PortBinding::default()
        };
        let sub = PortBinding { parent_port: Some("plugged".into()), ..row("sub", "") };
        let rows = [row("plugged", ""), sub, row("other", "external"), row("meta", LOCALPORT)];
        let found = collect([&interface].into_iter(), rows.iter(), None);
        let seen: Vec<_> = found
            .iter()
            .map(|one| (one.port.as_str(), one.interface.is_some(), one.binding.is_some()))
            .collect();
        assert_eq!(seen, [("other", false, true), ("plugged", true, true), ("sub", true, true)]);
        let binding = found[1].binding.as_ref().unwrap();
        assert_eq!(binding.device_id.as_deref(), Some("vm"));
        assert_eq!(binding.macs, ["fa:16:3e:00:00:0a".parse().unwrap()]);
    }
}
