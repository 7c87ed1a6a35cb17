//! Device of this host that carries the frames of an Interface of Open vSwitch with a logical port, or the reason for
//! which none does. Pure.
use std::collections::HashMap;

use ovsdb_client::Uuid;

use super::{
    LinkTable,
    rows::{Bridge, Interface, Port},
};
use crate::datapath::Device;

/// Reason why there is no device that carries the frames of a guest alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoTap {
    pub(super) reason: String,
    pub(super) way: OtherWay,
}

/// Another way by which a guest without a tap may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OtherWay {
    /// None, or not for now.
    None,
    /// Through the switch: frames reach it, by no device that is here.
    Switch,
    /// The same, unless the device is about to be heard of.
    SwitchPerhaps,
}

impl From<String> for NoTap {
    fn from(reason: String) -> Self {
        Self { reason, way: OtherWay::None }
    }
}

impl NoTap {
    fn by(way: OtherWay, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), way }
    }
}

/// The local Open vSwitch and the devices of this host, by how they are looked up.
pub(super) struct Switch<'a> {
    by_name: HashMap<&'a str, u32>,
    /// By name; with what follows only where a patch port is plugged.
    interfaces: HashMap<&'a str, (Uuid, &'a Interface)>,
    /// The interfaces that share a bridge with an interface.
    bridges: HashMap<Uuid, Vec<&'a Interface>>,
}

impl<'a> Switch<'a> {
    pub(super) fn new(
        links: &'a LinkTable,
        interfaces: &[(Uuid, &'a Interface)],
        ports: impl Iterator<Item = (Uuid, &'a Port)>,
        bridges: impl Iterator<Item = &'a Bridge>,
    ) -> Self {
        let by_name =
            |(uuid, interface): &(Uuid, &'a Interface)| (interface.name.as_str(), (*uuid, *interface));
        let has_patched_vifs = interfaces
            .iter()
            .any(|(_, interface)| interface.kind == PATCH && interface.external_ids.contains_key("iface-id"));
        let mut switch = Self {
            by_name: links.iter().map(|(ifindex, name)| (name.as_str(), *ifindex)).collect(),
            interfaces: HashMap::new(),
            bridges: HashMap::new(),
        };
        if has_patched_vifs {
            switch.interfaces = interfaces.iter().map(by_name).collect();
            let interfaces: HashMap<Uuid, &Interface> = interfaces.iter().copied().collect();
            let ports: HashMap<Uuid, &Port> = ports.collect();
            for bridge in bridges {
                let members = bridge.ports.iter().filter_map(|port| ports.get(port));
                let members: Vec<Uuid> = members.flat_map(|port| &port.interfaces).copied().collect();
                let rows: Vec<&Interface> =
                    members.iter().filter_map(|uuid| interfaces.get(uuid).copied()).collect();
                // A bridge of a single port has few members, and only those matter.
                if members.len() <= MOST_BESIDE_A_PATCH {
                    switch.bridges.extend(members.into_iter().map(|member| (member, rows.clone())));
                }
            }
        }
        switch
    }

    /// The device, and the Interface that is its own: another one where os-vif gives each port a bridge
    /// (`[os_vif_ovs] per_port_bridge`), of which br-int has a patch port with the ids.
    ///
    /// `is_served` tells whether the device with an index is served as the port that the interface names: a database that
    /// was restarted lacks indexes until ovs-vswitchd has filled them in again.
    pub(super) fn tap(
        &self,
        interface: &'a Interface,
        is_served: impl Fn(u32) -> bool,
    ) -> Result<(Device, &'a Interface), NoTap> {
        let tap = match interface.kind.as_str() {
            PATCH => self.beyond(interface)?,
            _ => interface,
        };
        match tap.kind.as_str() {
            "" | "system" => {}
            "internal" => {
                return Err(NoTap::by(OtherWay::Switch, "it is an internal port of Open vSwitch, not a tap"));
            }
            kind if kind.starts_with("dpdk") || kind.starts_with("afxdp") => {
                let reason =
                    format!("it is a port of type {kind}, whose frames no device of the kernel carries");
                return Err(NoTap::by(OtherWay::Switch, reason));
            }
            kind => return Err(format!("it is a port of type {kind:?}, not a tap").into()),
        }
        let ifindex = self.device(tap, is_served)?;
        Ok((Device::tap(ifindex, &tap.name), tap))
    }

    /// True if this host has a device of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The index of the device of an Interface, if name and index agree.
    pub(super) fn device(
        &self,
        interface: &Interface,
        is_served: impl Fn(u32) -> bool,
    ) -> Result<u32, NoTap> {
        let name = interface.name.as_str();
        match (self.by_name.get(name), interface.ifindex) {
            (Some(&ifindex), Some(index)) if index == i64::from(ifindex) => Ok(ifindex),
            (Some(&ifindex), None) if is_served(ifindex) => Ok(ifindex),
            (Some(_), None) => Err(format!("Open vSwitch has not looked for the device {name} yet").into()),
            (Some(_), Some(0)) => Err(format!("Open vSwitch has not found the device {name} yet").into()),
            (Some(ifindex), Some(index)) => Err(format!(
                "the device {name} has the index {ifindex} here and {index} for Open vSwitch: it was made anew"
            )
            .into()),
            (None, Some(1..)) => {
                let reason = format!("the device {name} is in another network namespace than this agent");
                Err(NoTap::by(OtherWay::SwitchPerhaps, reason))
            }
            (None, _) => Err(format!("there is no device {name}").into()),
        }
    }

    /// The one device behind a patch port.
    fn beyond(&self, interface: &Interface) -> Result<&'a Interface, String> {
        let peer = interface.options.get("peer").ok_or("it is a patch port without a peer")?;
        let members = self.interfaces.get(peer.as_str()).and_then(|(uuid, _)| self.bridges.get(uuid));
        let devices = members.into_iter().flatten().filter(|member| matches!(&*member.kind, "" | "system"));
        let mut devices = devices.filter(|member| !member.external_ids.contains_key("iface-id"));
        match (devices.next(), devices.next()) {
            (Some(tap), None) => Ok(tap),
            (None, _) => Err(format!("it is a patch port, and the bridge beyond {peer} has no tap")),
            (Some(_), Some(_)) => {
                Err(format!("it is a patch port, and the bridge beyond {peer} has several devices"))
            }
        }
    }
}

const PATCH: &str = "patch";

/// Interfaces of a bridge that may be one port's own: its tap, its patch port, and the bridge's own internal port, with
/// some to spare.
const MOST_BESIDE_A_PATCH: usize = 8;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn interface(name: &str, kind: &str, ifindex: Option<i64>) -> Interface {
        Interface { name: name.into(), kind: kind.into(), ifindex, ..Interface::default() }
    }

    fn why(interface: &Interface) -> Result<u32, NoTap> {
        let links = [(7, "tap0".to_owned())].into();
        let switch = Switch::new(&links, &[(Uuid::default(), interface)], [].into_iter(), [].into_iter());
        switch.tap(interface, |_| false).map(|(device, _)| device.ifindex)
    }

    #[test]
    fn what_has_no_tap_is_named() {
        assert_eq!(why(&interface("tap0", "", Some(7))), Ok(7));
        assert_eq!(why(&interface("tap0", "system", Some(7))), Ok(7));
        let reasons = [
            (interface("tap0", "", Some(8)), "index 7 here and 8"),
            (interface("tap0", "", Some(0)), "not found"),
            (interface("tap0", "", None), "not looked"),
            (interface("tap1", "", Some(8)), "another network namespace"),
            (interface("tap1", "", Some(0)), "no device tap1"),
            (interface("tap0", "internal", Some(7)), "internal port"),
            (interface("vhu0", "dpdkvhostuserclient", Some(0)), "no device of the kernel"),
            (interface("p", "patch", Some(0)), "without a peer"),
            (interface("t", "geneve", Some(0)), "\"geneve\""),
        ];
        for (interface, reason) in reasons {
            let error = why(&interface).unwrap_err();
            assert!(error.reason.contains(reason), "{error:?}");
        }
    }

    #[test]
    fn the_tap_of_a_port_with_a_bridge_of_its_own_is_found() {
        let uuid = |number: u8| -> Uuid {
            format!("00000000-0000-0000-0000-0000000000{number:02}").parse().unwrap()
        };
        let patch = |name: &str, peer: &str, ids: &[(&str, &str)]| Interface {
            options: BTreeMap::from([("peer".to_owned(), peer.to_owned())]),
            external_ids: ids.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..interface(name, PATCH, None)
        };
        let rows = [
            patch("ibp0", "pbp0", &[("iface-id", "port")]),
            patch("pbp0", "ibp0", &[]),
            interface("pb0", "internal", Some(9)),
            interface("tap0", "", Some(7)),
            interface("tap1", "", Some(8)),
        ];
        let links = [(7, "tap0".to_owned()), (8, "tap1".to_owned())].into();
        let found = |on_bridge: &[u8]| {
            let interfaces: Vec<_> = (1..).zip(&rows).map(|(number, row)| (uuid(number), row)).collect();
            let port = Port { interfaces: on_bridge.iter().map(|number| uuid(*number)).collect() };
            let bridge = Bridge { name: "qbr1".into(), ports: BTreeSet::from([uuid(20)]) };
            let switch =
                Switch::new(&links, &interfaces, [(uuid(20), &port)].into_iter(), [&bridge].into_iter());
            switch.tap(&rows[0], |_| false).map(|(device, _)| device.name)
        };
        assert_eq!(found(&[2, 3, 4]), Ok("tap0".to_owned()));
        assert!(found(&[2, 3]).unwrap_err().reason.contains("no tap"));
        assert!(found(&[2, 3, 4, 5]).unwrap_err().reason.contains("several"));
        assert!(found(&[3, 4]).unwrap_err().reason.contains("no tap"), "its peer is elsewhere");
    }
}
