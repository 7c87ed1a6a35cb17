//! Debian with systemd and cloud-init, as a cloud's images have it, boots and becomes whom its instance is: on a tap, and on Open
//! vSwitch with DPDK.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    cloud::{Chassis as _, Cloud},
    machine::{Hardware, Machine, Nic, System},
    ovn::{Lab, Routing},
    port::Port,
    wait::until,
};

const BOOT: Duration = Duration::from_secs(600);
const USER_DATA: &str = "#!/bin/sh\necho \"$(hostname) has run it\" >/ran\n";

#[test]
#[ignore = "boots Debian for a minute or two: cargo xtask cloud-guest"]
fn debian_boots_on_a_tap() -> Result<()> {
    let cloud = Cloud::on(Lab::start_whole()?, &Options::default())?;
    boots(cloud, 2, |_, _| Ok(Nic::Tap))
}

#[test]
#[ignore = "boots Debian for a minute or two: cargo xtask cloud-guest"]
fn debian_boots_on_dpdk() -> Result<()> {
    let cloud = Cloud::on(Lab::start_with_dpdk()?, &Options::default())?;
    boots(cloud, 1, |cloud, port| {
        let socket = cloud.chassis.sandbox().path(&port.tap);
        cloud.chassis.plug_vhost_user(port, &socket)?;
        Ok(Nic::VhostUser(socket))
    })
}

fn boots(
    mut cloud: Cloud<Lab>,
    processors: u32,
    nic: impl FnOnce(&Cloud<Lab>, &Port) -> Result<Nic>,
) -> Result<()> {
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    cloud.nova.set_user_data(&port, USER_DATA);
    cloud.chassis.create_port(&port)?;
    let (sandbox, host) = (cloud.chassis.sandbox(), cloud.chassis.host());
    let hardware = Hardware { processors, nic: nic(&cloud, &port)?, system: System::Debian };
    let started = Instant::now();
    // The shell is there long before cloud-init asks.
    let mut machine = Machine::boot(sandbox, host, &port, &hardware)?;
    println!("it has a shell after {:?}", started.elapsed());
    if matches!(hardware.nic, Nic::Tap) {
        cloud.chassis.plug_port(&port)?;
        cloud.agent.wait_port_served(&port, host.ifindex(&port.tap)?)?;
    } else {
        cloud.agent.wait_station_of(&port)?;
    }
    until("cloud-init has come to its end", BOOT, || {
        machine.check_running()?;
        machine.told("cat /run/cloud-init/result.json")
    })?;
    println!("cloud-init has come to its end after {:?}", started.elapsed());
    let (_, listed) = cloud.agent.tells(&["show", "ports"])?;
    println!("{listed}");
    let status = machine
        .told("cloud-init status --long || cat /run/cloud-init/result.json /run/cloud-init/status.json")?;
    println!("{status}");
    ensure!(status.contains("status: done") && status.contains("DataSourceOpenStack"), "{status}");
    let instance = machine.told("cat /var/lib/cloud/data/instance-id")?;
    ensure!(instance.trim() == port.instance, "{instance}");
    let ran = machine.told("cat /ran")?;
    ensure!(ran.trim() == format!("{} has run it", port.hostname()), "{ran}");
    let addresses = machine.told("ip -br addr; ip route")?;
    println!("{addresses}");
    ensure!(addresses.contains(&port.address.to_string()), "{addresses}");
    let requests = cloud.nova.take_requests();
    println!("{} requests to Nova", requests.len());
    let first = requests.first().context("Nova was not asked")?;
    ensure!(first.header("X-Instance-ID") == [port.instance.as_str()], "{first:?}");
    cloud.quiet = true;
    Ok(())
}
