//! Ports without a tap: outside of the switch, or on a device that is not the host's. One device for each network serves
//! those of them that are this chassis' own, and nobody else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::{Options, PortStatus},
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    ovn::{Fabric, Lab, Routing},
    port::{Network, Port},
    wait::until,
};

const SOON: Duration = Duration::from_secs(30);

/// Waits until a port without a tap is served by its network's device.
fn wait_served(cloud: &Cloud<Lab>, guest: &Guest, network: &Network) -> Result<PortStatus> {
    let device = Lab::network_device(network);
    until(&format!("{} is served by {device}", guest.port.id), SOON, || {
        let ports = cloud.agent.ports()?;
        let found = ports.iter().find(|status| {
            status.port == guest.port.id
                && status.tap == device
                && status.state == "known"
                && status.reason.is_empty()
                && status.mac.as_ref() == Some(&guest.port.mac)
                && status.instance.as_ref() == Some(&guest.port.instance)
        });
        found.cloned().with_context(|| format!("/ports says {ports:?}"))
    })
}

fn cloud() -> Result<Cloud<Lab>> {
    Cloud::on(Lab::start_whole()?, &Options::default())
}

/// A machine on the physical network, for which the chassis is responsible.
fn add_external(cloud: &Cloud<Lab>, fabric: &Fabric, network: &Network) -> Result<Guest> {
    let port = Port::new(network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    cloud.chassis.make_external(&port, &[cloud.chassis.chassis_name()?])?;
    let machine = fabric.add_machine(cloud.chassis.sandbox(), port)?;
    wait_served(cloud, &machine, network)?;
    Ok(machine)
}

#[test]
fn a_machine_outside_of_the_switch_gets_its_own_identity() -> Result<()> {
    let cloud = cloud()?;
    let fabric = Fabric::create(cloud.chassis.sandbox())?;
    fabric.connect(&cloud.chassis)?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let machine = add_external(&cloud, &fabric, &network)?;
    machine.dhcp()?;
    own_identity(&machine)
}

#[test]
fn an_internal_port_gets_its_own_identity() -> Result<()> {
    let cloud = cloud()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    let guest = cloud.chassis.add_internal(port)?;
    wait_served(&cloud, &guest, &network)?;
    own_identity(&guest)?;
    ensure!(cloud.agent.counter("other_station")? == 0);
    Ok(())
}
