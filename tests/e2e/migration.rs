//! A machine that moves between two chassis with its memory, as Nova and OVN do it: both have its tap for a while, and its
//! connections go on to exist for it alone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of, own_identity},
    cloud::Chassis as _,
    command::{Words as _, run},
    guest::{Generation, Guest},
    ovn::{Datapath, HOSTNAME, Lab, MTU, Routing},
    traffic::{Asked, while_asking},
    two_chassis::{THERE, TwoChassis},
    wait::until,
};

const BODY: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// Sooner than a client's patience ends, and later than any machine is busy.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn a_machine_moves_between_chassis_while_it_asks() -> Result<()> {
    moves(&TwoChassis::start(&Options::default())?)
}

#[test]
#[ignore = "for a kernel with Open vSwitch's datapath: cargo xtask vm-test"]
fn a_machine_moves_over_the_kernels_datapath() -> Result<()> {
    moves(&TwoChassis::start_from(Lab::start_on(Datapath::Kernel)?, &Options::default())?)
}

fn moves(site: &TwoChassis) -> Result<()> {
    let TwoChassis { here, there, .. } = &site;
    let network = here.chassis.add_network("red", Routing::Routed)?;
    let port = site.add_port(&network)?;
    let guest = Guest::create(here.chassis.sandbox(), port)?;
    // Its memory is the namespace; what moves is where its NIC leads to.
    guest.netns.ip("link add eth0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
    guest.netns.ip(format!("link set eth0 address {} mtu {MTU} up", guest.port.mac))?;
    let index = guest.insert_device(here.chassis.host(), "from", MTU)?;
    guest.netns.ip("link set from master eth0")?;
    here.chassis.plug(&guest)?;
    here.chassis.wait_bound(&guest)?;
    guest.dhcp()?;
    here.agent.wait_served(&guest, index)?;
    own_identity(&guest)?;
    let mut kept = guest.connect()?;
    is_identity_of(&guest.port, &kept.request("GET", META_DATA, &[], b"")?)?;

    let tap = &guest.port.tap;
    let moves = |asked: &Asked| -> Result<()> {
        // Nova has the destination plug the port, and Neutron names both.
        here.chassis.request_chassis(&guest.port, &format!("{HOSTNAME},{THERE} activation-strategy=rarp"))?;
        let index = guest.insert_device(there.chassis.host(), "to", MTU)?;
        there.chassis.plug(&guest.port)?;
        until("the other chassis has the port as well", SOON, || {
            ensure!(!here.chassis.binding(&guest.port, "additional_chassis")?.is_empty());
            Ok(())
        })?;
        there.agent.wait_served(&guest, index)?;
        asked.wait_answers()?;
        ensure!(there.nova.take_requests().is_empty(), "it has not moved yet");

        // From now on it runs there.
        guest.netns.ip("link set to master eth0")?;
        guest.netns.ip("link set from nomaster")?;
        guest.announce_itself()?;
        let started = Instant::now();
        let answer = kept.request("GET", META_DATA, &[], b"");
        let took = started.elapsed();
        ensure!(answer.is_err() && took < AT_ONCE, "a kept connection: {answer:?} after {took:?}");
        println!("a kept connection ends after {took:?}");
        here.nova.take_requests();
        asked.wait_answers()?;
        ensure!(!there.nova.take_requests().is_empty() && here.nova.take_requests().is_empty());

        here.chassis.request_chassis(&guest.port, THERE)?;
        here.chassis.unplug(&guest)?;
        here.chassis.host().ip(format!("link del {tap}"))?;
        here.agent.wait_gone(tap)?;
        until("the port is bound there alone", SOON, || {
            ensure!(here.chassis.binding(&guest.port, "additional_chassis")?.is_empty());
            Ok(())
        })?;
        there.agent.wait_served(&guest, index)?;
        Ok(())
    };
    let asked = while_asking(&guest, moves)?;
    println!("{} answers, the longest time without one {:?}", asked.count(), asked.gap());
    own_identity(&guest)?;
    // All of a large answer comes to where it is now, however the guest's kernel finishes its segments.
    let body: Vec<u8> = (0..BODY).map(|index| (index * 7 % 253) as u8).collect();
    there.nova.set_user_data(&guest.port, body.clone());
    guest.enable_ipv6(Generation::Random)?;
    for offloads in ["on", "off"] {
        run(guest.netns.command("ethtool")?.words(format!("-K eth0 tx {offloads}")))?;
        let mut connections = [guest.connect()?, guest.connect_v6()?];
        for connection in &mut connections {
            ensure!(
                connection.request("GET", "/latest/user-data", &[], b"")?.body == body,
                "with offloads {offloads}: the body changed"
            );
        }
        assert_eq!(guest.netns.tcp_statistic("InCsumErrors")?, 0);
    }
    Ok(())
}
