//! The devices of networks, as ports of the local Open vSwitch: made and removed with what needs them, whatever is done to
//! agent, switch and database; nothing else of the switch is touched.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::Guest,
    ovn::{Fabric, Lab, Routing},
    port::{Network, Port, mac, uuid},
    traffic::meanwhile,
    wait::until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Long enough for a SYN and its first retransmission.
const NO_ANSWER: Duration = Duration::from_millis(1500);
/// Key in `external_ids` of the network whose device an Interface is.
const KEY: &str = "metadata-agent-network";

/// Interfaces of the local Open vSwitch by name, each with its row's id and its `external_ids`.
type Interfaces = BTreeMap<String, (String, BTreeMap<String, String>)>;

fn interfaces(cloud: &Cloud<Lab>) -> Result<Interfaces> {
    let text =
        run(cloud.chassis.vsctl().words("--format=json --columns=name,_uuid,external_ids list Interface"))?;
    let table: Value = serde_json::from_str(&text)?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |row: &Value| {
        let pairs = row[2][1].as_array().into_iter().flatten();
        let mut ids: BTreeMap<_, _> = pairs.map(|pair| (word(&pair[0]), word(&pair[1]))).collect();
        // ovn-controller's own.
        ids.retain(|key, _| !key.starts_with("ovn-installed"));
        (word(&row[0]), (word(&row[1][1]), ids))
    };
    Ok(table["data"].as_array().context("no rows")?.iter().map(row).collect())
}

/// Waits until Open vSwitch has, or has not, the device of a network.
fn wait_device(cloud: &Cloud<Lab>, network: &Network, is_there: bool) -> Result<()> {
    let device = Lab::network_device(&network.id);
    until(&format!("{device} is there: {is_there}"), SOON, || {
        let interfaces = interfaces(cloud)?;
        let ours = interfaces.get(&device).filter(|(_, ids)| ids.get(KEY) == Some(&network.id));
        ensure!(ours.is_some() == is_there, "{interfaces:?}");
        let has_link = cloud.chassis.host().ip(format!("link show dev {device}")).is_ok();
        ensure!(has_link == is_there, "its link is there: {has_link}");
        Ok(())
    })
}

/// Adds an Interface that is bound to a network's metadata port, as the other agent's is.
fn bind_as_another(cloud: &Cloud<Lab>, network: &Network) -> Result<()> {
    let ids = format!("external_ids:neutron\\:device_id=ovnmeta-{}", network.id);
    let mut find = cloud.chassis.nbctl();
    let port = run(find.words("--bare --columns=name find Logical_Switch_Port").arg(ids))?;
    let mut add = cloud.chassis.vsctl();
    add.words("add-port br-int tapother-00 -- set Interface tapother-00 type=internal");
    run(add.arg(format!("external_ids:iface-id=\"{}\"", port.trim())))?;
    Ok(())
}

#[test]
fn a_metadata_port_that_somebody_has_bound_is_left_alone() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    bind_as_another(&cloud, &network)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    let guest = cloud.chassis.add_internal(port)?;
    cloud.agent.wait_unserved(&guest.port.id, "another agent's interface, tapother-00")?;
    cloud.agent.wait_logged(&["is not served", "tapother-00", &guest.port.id])?;
    wait_device(&cloud, &network, false)?;
    let backup = cloud.chassis.sandbox().path("backup");
    fs::write(&backup, run(&mut cloud.chassis.ovs_client("backup"))?)?;

    run(cloud.chassis.vsctl().words("del-port tapother-00"))?;
    cloud.agent.wait_station(&guest)?;
    wait_device(&cloud, &network, true)?;
    own_identity(&guest)?;
    // The other one comes back.
    bind_as_another(&cloud, &network)?;
    cloud.agent.wait_unserved(&guest.port.id, "another agent's interface, tapother-00")?;
    wait_device(&cloud, &network, false)?;
    run(cloud.chassis.vsctl().words("del-port tapother-00"))?;
    cloud.agent.wait_station(&guest)?;

    // A database from before all that: it lacks the device, and has the other one.
    let restored = cloud.chassis.ovs_client("restore").stdin(fs::File::open(&backup)?).status()?;
    ensure!(restored.success(), "{restored}");
    cloud.agent.wait_unserved(&guest.port.id, "another agent's interface, tapother-00")?;
    wait_device(&cloud, &network, false)?;
    run(cloud.chassis.vsctl().words("del-port tapother-00"))?;
    cloud.agent.wait_station(&guest)?;
    wait_device(&cloud, &network, true)
}

#[test]
fn a_crash_leaves_nothing_that_the_next_agent_does_not_want() -> Result<()> {
    let mut cloud = Cloud::with_network_devices()?;
    let (red, blue) = (
        cloud.chassis.add_network("red", Routing::Routed)?,
        cloud.chassis.add_network("blue", Routing::Isolated)?,
    );
    let neighbour = cloud.add_guest(&red)?;
    cloud.agent.wait_served(&neighbour, cloud.chassis.ifindex(&neighbour)?)?;
    let before = interfaces(&cloud)?;
    let (stays, goes) = (cloud.add_internal(&red)?, cloud.add_internal(&blue)?);
    own_identity(&goes)?;
    let (device, with) = (Lab::network_device(&red.id), interfaces(&cloud)?);
    let ifindex = cloud.chassis.host().ifindex(&device)?;

    cloud.agent.kill()?;
    run(cloud.chassis.vsctl().words(format!("del-port {}", goes.port.tap)))?;
    cloud.agent.resume()?;
    cloud.agent.wait_station(&stays)?;
    wait_device(&cloud, &blue, false)?;
    own_identity(&stays)?;
    own_identity(&neighbour)?;
    let now = interfaces(&cloud)?;
    ensure!(now[&device] == with[&device], "the device was made anew: {now:?}");
    ensure!(cloud.chassis.host().ifindex(&device)? == ifindex);

    // For good: what others have in the switch is as it was.
    run(cloud.chassis.vsctl().words(format!("del-port {}", stays.port.tap)))?;
    wait_device(&cloud, &red, false)?;
    ensure!(interfaces(&cloud)? == before);
    let stays = cloud.add_internal(&red)?;
    own_identity(&stays)?;
    cloud.agent.kill()?;
    cloud.agent.clean_up()?;
    wait_device(&cloud, &red, false)?;
    run(cloud.chassis.vsctl().words(format!("del-port {}", stays.port.tap)))?;
    ensure!(interfaces(&cloud)? == before);
    Ok(())
}

/// Whom a device serves, the Southbound alone can say. One that answers late is waited for, and without one nobody is
/// mistaken: the device stays, and is silent.
#[test]
fn a_restart_without_the_southbound_keeps_the_device() -> Result<()> {
    let mut cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let (guest, tapped) = (cloud.add_internal(&network)?, cloud.add_guest(&network)?);
    cloud.agent.wait_served(&tapped, cloud.chassis.ifindex(&tapped)?)?;
    cloud.agent.wait_remembered(&tapped)?;
    own_identity(&guest)?;
    let before = interfaces(&cloud)?;
    cloud.chassis.kill_southbound()?;
    // One that was known stays so.
    cloud.agent.wait_pending("OVN_Southbound")?;
    own_identity(&guest)?;
    cloud.agent.stop()?;
    cloud.agent.resume()?;
    cloud.agent.wait_served(&tapped, cloud.chassis.ifindex(&tapped)?)?;
    own_identity(&tapped)?;
    ensure!(interfaces(&cloud)? == before);
    let link = cloud.chassis.host().ip(format!("link show dev {}", Lab::network_device(&network.id)))?;
    ensure!(!link.contains("UP"), "{link}");
    cloud.chassis.start_southbound()?;
    cloud.agent.wait_station(&guest)?;
    own_identity(&guest)?;
    ensure!(interfaces(&cloud)? == before);
    Ok(())
}

/// Accidents of a switch by an operator's hand, and the device afterwards without the agent's doing.
#[test]
fn whatever_is_done_to_the_switch_is_survived() -> Result<()> {
    let mut cloud = Cloud::with_network_devices()?;
    let fabric = Fabric::create(cloud.chassis.sandbox())?;
    fabric.connect(&cloud.chassis)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let machine = cloud.add_external(&fabric, &network)?;
    let device = Lab::network_device(&network.id);
    let asks_again = |cloud: &Cloud<Lab>, machine: &Guest, what: &str| -> Result<()> {
        until(&format!("the machine is answered: {what}"), SOON, || own_identity(machine))?;
        wait_device(cloud, &network, true)
    };
    asks_again(&cloud, &machine, "at first")?;
    let before = interfaces(&cloud)?;
    run(cloud.chassis.vsctl().words("emer-reset"))?;
    wait_device(&cloud, &network, true)?;
    ensure!(interfaces(&cloud)? == before);
    // That takes the flows along, with br-int's fail_mode, and OVN does not notice by itself.
    cloud.chassis.kill_controller()?;
    cloud.chassis.start_controller()?;
    asks_again(&cloud, &machine, "after emer-reset")?;

    run(cloud.chassis.vsctl().words(format!("del-port {device}")))?;
    asks_again(&cloud, &machine, "after the device was removed")?;
    cloud.chassis.host().ip(format!("link set {device} down"))?;
    asks_again(&cloud, &machine, "after the device was set down")?;
    run(cloud.chassis.host().command("tc")?.words(format!("qdisc del dev {device} clsact"))).ok();
    asks_again(&cloud, &machine, "after its qdisc was removed")?;

    cloud.chassis.host().ip(format!("link del {device}"))?;
    asks_again(&cloud, &machine, "after its link was deleted")?;
    run(cloud.chassis.vsctl().words("del-br br-int"))?;
    asks_again(&cloud, &machine, "after the bridge was deleted")?;

    cloud.chassis.restart_vswitchd()?;
    asks_again(&cloud, &machine, "after ovs-vswitchd was restarted")?;
    // The userspace datapath of Open vSwitch 3.1 stands still until the database is there again.
    cloud.chassis.kill_ovs_database()?;
    cloud.agent.wait_pending("Open_vSwitch")?;
    cloud.chassis.start_ovs_database()?;
    cloud.agent.wait_ready()?;
    asks_again(&cloud, &machine, "after the database was restarted")
}

/// A device of the operator's has the name: it is left alone, and the network has its device once that is gone.
#[test]
fn a_name_that_is_taken_is_not_taken_away() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let (device, host) = (Lab::network_device(&network.id), cloud.chassis.host());
    host.ip(format!("link add {device} type veth peer name theirs"))?;
    let before = host.ip(format!("-d link show dev {device}"))?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    let guest = cloud.chassis.add_internal(port)?;
    cloud.agent.wait_unserved(&guest.port.id, "of its network's device")?;
    cloud.agent.wait_logged(&["is not served", &guest.port.id, &device])?;
    ensure!(host.ip(format!("-d link show dev {device}"))? == before);
    ensure!(guest.connect_with(None, NO_ANSWER).is_err());
    host.ip(format!("link del {device}"))?;
    cloud.agent.wait_station(&guest)?;
    own_identity(&guest)?;

    // The same of Open vSwitch's.
    run(cloud
        .chassis
        .vsctl()
        .words(format!("del-port {device} -- add-port br-int {device}"))
        .words(format!("-- set Interface {device} type=internal external_ids:owner=operator")))?;
    let reason = format!("Open vSwitch has another interface {device}");
    cloud.agent.wait_unserved(&guest.port.id, &reason)?;
    let owner = run(cloud.chassis.vsctl().words(format!("get Interface {device} external_ids:owner")))?;
    ensure!(owner.trim() == "operator");
    run(cloud.chassis.vsctl().words(format!("del-port {device}")))?;
    cloud.agent.wait_station(&guest)?;
    until("the guest is answered", SOON, || own_identity(&guest))
}

/// Changes by Neutron and OVN of a port, its network and its chassis while a machine is behind the device.
#[test]
fn whatever_is_done_to_the_rows_is_followed() -> Result<()> {
    let mut cloud = Cloud::with_network_devices()?;
    let fabric = Fabric::create(cloud.chassis.sandbox())?;
    fabric.connect(&cloud.chassis)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let mut machine = cloud.add_external(&fabric, &network)?;
    let device = Lab::network_device(&network.id);
    let asks = |machine: &Guest, what: &str| -> Result<()> {
        until(&format!("the machine is answered: {what}"), SOON, || {
            machine.netns.ip("neigh flush dev eth0")?;
            own_identity(machine)
        })
    };
    asks(&machine, "at first")?;

    // Ironic's machine has its NIC replaced.
    let former = machine.connect()?;
    machine.port.mac = mac()?;
    cloud.chassis.set_mac(&machine.port, &machine.port.mac)?;
    cloud.agent.wait_station(&machine)?;
    let silent = machine.connect_with(None, NO_ANSWER).err();
    ensure!(silent.is_some(), "the MAC address before is answered");
    drop(former);
    machine.netns.ip(format!("link set eth0 address {}", machine.port.mac))?;
    asks(&machine, "with another MAC address")?;
    let ports = cloud.agent.ports()?;
    ensure!(ports.iter().filter(|status| status.port == machine.port.id).count() == 1, "{ports:?}");

    let metadata_port = cloud.chassis.replace_metadata_port(&network)?;
    until("the device is of the new metadata port", SOON, || {
        let interfaces = interfaces(&cloud)?;
        ensure!(
            interfaces.get(&device).context("no device")?.1["iface-id"] == metadata_port,
            "{interfaces:?}"
        );
        Ok(())
    })?;
    asks(&machine, "with another metadata port")?;

    let (former, name) = (cloud.chassis.chassis_name()?, uuid()?);
    // OVN does not bear it while ovn-controller runs: its encapsulation is another row's still.
    cloud.chassis.stop_controller()?;
    run(cloud.chassis.vsctl().words(format!("set Open_vSwitch . external_ids:system-id={name}")))?;
    cloud.chassis.start_controller()?;
    cloud.chassis.set_priority(&machine.port, &name, 150)?;
    cloud.chassis.exclude(&machine.port, &former)?;
    until("the port is bound to the chassis of that name", SOON, || {
        let row =
            run(cloud.chassis.sbctl().words(format!("--bare --columns=_uuid find Chassis name={name}")))?;
        ensure!(!row.trim().is_empty() && cloud.chassis.binding(&machine.port, "chassis")? == row.trim());
        Ok(())
    })?;
    cloud.agent.wait_station(&machine)?;
    asks(&machine, "on a chassis with another name")
}

#[test]
fn without_the_option_nothing_is_made() -> Result<()> {
    let mut cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let guest = cloud.add_internal(&network)?;
    wait_device(&cloud, &network, true)?;
    let more = vec![("metadata_ebpf", "network_devices = false".to_owned())];
    cloud.agent.configure(&cloud.chassis, &Options { more, ..Options::default() })?;
    cloud.agent.stop()?;
    cloud.agent.resume()?;
    cloud.agent.wait_unserved(&guest.port.id, "internal port of Open vSwitch")?;
    wait_device(&cloud, &network, false)
}

/// Another agent takes the device over with everything behind it, and the guest does not notice.
#[test]
fn another_agent_takes_over_while_a_guest_asks() -> Result<()> {
    let mut cloud = Cloud::with_network_devices()?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let guests = [cloud.add_internal(&network)?];
    let before = (interfaces(&cloud)?, cloud.agent.wait_station(&guests[0])?.index);
    let agent = &mut cloud.agent;
    let ((), answers) = meanwhile(&guests, || {
        for _ in 0..3 {
            let mut former = agent.replace()?;
            former.wait()?;
            agent.wait_ready()?;
        }
        Ok(())
    })?;
    println!("{answers:?}");
    let after = (interfaces(&cloud)?, cloud.agent.wait_station(&guests[0])?.index);
    ensure!(after == before, "{after:?}");
    Ok(())
}
