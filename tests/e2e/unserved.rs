//! Ports that are plugged and cannot be served: each is named with its reason, and no device that is not known to face a
//! guest gets the program of a tap.

use std::time::Duration;

use anyhow::{Result, ensure};
use metadata_tests::{
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    ovn::{Lab, Routing},
    port::{Port, uuid},
    wait::until,
};

const SOON: Duration = Duration::from_secs(30);

/// Adds an interface with a logical port's id, and returns that id.
fn plug(cloud: &Cloud<Lab>, name: &str, more: &str) -> Result<String> {
    let id = uuid()?;
    let ids = format!("external_ids={{iface-id=\"{id}\",vm-uuid=\"{}\"}}", uuid()?);
    run(cloud
        .chassis
        .vsctl()
        .words(format!("--no-wait add-port br-int {name} -- set Interface {name}"))
        .arg(ids)
        .words(more))?;
    Ok(id)
}

#[test]
fn every_port_that_is_not_served_is_named() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    let ports = [
        (plug(&cloud, "nowhere", "")?, "no device nowhere"),
        (plug(&cloud, "patch-a", "type=patch options:peer=patch-b")?, "the bridge beyond patch-b has no tap"),
        (plug(&cloud, "vhu0", "type=dpdkvhostuserclient")?, "no device of the kernel carries"),
        (plug(&cloud, "o-hm0", "type=internal")?, "internal port of Open vSwitch"),
    ];
    for (port, words) in &ports {
        cloud.agent.wait_unserved(port, words)?;
    }
    // One that is here, and another device for Open vSwitch.
    let other = cloud.chassis.boot(Port::new(&network)?)?;
    cloud.chassis.plug(&other)?;
    cloud.agent.wait_ready()?;
    let tap = &other.port.tap;
    let index = cloud.chassis.ifindex(&other)?;
    cloud.chassis.host().ip(format!("link set {tap} down"))?;
    cloud.chassis.host().ip(format!("link set {tap} name elsewhere"))?;
    cloud.agent.wait_unserved(&other.port.id, "another network namespace")?;
    cloud.chassis.host().ip(format!("link set elsewhere name {tap}"))?;
    cloud.chassis.host().ip(format!("link set {tap} up"))?;
    until("it is served", SOON, || {
        let ports = cloud.agent.ports()?;
        ensure!(
            ports.iter().any(|status| status.port == other.port.id && status.ifindex == index),
            "{ports:?}"
        );
        Ok(())
    })?;

    // None of it makes the node less ready, and each is told once.
    cloud.agent.wait_ready()?;
    until("the metric says how many", SOON, || {
        let unserved = cloud.agent.metric("metadata_ports_unserved")?;
        ensure!(unserved == ports.len() as f64, "{unserved} are unserved");
        Ok(())
    })?;
    until("each is said", SOON, || {
        let log = cloud.agent.log()?;
        for (port, words) in &ports {
            let said = log.lines().filter(|line| line.contains("is not served") && line.contains(&**port));
            let said: Vec<_> = said.collect();
            ensure!(said.len() == 1 && said[0].contains(words), "{port}: {said:?}");
        }
        Ok(())
    })?;
    own_identity(&guest)
}

/// Frames to a switch's own port are what the switch delivers: anybody's.
#[test]
fn a_port_of_the_switch_gets_no_program() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let port = Port { tap: "o-hm0".to_owned(), ..Port::new(&network)? };
    cloud.chassis.create_port(&port)?;
    let guest = cloud.chassis.boot(port)?;
    run(cloud
        .chassis
        .vsctl()
        .words("--no-wait add-port br-int o-hm0 -- set Interface o-hm0 type=internal")
        .arg(format!("external_ids={{iface-id=\"{}\"}}", guest.port.id)))?;
    cloud.agent.wait_unserved(&guest.port.id, "internal port of Open vSwitch")?;
    let programs = cloud.chassis.host().ip("-d link show dev o-hm0")?;
    ensure!(!programs.contains("from_guest"), "{programs}");
    let pins = cloud.agent.run_dir().join("bpf");
    let index = cloud.chassis.ifindex(&guest)?.to_string();
    let linked = run(std::process::Command::new("find").arg(pins).words("-name").arg(&index))?;
    ensure!(linked.is_empty(), "{linked}");
    Ok(())
}

/// os-vif can give each port a bridge of its own (`[os_vif_ovs] per_port_bridge`): the ids are those of a patch port of
/// br-int, and the tap is beyond it, without any.
#[test]
fn a_tap_on_a_bridge_of_its_own_is_served() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    let guest = cloud.chassis.boot(port)?;
    let Port { id, tap, mac, instance, .. } = &guest.port;
    let (bridge, near, far) =
        (format!("pb{}", &id[..11]), format!("ibp{}", &id[..11]), format!("pbp{}", &id[..11]));
    let ids = format!(
        "external_ids={{iface-id=\"{id}\",iface-status=active,attached-mac=\"{mac}\",vm-uuid=\"{instance}\"}}"
    );
    run(cloud
        .chassis
        .vsctl()
        .words(format!("add-br {bridge} -- set Bridge {bridge} datapath_type=netdev"))
        .words(format!("-- add-port {bridge} {far} -- set Interface {far} type=patch options:peer={near}"))
        .words(format!("-- add-port br-int {near} -- set Interface {near} type=patch options:peer={far}"))
        .arg(ids)
        .words(format!("-- add-port {bridge} {tap}")))?;
    let status = cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    ensure!(status.port == *id && status.tap == *tap, "{status:?}");
    guest.dhcp()?;
    own_identity(&guest)
}
