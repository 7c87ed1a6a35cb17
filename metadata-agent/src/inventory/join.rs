//! Join of Open vSwitch's interfaces with rows of the Southbound: the identity behind each tap. Pure.
use std::net::IpAddr;

use metadata_ebpf::map::PortKey;

use super::{
    Desired, DesiredPort, Unserved, UnservedPort, Who,
    bindings::{Bindings, LOCALPORT},
    network_devices::is_ours,
    remembered::Remembered,
    rows::{Interface, PortBinding},
    untagged,
    vif::{NoTap, Switch},
};
use crate::directory::Identity;

/// The ports of this host, and the interfaces that name a port and cannot be served.
///
/// A tap belongs to an interface when name *and* index agree: a device made anew under the old name is nobody's until
/// Open vSwitch has noticed it. Only what is known to face a guest is served: the device of a port that the Southbound
/// knows as a guest's, or that the hypervisor has named an instance for. What a switch's own devices receive is what
/// the switch delivers, and so anybody's.
///
/// A trunk's subports (`parent_port`, `tag`) share the tap of their parent.
///
/// A port that has a row and no tap may be reached through the switch (`stations.rs`): it is unserved as far as this goes,
/// and among the third of what is returned.
///
/// `served` tells which port is served behind a key now.
pub(super) fn join<'a, 'b>(
    switch: &Switch<'a>,
    interfaces: impl Iterator<Item = &'a Interface>,
    bindings: &'a Bindings,
    served: impl Fn(PortKey) -> Option<&'b str>,
    without_row: &WithoutRow<'_>,
) -> (Desired, Unserved, Vec<Tapless<'a>>) {
    let (mut desired, mut unserved, mut tapless) = (Desired::new(), Unserved::new(), Vec::new());
    for interface in interfaces.filter(|interface| !is_ours(interface)) {
        let Some(port) = interface.external_ids.get("iface-id") else { continue };
        let is_served = |ifindex| served(untagged(ifindex)) == Some(port.as_str());
        let binding = bindings.port(port);
        let found = match binding.map_or("", |binding| binding.kind.as_str()) {
            "" => switch.tap(interface, is_served),
            // Of another metadata agent, and no guest.
            LOCALPORT => continue,
            kind => Err(format!("its row in the Southbound is of type {kind}").into()),
        };
        let found = found.and_then(|(device, tap)| match (binding, local_instance(interface)) {
            (None, None) if !is_served(device.ifindex) => Err(without_row.nobody(port).into()),
            _ => Ok((device, tap)),
        });
        let (device, tap) = match found {
            Ok(found) => found,
            Err(no_tap) => {
                let reason = no_tap.reason.clone();
                unserved.insert(port.clone(), UnservedPort { interface: interface.name.clone(), reason });
                tapless.extend(binding.map(|binding| Tapless { interface, binding, no_tap }));
                continue;
            }
        };
        let ifindex = device.ifindex;
        let mut insert = |vlan, port: &str, who: Who, row: Option<&PortBinding>, policed| {
            let own = own_addresses(&who, row);
            let (device, port) = (device.clone(), port.to_owned());
            let port = DesiredPort { policed, ..DesiredPort::on_tap(device, port, who, own) };
            desired.insert(PortKey::tap(ifindex, vlan), port);
        };
        if binding.is_none() {
            for (vlan, identity) in without_row.subports(interface, port) {
                insert(vlan, &identity.port, Who::Known(identity.clone()), None, false);
            }
        }
        for subport in bindings.subports(port) {
            let Some(vlan) = vlan(subport) else { continue };
            // Neutron does not let a subport have a device_id, so that it is the parent's instance that asks. Instance
            // and project are of one row: Nova compares them.
            let has_own = subport.external_ids.get("neutron:device_id").is_some_and(|id| !id.is_empty());
            let who = match if has_own { Some(subport) } else { binding } {
                Some(owner) => identify(interface, subport, owner),
                None => Who::Pending("its trunk's parent port has no row in the Southbound".to_owned()),
            };
            insert(vlan, &subport.logical_port, who, Some(subport), false);
        }
        let who = match binding {
            Some(binding) => identify(interface, binding, binding),
            None => without_row.port(interface, port),
        };
        insert(0, port, who, binding, tap.ingress_policing_rate > 0);
    }
    (desired, unserved, tapless)
}

/// A port of this host that has a row in the Southbound, and no tap.
#[derive(Debug)]
pub(super) struct Tapless<'a> {
    pub(super) interface: &'a Interface,
    pub(super) binding: &'a PortBinding,
    pub(super) no_tap: NoTap,
}

/// The addresses that are the port's own: fixed ones first, then those that it may send as besides.
fn own_addresses(who: &Who, row: Option<&PortBinding>) -> Vec<IpAddr> {
    let fixed = match who {
        Who::Known(identity) => identity.fixed_ips.as_slice(),
        Who::Pending(_) | Who::Conflict(_) => &[],
    };
    let mut own = fixed.to_vec();
    let rows = row.into_iter().flat_map(|row| row.mac.iter().chain(&row.port_security));
    // Each begins with a MAC address, and may have whole networks, which are no single source.
    for address in rows.flat_map(|text| text.split_whitespace()).filter_map(|word| word.parse().ok()) {
        if !own.contains(&address) {
            own.push(address);
        }
    }
    own
}

/// Evidence for ports that have no row in the Southbound: its word where it has been asked for the very port, and else
/// what it said before, where the hypervisor still says the same.
pub(super) struct WithoutRow<'a> {
    pub(super) remembered: &'a Remembered,
    /// Reason for which the Southbound cannot be asked, if so.
    pub(super) away: Option<String>,
    /// True if it has been asked for a port by its name.
    pub(super) asks_for: &'a dyn Fn(&str) -> bool,
}

impl WithoutRow<'_> {
    /// Reason for which there may be a row that is not here; nothing if there is none.
    fn doubt(&self, port: &str) -> Option<String> {
        let not_yet = || "its row in the Southbound has not come yet".to_owned();
        self.away.clone().or_else(|| (!(self.asks_for)(port)).then(not_yet))
    }

    /// Reason for which a port is nobody's that the hypervisor names no instance for either.
    fn nobody(&self, port: &str) -> String {
        let row = self.doubt(port).unwrap_or_else(|| NO_ROW.to_owned());
        format!("{row}, and Open vSwitch names no instance for it (vm-uuid)")
    }

    fn port(&self, interface: &Interface, port: &str) -> Who {
        let Some(doubt) = self.doubt(port) else { return Who::Pending(NO_ROW.to_owned()) };
        match self.remembered.port(port) {
            Some(identity) if is_confirmed(interface, identity) => Who::Known(identity.clone()),
            Some(_) => Who::Pending("it is plugged for another instance than it was".to_owned()),
            None => Who::Pending(doubt),
        }
    }

    fn subports(&self, interface: &Interface, parent: &str) -> impl Iterator<Item = (u32, &Identity)> {
        let remembered = self.doubt(parent).map(|_| self.remembered);
        let subports = remembered.into_iter().flat_map(|remembered| remembered.subports(parent));
        subports.filter(|(_, identity)| is_confirmed(interface, identity))
    }
}

/// Reason for which a port is nobody's.
const NO_ROW: &str = "it has no row in the Southbound";

/// True if the hypervisor says that the instance is there that was.
fn is_confirmed(interface: &Interface, identity: &Identity) -> bool {
    local_instance(interface) == Some(&identity.instance)
}

/// VLAN id of a subport's frames.
fn vlan(subport: &PortBinding) -> Option<u32> {
    subport.tag.and_then(|tag| u32::try_from(tag).ok()).filter(|tag| (1..=4094).contains(tag))
}

/// The identity of `port`, whose instance and project are those of `owner`: itself, or its trunk's parent.
pub(super) fn identify(interface: &Interface, port: &PortBinding, owner: &PortBinding) -> Who {
    let Some(instance) = id(owner, "neutron:device_id") else {
        return Who::Pending("its row in the Southbound names no instance (neutron:device_id)".to_owned());
    };
    // A tenant can write device_id through Neutron's API, and only a hypervisor's root can write vm-uuid (os-vif) or
    // vm-id (libvirt). Where they disagree there is no telling whose data would be handed out.
    if let Some(local) = local_instance(interface).filter(|local| !local.eq_ignore_ascii_case(instance)) {
        return Who::Conflict(format!(
            "the Southbound says instance {instance}, the local Open vSwitch {local}"
        ));
    }
    if uuid::Uuid::try_parse(instance).is_err() {
        return Who::Pending(format!("its device_id in the Southbound is no instance: {instance:?}"));
    }
    let Some(project) = id(owner, "neutron:project_id") else {
        return Who::Pending("its row in the Southbound names no project (neutron:project_id)".to_owned());
    };
    let cidrs = id(port, "neutron:cidrs").unwrap_or_default();
    Who::Known(Identity {
        port: port.logical_port.clone(),
        instance: instance.to_owned(),
        project: project.to_owned(),
        network: network(port).unwrap_or_default().to_owned(),
        fixed_ips: cidrs.split_whitespace().filter_map(address).collect(),
    })
}

/// The id of a port's network in Neutron.
pub(super) fn network(row: &PortBinding) -> Option<&str> {
    id(row, "neutron:network_name").map(|name| name.strip_prefix("neutron-").unwrap_or(name))
}

pub(super) fn id<'a>(row: &'a PortBinding, key: &str) -> Option<&'a str> {
    row.external_ids.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

/// The instance as the hypervisor names it.
pub(super) fn local_instance(interface: &Interface) -> Option<&String> {
    ["vm-uuid", "vm-id"].iter().find_map(|key| interface.external_ids.get(key))
}

fn address(cidr: &str) -> Option<IpAddr> {
    cidr.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::ids::Ids;

    const VM: &str = "0b0c9c6c-9c1c-4f9e-8d7a-1c9c1c9c1c9c";

    fn map(pairs: &[(&str, &str)]) -> Ids {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn interface(name: &str, ifindex: i64, ids: &[(&str, &str)]) -> Interface {
        Interface {
            name: name.into(),
            ifindex: Some(ifindex),
            external_ids: map(ids),
            ..Interface::default()
        }
    }

    fn binding(kind: &str, ids: &[(&str, &str)]) -> PortBinding {
        PortBinding {
            logical_port: "port".into(),
            kind: kind.into(),
            external_ids: map(ids),
            ..PortBinding::default()
        }
    }

    const IDS: &[(&str, &str)] = &[
        ("neutron:device_id", VM),
        ("neutron:project_id", "project"),
        ("neutron:network_name", "neutron-net"),
        ("neutron:cidrs", "192.168.1.10/24 fd00::a/64"),
    ];

    fn joined(
        interface: &Interface,
        bindings: &Bindings,
        served: &str,
        without_row: &WithoutRow<'_>,
    ) -> (Desired, Unserved) {
        let links = [(7, "tap0".to_owned())].into();
        let rows = [(ovsdb_client::Uuid::default(), interface)];
        let switch = Switch::new(&links, &rows, [].into_iter(), [].into_iter());
        let served = |key| (key == untagged(7)).then_some(served);
        let (desired, unserved, _) = join(&switch, [interface].into_iter(), bindings, served, without_row);
        (desired, unserved)
    }

    /// The Southbound has the last word.
    fn joined_by_all(interface: &Interface, bindings: &Bindings, served: &str) -> (Desired, Unserved) {
        let remembered = &nothing();
        joined(interface, bindings, served, &WithoutRow { remembered, away: None, asks_for: &|_| true })
    }

    fn nothing() -> Remembered {
        Remembered::read(&std::env::temp_dir().join("nothing-is-remembered-here"))
    }

    fn one(interface: &Interface, binding: Option<&PortBinding>) -> Option<DesiredPort> {
        let bindings = binding.into_iter().collect();
        joined_by_all(interface, &bindings, "served").0.remove(&untagged(7))
    }

    fn why(interface: &Interface, binding: Option<&PortBinding>) -> String {
        let (desired, mut unserved) = joined_by_all(interface, &binding.into_iter().collect(), "served");
        assert_eq!(desired, Desired::new());
        unserved.remove("port").unwrap().reason
    }

    #[test]
    fn a_remembered_identity_must_be_confirmed_by_the_hypervisor() {
        let was = |port: &str| Identity {
            port: port.into(),
            instance: VM.into(),
            project: "project".into(),
            network: "net".into(),
            fixed_ips: Vec::new(),
        };
        let mut remembered = nothing();
        let known = [("port", 0, &was("port")), ("port", 101, &was("sub")), ("other", 102, &was("other"))];
        remembered.replace(tokio::time::Instant::now(), known.into_iter());
        let remembered = &remembered;
        let away = Some("away".to_owned());
        let without_row = WithoutRow { remembered, away, asks_for: &|_| true };
        let desired = |ids: &[(&str, &str)], without_row: &WithoutRow<'_>| {
            joined(&interface("tap0", 7, ids), &Bindings::default(), "port", without_row).0
        };
        let subport = PortKey::tap(7, 101);
        let same = desired(&[("iface-id", "port"), ("vm-uuid", VM)], &without_row);
        assert_eq!(same.keys().collect::<Vec<_>>(), [&untagged(7), &subport]);
        assert_eq!(same[&untagged(7)].who, Who::Known(was("port")));
        assert_eq!((&same[&subport].port, &same[&subport].who), (&"sub".to_owned(), &Who::Known(was("sub"))));
        let plugged_for: [&[_]; 3] = [
            &[("iface-id", "port"), ("vm-uuid", "other")],
            &[("iface-id", "port")],
            &[("iface-id", "sub"), ("vm-uuid", VM)],
        ];
        for ids in plugged_for {
            let other = desired(ids, &without_row);
            assert!(matches!(other[&untagged(7)].who, Who::Pending(_)), "{ids:?}");
            assert_eq!(other.len(), 1, "{ids:?}");
        }
        // The Southbound is there: what it has not been asked for may be there as well, and what it has is not.
        let ids: &[_] = &[("iface-id", "port"), ("vm-uuid", VM)];
        let unasked = desired(ids, &WithoutRow { remembered, away: None, asks_for: &|_| false });
        assert_eq!(unasked[&untagged(7)].who, Who::Known(was("port")));
        let gone = desired(ids, &WithoutRow { remembered, away: None, asks_for: &|port| port == "port" });
        assert!(matches!(gone[&untagged(7)].who, Who::Pending(_)));
        assert_eq!(gone.len(), 1);
    }

    #[test]
    fn a_guest_is_known_by_its_row() {
        let port =
            one(&interface("tap0", 7, &[("iface-id", "port"), ("vm-uuid", VM)]), Some(&binding("", IDS)));
        let Who::Known(identity) = port.unwrap().who else { panic!("not known") };
        assert_eq!(identity.instance, VM);
        assert_eq!(identity.project, "project");
        assert_eq!(identity.network, "net");
        assert_eq!(
            identity.fixed_ips,
            ["192.168.1.10".parse::<IpAddr>().unwrap(), "fd00::a".parse().unwrap()]
        );
    }

    #[test]
    fn what_is_no_guest_is_left_alone() {
        let ids = &[("iface-id", "port")];
        assert!(one(&interface("tap0", 7, &[]), Some(&binding("", IDS))).is_none(), "no logical port");
        assert!(one(&interface("tap0", 7, ids), Some(&binding("localport", IDS))).is_none());
        let reason = why(&interface("tap0", 8, ids), Some(&binding("", IDS)));
        assert!(reason.contains("made anew"), "{reason}");
        let reason = why(&interface("tap0", 7, ids), Some(&binding("virtual", IDS)));
        assert!(reason.contains("type virtual"), "{reason}");
    }

    #[test]
    fn what_nobody_says_is_a_guest_is_not_served() {
        let of_nobody = interface("tap0", 7, &[("iface-id", "port")]);
        let reason = why(&of_nobody, None);
        assert!(reason.contains("no row") && reason.contains("names no instance"), "{reason}");
        // What is served stays: its row may come back.
        let (desired, _) = joined_by_all(&of_nobody, &Bindings::default(), "port");
        assert_eq!(desired.len(), 1);
        let internal = Interface { kind: "internal".into(), ..of_nobody };
        assert!(why(&internal, Some(&binding("", IDS))).contains("internal port"));
    }

    #[test]
    fn own_addresses_are_the_fixed_ones_and_those_of_address_pairs() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let row = PortBinding {
            mac: addresses(&["fa:16:3e:00:00:01 192.168.1.10 fd00::a"]),
            port_security: addresses(&["fa:16:3e:00:00:01 192.168.1.10 192.168.1.200 10.0.0.0/24"]),
            ..binding("", IDS)
        };
        let own = one(&interface("tap0", 7, &[("iface-id", "port")]), Some(&row)).unwrap().own;
        let expected =
            ["192.168.1.10", "fd00::a", "192.168.1.200"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(own, expected);
    }

    #[test]
    fn a_restarted_database_takes_nothing_away() {
        let forgotten = |port| Interface { ifindex: None, ..interface("tap0", 7, &[("iface-id", port)]) };
        assert!(one(&forgotten("served"), None).is_some());
        assert!(one(&forgotten("port"), None).is_none(), "a name alone is not enough for a new port");
    }

    #[test]
    fn subports_share_the_tap_of_their_parent() {
        let interface = interface("tap0", 7, &[("iface-id", "port"), ("vm-uuid", VM)]);
        let subport = |name: &str, tag, ids: &[(&str, &str)]| PortBinding {
            logical_port: name.into(),
            parent_port: Some("port".into()),
            tag,
            external_ids: map(ids),
            ..PortBinding::default()
        };
        let other = "11111111-9c1c-4f9e-8d7a-1c9c1c9c1c9c";
        let rows = [
            binding("", IDS),
            subport("sub", Some(101), &[("neutron:project_id", "theirs"), ("neutron:cidrs", "10.0.0.5/24")]),
            subport("claims", Some(102), &[("neutron:device_id", other), ("neutron:project_id", "theirs")]),
            subport("untagged", None, &[]),
        ];
        let rows = rows.iter().collect();
        let (desired, _) = joined_by_all(&interface, &rows, "served");
        assert_eq!(desired.len(), 3);
        let Who::Known(identity) = &desired[&PortKey::tap(7, 101)].who else { panic!("not known") };
        assert_eq!((identity.port.as_str(), identity.instance.as_str()), ("sub", VM));
        assert_eq!(identity.project, "project", "the instance's project");
        assert_eq!(identity.fixed_ips, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        assert!(matches!(desired[&PortKey::tap(7, 102)].who, Who::Conflict(_)));
    }

    #[test]
    fn doubt_is_never_an_identity() {
        let plugged = interface("tap0", 7, &[("iface-id", "port"), ("vm-uuid", VM)]);
        let pending = |ids: &[(&str, &str)]| {
            let without = interface("tap0", 7, &[("iface-id", "port")]);
            matches!(one(&without, Some(&binding("", ids))).unwrap().who, Who::Pending(_))
        };
        assert_eq!(one(&plugged, None).unwrap().who, Who::Pending("it has no row in the Southbound".into()));
        assert!(pending(&IDS[1..]), "no device_id");
        assert!(pending(&[IDS[0]]), "no project");
        assert!(pending(&[("neutron:device_id", "dhcp-agent"), IDS[1]]), "not an instance");
        for key in ["vm-uuid", "vm-id"] {
            let other =
                interface("tap0", 7, &[("iface-id", "port"), (key, "11111111-9c1c-4f9e-8d7a-1c9c1c9c1c9c")]);
            assert!(matches!(one(&other, Some(&binding("", IDS))).unwrap().who, Who::Conflict(_)), "{key}");
        }
    }
}
