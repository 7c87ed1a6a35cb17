//! A machine that moves between two chassis with its memory, as Nova and OVN do it: both have its tap for a while, and its
//! connections go on to exist for it alone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::{Agent, Options},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::Guest,
    netns::Namespace,
    nova::Nova,
    ovn::{Fabric, Lab, Routing},
    port::Port,
    traffic::{Asked, while_asking},
    wait::until,
};

const SOON: Duration = Duration::from_secs(60);
const MTU: u32 = 1442;
/// Host names of the chassis.
const FROM: &str = "lab-host";
const TO: &str = "host-b";
/// Sooner than a client's patience ends, and later than any machine is busy.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Makes the machine's tap on a host, which leads to that device of the machine's.
fn make_tap(host: &Namespace, guest: &Guest, device: &str) -> Result<u32> {
    let (tap, netns) = (&guest.port.tap, guest.netns.name());
    host.ip(format!("link add {tap} mtu {MTU} type veth peer name {device} netns {netns}"))?;
    host.ip(format!("link set {tap} address {} up", guest.port.tap_mac()))?;
    guest.netns.ip(format!("link set {device} mtu {MTU} up"))?;
    host.ifindex(tap)
}

#[test]
fn a_machine_moves_between_chassis_while_it_asks() -> Result<()> {
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
    let guest = Guest::create(cloud.chassis.sandbox(), port)?;
    // Its memory is the namespace; what moves is where its NIC leads to.
    guest.netns.ip("link add eth0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
    guest.netns.ip(format!("link set eth0 address {} mtu {MTU} up", guest.port.mac))?;
    let index = make_tap(cloud.chassis.host(), &guest, "from")?;
    guest.netns.ip("link set from master eth0")?;
    cloud.chassis.plug(&guest)?;
    cloud.chassis.wait_bound(&guest)?;
    guest.dhcp()?;
    cloud.agent.wait_served(&guest, index)?;
    own_identity(&guest)?;
    let mut kept = guest.connect()?;
    is_identity_of(&guest.port, &kept.request("GET", META_DATA, &[], b"")?)?;

    let Port { id, tap, mac, instance, .. } = &guest.port;
    let moves = |asked: &Asked| -> Result<()> {
        // Nova has the destination plug the port, and Neutron names both.
        let options = format!("requested-chassis={FROM},{TO} activation-strategy=rarp");
        run(cloud.chassis.nbctl().words(format!("--wait=sb lsp-set-options {id} {options}")))?;
        let index = make_tap(other.host(), &guest, "to")?;
        run(other.vsctl().words(format!("add-port br-int {tap} -- set Interface {tap}")).arg(format!(
            "external_ids={{iface-id=\"{id}\",attached-mac=\"{mac}\",vm-uuid=\"{instance}\"}}"
        )))?;
        until("the other chassis has the port as well", SOON, || {
            let find = format!("--bare --columns=additional_chassis find Port_Binding logical_port={id}");
            ensure!(!run(cloud.chassis.sbctl().words(find))?.trim().is_empty());
            Ok(())
        })?;
        other_agent.wait_served(&guest, index)?;
        asked.wait_answers()?;
        ensure!(other_nova.take_requests().is_empty(), "it has not moved yet");

        // From now on it runs there.
        guest.netns.ip("link set to master eth0")?;
        guest.netns.ip("link set from nomaster")?;
        guest.announce_itself()?;
        let started = Instant::now();
        let answer = kept.request("GET", META_DATA, &[], b"");
        let took = started.elapsed();
        ensure!(answer.is_err() && took < AT_ONCE, "a kept connection: {answer:?} after {took:?}");
        println!("a kept connection ends after {took:?}");
        cloud.nova.take_requests();
        asked.wait_answers()?;
        ensure!(!other_nova.take_requests().is_empty() && cloud.nova.take_requests().is_empty());

        run(cloud.chassis.nbctl().words(format!("--wait=sb lsp-set-options {id} requested-chassis={TO}")))?;
        cloud.chassis.unplug(&guest)?;
        cloud.chassis.host().ip(format!("link del {tap}"))?;
        cloud.agent.wait_gone(tap)?;
        until("the port is bound there alone", SOON, || {
            let find = format!("--bare --columns=additional_chassis find Port_Binding logical_port={id}");
            ensure!(run(cloud.chassis.sbctl().words(find))?.trim().is_empty());
            Ok(())
        })?;
        other_agent.wait_served(&guest, index)?;
        Ok(())
    };
    let asked = while_asking(&guest, moves)?;
    println!("{} answers, the longest time without one {:?}", asked.count(), asked.gap());
    own_identity(&guest)
}
