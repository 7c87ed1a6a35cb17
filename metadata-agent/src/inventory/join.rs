//! Who is behind which tap: interfaces of Open vSwitch joined with rows of the Southbound. Pure.
use std::{collections::HashMap, net::IpAddr};

use metadata_ebpf::map::PortKey;

use super::{
    Desired, DesiredPort, LinkTable, Who,
    remembered::Remembered,
    rows::{Interface, PortBinding},
    untagged,
};
use crate::{datapath::Device, proxy::directory::Identity};

/// Who is behind which tap. Pure.
///
/// A tap belongs to an interface when name *and* index agree: a device made anew under the old name is nobody's until
/// Open vSwitch has noticed it. The column is not kept on disk, so a restarted database lacks it until ovs-vswitchd has
/// filled it in again; until then a port that is served already stays what it is.
///
/// A trunk's subports (`parent_port`, `tag`) share the tap of their parent.
///
/// `served` tells which port is served behind a key now.
pub(super) fn join<'a, 'b>(
    links: &LinkTable,
    interfaces: impl Iterator<Item = &'a Interface>,
    bindings: &Bindings<'_>,
    served: impl Fn(PortKey) -> Option<&'b str>,
    without_row: &WithoutRow<'_>,
) -> Desired {
    let by_name: HashMap<&str, u32> = links.iter().map(|(ifindex, name)| (name.as_str(), *ifindex)).collect();
    let mut desired = Desired::new();
    for interface in interfaces {
        let Some(port) = interface.external_ids.get("iface-id") else { continue };
        let Some(&ifindex) = by_name.get(interface.name.as_str()) else { continue };
        let is_ours = match interface.ifindex {
            Some(index) => index == i64::from(ifindex),
            None => served(untagged(ifindex)) == Some(port.as_str()),
        };
        if !is_ours {
            continue;
        }
        let binding = bindings.ports.get(port.as_str()).copied();
        // Ports of routers, gateways and of other metadata agents (localport) are no guests.
        if binding.is_some_and(|binding| !binding.kind.is_empty()) {
            continue;
        }
        let device = Device { ifindex, name: interface.name.clone() };
        let mut insert = |vlan, port: &str, who, policed| {
            let port = DesiredPort { device: device.clone(), port: port.to_owned(), who, policed };
            desired.insert(PortKey { ifindex, vlan }, port);
        };
        if binding.is_none() {
            for (vlan, identity) in without_row.subports(interface, port) {
                insert(vlan, &identity.port, Who::Known(identity.clone()), false);
            }
        }
        for subport in bindings.subports.get(port.as_str()).into_iter().flatten() {
            let Some(vlan) = vlan(subport) else { continue };
            // Neutron does not let a subport have a device_id, so that it is the parent's instance that asks. Instance
            // and project are of one row: Nova compares them.
            let has_own = subport.external_ids.get("neutron:device_id").is_some_and(|id| !id.is_empty());
            let who = match if has_own { Some(*subport) } else { binding } {
                Some(owner) => identify(interface, subport, owner),
                None => Who::Pending("its trunk's parent port has no row in the Southbound".to_owned()),
            };
            insert(vlan, &subport.logical_port, who, false);
        }
        let who = match binding {
            Some(binding) => identify(interface, binding, binding),
            None => without_row.port(interface, port),
        };
        insert(0, port, who, interface.ingress_policing_rate > 0);
    }
    desired
}

/// What counts for ports that have no row in the Southbound.
#[derive(Debug)]
pub(super) enum WithoutRow<'a> {
    /// It has the last word: what it does not have is nobody.
    Nobody,
    /// It cannot be asked, for that reason: what it said before counts, where the hypervisor still says the same.
    Remembered { remembered: &'a Remembered, reason: String },
}

impl WithoutRow<'_> {
    fn port(&self, interface: &Interface, port: &str) -> Who {
        match self {
            Self::Nobody => Who::Pending("it has no row in the Southbound".to_owned()),
            Self::Remembered { remembered, reason } => match remembered.port(port) {
                Some(identity) if is_confirmed(interface, identity) => Who::Known(identity.clone()),
                Some(_) => Who::Pending("it is plugged for another instance than it was".to_owned()),
                None => Who::Pending(reason.clone()),
            },
        }
    }

    fn subports(&self, interface: &Interface, parent: &str) -> impl Iterator<Item = (u32, &Identity)> {
        let remembered = match self {
            Self::Nobody => None,
            Self::Remembered { remembered, .. } => Some(remembered),
        };
        let subports = remembered.into_iter().flat_map(|remembered| remembered.subports(parent));
        subports.filter(|(_, identity)| is_confirmed(interface, identity))
    }
}

/// Whether the hypervisor says that the instance is there that was.
fn is_confirmed(interface: &Interface, identity: &Identity) -> bool {
    local_instance(interface) == Some(&identity.instance)
}

/// Rows of the Southbound, by how they are looked up.
#[derive(Debug, Default)]
pub(super) struct Bindings<'a> {
    /// By logical port.
    ports: HashMap<&'a str, &'a PortBinding>,
    /// A trunk's subports by their parent's logical port.
    subports: HashMap<&'a str, Vec<&'a PortBinding>>,
}

impl<'a> FromIterator<&'a PortBinding> for Bindings<'a> {
    fn from_iter<T: IntoIterator<Item = &'a PortBinding>>(rows: T) -> Self {
        let mut bindings = Self::default();
        for row in rows {
            if let Some(parent) = &row.parent_port {
                bindings.subports.entry(parent).or_default().push(row);
            }
            bindings.ports.insert(&row.logical_port, row);
        }
        bindings
    }
}

/// What a subport's frames are tagged with.
fn vlan(subport: &PortBinding) -> Option<u32> {
    subport.tag.and_then(|tag| u32::try_from(tag).ok()).filter(|tag| (1..=4094).contains(tag))
}

/// The identity of `port`, whose instance and project are those of `owner`: itself, or its trunk's parent.
fn identify(interface: &Interface, port: &PortBinding, owner: &PortBinding) -> Who {
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
    let network = id(port, "neutron:network_name").unwrap_or_default();
    let cidrs = id(port, "neutron:cidrs").unwrap_or_default();
    Who::Known(Identity {
        port: port.logical_port.clone(),
        instance: instance.to_owned(),
        project: project.to_owned(),
        network: network.strip_prefix("neutron-").unwrap_or(network).to_owned(),
        fixed_ips: cidrs.split_whitespace().filter_map(address).collect(),
    })
}

fn id<'a>(row: &'a PortBinding, key: &str) -> Option<&'a str> {
    row.external_ids.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

/// The instance as the hypervisor names it.
fn local_instance(interface: &Interface) -> Option<&String> {
    ["vm-uuid", "vm-id"].iter().find_map(|key| interface.external_ids.get(*key))
}

fn address(cidr: &str) -> Option<IpAddr> {
    cidr.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const VM: &str = "0b0c9c6c-9c1c-4f9e-8d7a-1c9c1c9c1c9c";

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
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

    fn one(interface: &Interface, binding: Option<&PortBinding>) -> Option<DesiredPort> {
        let links = [(7, "tap0".to_owned())].into();
        let bindings = binding.into_iter().collect();
        let served = |key| (key == untagged(7)).then_some("served");
        join(&links, [interface].into_iter(), &bindings, served, &WithoutRow::Nobody).remove(&untagged(7))
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
        let mut remembered = Remembered::read(&std::env::temp_dir().join("nothing-is-remembered-here"));
        let known = [("port", 0, &was("port")), ("port", 101, &was("sub")), ("other", 102, &was("other"))];
        remembered.replace(tokio::time::Instant::now(), known.into_iter());
        let without_row = WithoutRow::Remembered { remembered: &remembered, reason: "away".to_owned() };
        let desired = |ids, without_row| {
            let interface = interface("tap0", 7, ids);
            let links = [(7, "tap0".to_owned())].into();
            join(&links, [&interface].into_iter(), &Bindings::default(), |_| None, without_row)
        };
        let subport = PortKey { ifindex: 7, vlan: 101 };
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
        let gone = desired(&[("iface-id", "port"), ("vm-uuid", VM)], &WithoutRow::Nobody);
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
        assert!(
            one(&interface("tap0", 8, ids), Some(&binding("", IDS))).is_none(),
            "another device has the name"
        );
        assert!(
            one(&interface("tap1", 7, ids), Some(&binding("", IDS))).is_none(),
            "another name has the device"
        );
        assert!(one(&interface("tap0", 0, ids), Some(&binding("", IDS))).is_none(), "no device");
        assert!(one(&interface("tap0", 7, ids), Some(&binding("localport", IDS))).is_none());
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
        let links = [(7, "tap0".to_owned())].into();
        let rows = rows.iter().collect();
        let desired = join(&links, [&interface].into_iter(), &rows, |_| None, &WithoutRow::Nobody);
        assert_eq!(desired.len(), 3);
        let Who::Known(identity) = &desired[&PortKey { ifindex: 7, vlan: 101 }].who else {
            panic!("not known")
        };
        assert_eq!((identity.port.as_str(), identity.instance.as_str()), ("sub", VM));
        assert_eq!(identity.project, "project", "the instance's project");
        assert_eq!(identity.fixed_ips, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        assert!(matches!(desired[&PortKey { ifindex: 7, vlan: 102 }].who, Who::Conflict(_)));
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
