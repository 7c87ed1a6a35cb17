//! Real machines: QEMU's virtio NICs on taps of a real Open vSwitch, DHCP from OVN, and a client of the guest's own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::{Agent, Options},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    machine::{Machine, seconds},
    nova::Nova,
    ovn::{Fabric, Lab, Routing},
    port::Port,
    wait::until,
};

const SOON: Duration = Duration::from_secs(60);
/// Host names of the chassis.
const FROM: &str = "lab-host";
const TO: &str = "host-b";
/// A client's repeated SYN comes after a second, and after two more; the machine is emulated.
const LONGEST: Duration = Duration::from_secs(8);

/// Prints the machine's own instance, as it is told.
const WHO: &str = "timeout 5 wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json 2>/dev/null | tr ',{' '\\n\\n' | \
    grep '\"uuid\"' | cut -d'\"' -f4";

fn external_ids(Port { id, mac, instance, .. }: &Port) -> String {
    format!("external_ids={{iface-id=\"{id}\",attached-mac=\"{mac}\",vm-uuid=\"{instance}\"}}")
}

#[test]
fn a_real_machine_boots_and_learns_who_it_is() -> Result<()> {
    let cloud = Cloud::on(Lab::start_whole()?, &Options::default())?;
    let network = cloud.chassis.add_network("red", Routing::Isolated)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    let host = cloud.chassis.host();
    let mut machine = Machine::boot(cloud.chassis.sandbox(), host, &port, 2)?;
    let tap = &port.tap;
    run(cloud
        .chassis
        .vsctl()
        .words(format!("add-port br-int {tap} -- set Interface {tap}"))
        .arg(external_ids(&port)))?;
    cloud.agent.wait_port_served(&port, host.ifindex(tap)?)?;

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

#[test]
fn a_real_machine_moves_between_chassis_while_it_asks() -> Result<()> {
    let cloud = Cloud::on(Lab::start_whole()?, &Options::default())?;
    let fabric = Fabric::create(cloud.chassis.sandbox())?;
    fabric.connect(&cloud.chassis)?;
    let other = cloud.chassis.add_chassis(TO)?;
    fabric.connect(&other)?;
    let other_nova = Nova::start(other.host())?;
    let other_agent = Agent::start(&other, &Options::default())?;

    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    other_nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    let (sandbox, host) = (cloud.chassis.sandbox(), cloud.chassis.host());
    let mut machine = Machine::boot(sandbox, host, &port, 1)?;
    let Port { id, tap, .. } = &port;
    let add = format!("add-port br-int {tap} -- set Interface {tap}");
    run(cloud.chassis.vsctl().words(&add).arg(external_ids(&port)))?;
    cloud.agent.wait_port_served(&port, host.ifindex(tap)?)?;
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
    let options = format!("requested-chassis={FROM},{TO} activation-strategy=rarp");
    run(cloud.chassis.nbctl().words(format!("--wait=sb lsp-set-options {id} {options}")))?;
    let plug = || -> Result<()> {
        run(other.vsctl().words(&add).arg(external_ids(&port)))?;
        other_agent.wait_port_served(&port, other.host().ifindex(tap)?)?;
        ensure!(other_nova.take_requests().is_empty(), "it has not moved yet");
        Ok(())
    };
    let mut machine = machine.migrate(sandbox, other.host(), &port, plug)?;
    let moved = machine.uptime()?;
    until("it is answered where it is now", SOON, || {
        ensure!(!other_nova.take_requests().is_empty());
        Ok(())
    })?;
    machine.told(request)?;
    let ended = until("the kept connection ends", SOON, || seconds(&machine.told("cat /ended")?))?;
    ensure!(
        ended > before && ended < moved + LONGEST,
        "a kept connection ends at {ended:?}, the machine moved before {moved:?}"
    );

    // The other chassis has it alone.
    run(cloud.chassis.nbctl().words(format!("--wait=sb lsp-set-options {id} requested-chassis={TO}")))?;
    run(cloud.chassis.vsctl().words(format!("del-port br-int {tap}")))?;
    host.ip(format!("link del {tap}"))?;
    cloud.agent.wait_gone(tap)?;
    other_agent.wait_port_served(&port, other.host().ifindex(tap)?)?;
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
