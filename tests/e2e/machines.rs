//! Real machines: QEMU's virtio NICs on taps of a real Open vSwitch, DHCP from OVN, and a client of the guest's own.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::was_signed_for,
    cloud::{Chassis as _, Cloud},
    command::run,
    machine::{Hardware, Machine, Nic, seconds},
    ovn::{HOSTNAME, Lab, Routing},
    port::Port,
    sandbox::Sandbox,
    two_chassis::{THERE, TwoChassis},
    wait::until,
};

const BODY: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// A client's repeated SYN comes after a second, and after two more; the machine is emulated.
const LONGEST: Duration = Duration::from_secs(8);

/// Prints the machine's own instance, as it is told.
const WHO: &str = "timeout 5 wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json 2>/dev/null | tr ',{' '\\n\\n' | \
    grep '\"uuid\"' | cut -d'\"' -f4";

#[test]
fn a_real_machine_boots_and_learns_who_it_is() -> Result<()> {
    let cloud = Cloud::on(Lab::start_whole()?, &Options::default())?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    let host = cloud.chassis.host();
    let mut machine = Machine::boot(cloud.chassis.sandbox(), host, &port, &Hardware::with_processors(2))?;
    cloud.chassis.plug_port(&port)?;
    cloud.agent.wait_port_served(&port, host.ifindex(&port.tap)?)?;

    // With two queues, as Nova makes them for machines with processors to use them.
    let queues = machine.told("echo /sys/class/net/eth0/queues/*")?;
    ensure!(queues.contains("rx-1") && queues.contains("tx-1"), "{queues:?}");
    machine.dhcp()?;
    let routes = machine.told("ip route")?;
    ensure!(routes.contains("169.254.169.254"), "the routes are of DHCP: {routes:?}");
    ensure!(machine.told(WHO)?.trim() == port.instance, "{:?}", machine.told(WHO));

    // Windows has no use for DHCP's routes: it takes the whole range to be on its link.
    machine.told("ip route del 169.254.169.254; ip route replace 169.254.0.0/16 dev eth0; ip route")?;
    ensure!(machine.told(WHO)?.trim() == port.instance, "on the link");
    machine.check_running()
}

/// A machine whose NIC no kernel knows, on a network that has its route from DHCP and with what is on its link.
#[test]
fn a_machine_on_dpdk_learns_who_it_is() -> Result<()> {
    let cloud = Cloud::on(Lab::start_with_dpdk()?, &Options::default())?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let port = Port::new(&network)?;
    // Nova's name for it.
    let port = Port { tap: port.tap.replacen("tap", "vhu", 1), ..port };
    let body: Vec<u8> = (0..BODY).map(|index| (index * 7 % 253) as u8).collect();
    cloud.nova.add_instance(&port);
    cloud.nova.set_user_data(&port, body.clone());
    cloud.chassis.create_port(&port)?;
    let sandbox = cloud.chassis.sandbox();
    let socket = sandbox.path(&port.tap);
    cloud.chassis.plug_vhost_user(&port, &socket)?;
    let hardware = Hardware { nic: Nic::VhostUser(socket), ..Hardware::with_processors(1) };
    let mut machine = Machine::boot(sandbox, cloud.chassis.host(), &port, &hardware)?;
    until("the switch says that there is a machine", SOON, || {
        let status = cloud.chassis.interface(&port, "status")?;
        ensure!(status.contains("status=connected"), "{status}");
        Ok(())
    })?;
    ensure!(cloud.chassis.host().ip(format!("link show dev {}", port.tap)).is_err(), "it has a device");
    cloud.agent.wait_station_of(&port)?;
    let (_, listed) = cloud.agent.tells(&["show", "ports"])?;
    let line = listed.lines().find(|line| line.contains(&port.id)).context("the port is not listed")?;
    println!("{line}");
    ensure!(line.contains(&port.instance), "{line}");

    machine.dhcp()?;
    for route in ["", "ip route del 169.254.169.254; ip route replace 169.254.0.0/16 dev eth0"] {
        machine.told(route)?;
        cloud.nova.take_requests();
        ensure!(machine.told(WHO)?.trim() == port.instance, "{route:?}");
        cloud.nova.take_requests().iter().try_for_each(|request| was_signed_for(&port, request))?;
        machine.told("wget -q -O /body http://169.254.169.254/latest/user-data")?;
        let summed = machine.told("md5sum </body")?;
        ensure!(summed.split_whitespace().next() == Some(&md5(sandbox, &body)?), "{route:?}: {summed}");
    }
    machine.check_running()
}

fn md5(sandbox: &Sandbox, body: &[u8]) -> Result<String> {
    let file = sandbox.path("body");
    fs::write(&file, body)?;
    let summed = run(Command::new("md5sum").arg(file))?;
    Ok(summed.split_whitespace().next().context("no sum")?.to_owned())
}

#[test]
fn a_real_machine_moves_between_chassis_while_it_asks() -> Result<()> {
    let site = TwoChassis::start(&Options::default())?;
    let TwoChassis { here, there, .. } = &site;
    let network = here.chassis.add_network("red", Routing::Routed)?;
    let port = site.add_port(&network)?;
    let (sandbox, host) = (here.chassis.sandbox(), here.chassis.host());
    let mut machine = Machine::boot(sandbox, host, &port, &Hardware::with_processors(1))?;
    let tap = &port.tap;
    here.chassis.plug_port(&port)?;
    here.agent.wait_port_served(&port, host.ifindex(tap)?)?;
    machine.dhcp()?;

    // Each line of the log is the machine's time and what it was told, which is nothing if it was not answered.
    machine.told(&format!(
        "(while :; do who=$({WHO}); echo \"$(cut -d' ' -f1 /proc/uptime) $who\"; done >/asked 2>/dev/null &)"
    ))?;
    // A connection that is kept, and the time of its end.
    machine.told(
        "mkfifo /kept; (nc 169.254.169.254 80 </kept >/answers; cut -d' ' -f1 /proc/uptime >/ended) &",
    )?;
    machine.told("exec 3>/kept")?;
    let request = "printf 'GET /openstack HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\n\\r\\n' >&3";
    machine.told(request)?;
    until("the kept connection is answered", SOON, || {
        ensure!(machine.told("cat /answers")?.contains("200 OK"));
        Ok(())
    })?;

    let before = machine.uptime()?;
    ensure!(machine.told("ls /ended 2>/dev/null || true")?.is_empty(), "it lasts");

    // Nova has the destination plug the port, and Neutron names both.
    here.chassis.request_chassis(&port, &format!("{HOSTNAME},{THERE} activation-strategy=rarp"))?;
    let plug = || -> Result<()> {
        there.chassis.plug(&port)?;
        there.agent.wait_port_served(&port, there.chassis.host().ifindex(tap)?)?;
        ensure!(there.nova.take_requests().is_empty(), "it has not moved yet");
        Ok(())
    };
    let mut machine = machine.migrate(sandbox, there.chassis.host(), &port, plug)?;
    let moved = machine.uptime()?;
    until("it is answered where it is now", SOON, || {
        ensure!(!there.nova.take_requests().is_empty());
        Ok(())
    })?;
    machine.told(request)?;
    let ended = until("the kept connection ends", SOON, || seconds(&machine.told("cat /ended")?))?;
    ensure!(
        ended > before && ended < moved + LONGEST,
        "a kept connection ends at {ended:?}, the machine moved before {moved:?}"
    );

    // The other chassis has it alone.
    here.chassis.request_chassis(&port, THERE)?;
    here.chassis.unplug_port(&port)?;
    host.ip(format!("link del {tap}"))?;
    here.agent.wait_gone(tap)?;
    there.agent.wait_port_served(&port, there.chassis.host().ifindex(tap)?)?;
    let settled = machine.uptime()?;
    until("it is answered for a while", SOON, || {
        let last = machine.told("tail -n 1 /asked")?;
        let time = last.split_whitespace().next().context("nothing was asked")?;
        ensure!(seconds(time)? > settled + Duration::from_secs(5));
        Ok(())
    })?;

    let asked = machine.told("cat /asked")?;
    let mut answers = Vec::new();
    for line in asked.lines() {
        let mut words = line.split_whitespace();
        let time = seconds(words.next().context("an empty line")?)?;
        match words.next() {
            Some(instance) => {
                ensure!(instance == port.instance, "it was told that it is {instance}");
                answers.push(time);
            }
            // A request that was under way, which the client repeats.
            None => println!("no answer at {time:?}"),
        }
    }
    let longest = answers.windows(2).map(|two| two[1] - two[0]).max().context("no answers")?;
    println!(
        "{} answers, the longest time without one {longest:?}; a kept connection ended {ended:?}",
        answers.len()
    );
    ensure!(longest < LONGEST, "{asked}");
    machine.check_running()
}
