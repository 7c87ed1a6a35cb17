//! The rows of a chassis come to its agent without the Southbound going through its tables for each port.

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::{Agent, Options},
    check::own_identity,
    cloud::Cloud,
    guest::Guest,
    ovn::{ByHand, Named, Routing, Schema},
    port::Port,
};

const CHANGES: &str = "metadata_ovsdb_condition_changes_total{database=\"OVN_Southbound\"}";

/// The columns by which a row comes, where the server has them.
fn columns(schema: Schema) -> &'static [&'static str] {
    match schema {
        Schema::Installed => {
            &["chassis", "requested_chassis", "additional_chassis", "requested_additional_chassis"]
        }
        Schema::Ovn2003 => &["chassis"],
    }
}

fn changes(agent: &Agent) -> Result<f64> {
    agent.metric(CHANGES)
}

fn cloud(schema: Schema) -> Result<Cloud<ByHand>> {
    let cloud = Cloud::on(ByHand::start(schema)?, &Options::default())?;
    // Once the first one is served, the chassis' rows are asked for.
    let first = boot(&cloud, "first")?;
    cloud.chassis.write_port(&first.port, &[("chassis", Named::Own)])?;
    cloud.chassis.plug(&first)?;
    is_served(&cloud, &first)?;
    Ok(cloud)
}

fn boot(cloud: &Cloud<ByHand>, name: &str) -> Result<Guest> {
    let port = Port::new(&cloud.chassis.add_network(name)?)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.boot(port)
}

fn is_served(cloud: &Cloud<ByHand>, guest: &Guest) -> Result<()> {
    cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
    own_identity(guest)
}

/// By each column that names the chassis, in the tables of this day and of OVN 20.03.
#[test]
fn rows_come_by_their_chassis() -> Result<()> {
    for schema in [Schema::Installed, Schema::Ovn2003] {
        let cloud = cloud(schema)?;
        for column in columns(schema) {
            let before = changes(&cloud.agent)?;
            let guest = boot(&cloud, column)?;
            cloud.chassis.write_port(&guest.port, &[(column, Named::Own)])?;
            cloud.chassis.plug(&guest)?;
            is_served(&cloud, &guest)?;
            cloud.chassis.unplug(&guest)?;
            cloud.agent.wait_gone(&guest.port.tap)?;
            // One that is on its way here may have subports, which name where it comes from.
            let expected = if *column == "requested_additional_chassis" { 1.0 } else { 0.0 };
            let changed = changes(&cloud.agent)? - before;
            ensure!(changed == expected, "{schema:?}, {column}: {changed} changes of conditions");
        }
    }
    Ok(())
}

/// One that Neutron has bound elsewhere or nowhere is asked for by its name, together with all others of which that is so.
#[test]
fn rows_that_name_another_chassis_come_by_name() -> Result<()> {
    for schema in [Schema::Installed, Schema::Ovn2003] {
        let cloud = cloud(schema)?;
        let before = changes(&cloud.agent)?;
        let (elsewhere, nowhere) = (boot(&cloud, "elsewhere")?, boot(&cloud, "nowhere")?);
        cloud.chassis.write_port(&elsewhere.port, &[("chassis", Named::Other)])?;
        cloud.chassis.write_port(&nowhere.port, &[])?;
        for guest in [&elsewhere, &nowhere] {
            cloud.chassis.plug(guest)?;
        }
        for guest in [&elsewhere, &nowhere] {
            is_served(&cloud, guest)?;
        }
        let made = changes(&cloud.agent)? - before;
        ensure!((1.0..=2.0).contains(&made), "{schema:?}: {made} changes of the conditions");
    }
    Ok(())
}

/// A machine that leaves is served until its tap goes, and one that comes from when its tap is there, whoever the port is
/// bound to.
#[test]
fn both_sides_of_a_migration_are_served() -> Result<()> {
    let cloud = cloud(Schema::Installed)?;
    let [leaving, coming] = [boot(&cloud, "leaving")?, boot(&cloud, "coming")?];
    let (own, other) = (Named::Own, Named::Other);
    cloud.chassis.write_port(&leaving.port, &[("chassis", own), ("requested_chassis", own)])?;
    cloud.chassis.plug(&leaving)?;
    cloud.chassis.write_port(&coming.port, &[("chassis", other), ("requested_chassis", other)])?;
    is_served(&cloud, &leaving)?;
    // Neutron names both, and ovn-controller of the other side claims it as an additional one.
    let both = |first, second| {
        [
            ("requested_chassis", Some(first)),
            ("requested_additional_chassis", Some(second)),
            ("additional_chassis", Some(second)),
        ]
    };
    cloud.chassis.move_port(&leaving.port, &both(own, other))?;
    cloud.chassis.move_port(&coming.port, &both(other, own))?;
    cloud.chassis.plug(&coming)?;
    is_served(&cloud, &coming)?;
    is_served(&cloud, &leaving)?;
    // It has moved.
    let only = |chassis| {
        [
            ("chassis", Some(chassis)),
            ("requested_chassis", Some(chassis)),
            ("requested_additional_chassis", None),
            ("additional_chassis", None),
        ]
    };
    cloud.chassis.move_port(&leaving.port, &only(other))?;
    cloud.chassis.move_port(&coming.port, &only(own))?;
    own_identity(&leaving)?;
    own_identity(&coming)?;
    cloud.chassis.unplug(&leaving)?;
    cloud.agent.wait_gone(&leaving.port.tap)?;
    is_served(&cloud, &coming)
}

/// On a real OVN, whose ovn-controller claims ports a while after they are plugged.
#[test]
fn plugging_changes_no_condition() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let first = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&first, cloud.chassis.ifindex(&first)?)?;
    let before = changes(&cloud.agent)?;
    let received = "metadata_ovsdb_messages_total{database=\"OVN_Southbound\",direction=\"received\"}";
    let messages = cloud.agent.metric(received)?;
    for _ in 0..5 {
        let guest = cloud.add_guest(&network)?;
        cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
        own_identity(&guest)?;
        cloud.chassis.unplug(&guest)?;
        cloud.chassis.stop_tap(&guest)?;
        cloud.agent.wait_gone(&guest.port.tap)?;
    }
    ensure!(changes(&cloud.agent)? == before, "conditions changed");
    ensure!(cloud.agent.metric(received)? > messages, "nothing came");
    ensure!(cloud.agent.metric("metadata_ovsdb_connected{database=\"OVN_Southbound\"}")? == 1.0);
    ensure!(cloud.agent.metric("metadata_ovsdb_rows{database=\"OVN_Southbound\"}")? > 1.0);
    ensure!(cloud.agent.metric("metadata_ovsdb_connections_total{database=\"Open_vSwitch\"}")? == 1.0);

    // What travels can be looked at.
    let level = "/log?level=info,ovsdb_client::wire=trace";
    ensure!(cloud.agent.admin("PUT", level)?.status == 200);
    let guest = cloud.add_guest(&network)?;
    cloud.agent.wait_logged(&["ovsdb_client::wire", "received", "update3", &guest.port.id])?;
    Ok(())
}

/// Of a network that has a port without a tap here the metadata port is asked for, once, and nothing else of the region.
#[test]
fn a_metadata_port_is_one_change_for_each_network() -> Result<()> {
    let cloud = Cloud::with_network_devices()?;
    let networks = [(); 3].map(|()| cloud.chassis.add_network("red", Routing::Isolated));
    let [red, blue, green] = networks;
    let (red, blue, _green) = (red?, blue?, green?);
    let first = cloud.add_internal(&red)?;
    let before = changes(&cloud.agent)?;
    let second = cloud.add_internal(&red)?;
    ensure!(changes(&cloud.agent)? == before, "a second port of the network changed the conditions");
    let third = cloud.add_internal(&blue)?;
    ensure!(changes(&cloud.agent)? == before + 1.0);
    for guest in [&first, &second, &third] {
        own_identity(guest)?;
    }
    // Three ports and two metadata ports; the chassis' rows in two tables, and SB_Global.
    let rows = cloud.agent.metric("metadata_ovsdb_rows{database=\"OVN_Southbound\"}")?;
    ensure!(rows == 8.0, "{rows} rows are kept");
    Ok(())
}
