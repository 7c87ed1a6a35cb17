//! External ports on several chassis, of which OVN makes one responsible: by the chassis' order, and by whether the others
//! hear of each other over their tunnels (BFD). A machine asks meanwhile.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_tests::{
    agent::{Agent, Options},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    http::Error,
    nova::Nova,
    ovn::{Fabric, Lab, Neighbour},
    port::Port,
    traffic::{Asked, while_asking},
    wait::until,
};

const SOON: Duration = Duration::from_secs(60);
/// Longer than a row is without a chassis while it moves.
const CLAIMING: Duration = Duration::from_secs(2);
const NAMES: [&str; 2] = ["gateway-b", "gateway-c"];

/// A chassis with its agent and its Nova.
struct Gateway {
    // Dropped in this order.
    agent: Agent,
    nova: Nova,
    chassis: Neighbour,
    name: String,
}

/// The lab's own chassis and others, and a machine for which they are responsible.
struct Site {
    machine: Guest,
    others: Vec<Gateway>,
    cloud: Cloud<Lab>,
    _fabric: Fabric,
}

fn site(others: &[&str]) -> Result<Site> {
    let cloud = Cloud::with_network_devices()?;
    let fabric = Fabric::create(cloud.chassis.sandbox())?;
    fabric.connect(&cloud.chassis)?;
    let gateway = |hostname: &&str| -> Result<Gateway> {
        let chassis = cloud.chassis.add_chassis(hostname)?;
        fabric.connect(&chassis)?;
        let nova = Nova::start(chassis.host())?;
        let agent = Agent::start(&chassis, &Options::default())?;
        let name = chassis.chassis_name()?;
        Ok(Gateway { agent, nova, chassis, name })
    };
    let others = others.iter().map(gateway).collect::<Result<Vec<_>>>()?;
    let network = cloud.chassis.add_provider_network("physical")?;
    let port = Port::new(&network)?;
    let name = cloud.chassis.chassis_name()?;
    cloud.chassis.create_port(&port)?;
    for nova in others.iter().map(|gateway| &gateway.nova).chain([&cloud.nova]) {
        nova.add_instance(&port);
    }
    // The others come later: a group of one has nobody to hear of.
    cloud.chassis.make_external(&port, &[name])?;
    let machine = fabric.add_machine(cloud.chassis.sandbox(), port)?;
    cloud.agent.wait_station(&machine)?;
    machine.dhcp()?;
    own_identity(&machine)?;
    Ok(Site { machine, others, cloud, _fabric: fabric })
}

/// Has OVN choose again if nobody is responsible for a port: a chassis that is no longer may take the row back from one
/// that is already (OVN 23.03), and does not notice.
fn keep_claimed(lab: &Lab, port: &Port, by: &str, priority: u32) -> Result<()> {
    let is_claimed = || -> Result<()> {
        ensure!(!lab.binding(port, "chassis")?.is_empty());
        Ok(())
    };
    if until("a chassis has the port", CLAIMING, is_claimed).is_err() {
        println!("nobody has claimed the port: choosing again");
        lab.set_priority(port, by, 50)?;
        lab.set_priority(port, by, priority)?;
    }
    Ok(())
}

/// An operator has another chassis come first, and takes that out again.
#[test]
fn an_external_port_is_moved_while_its_machine_asks() -> Result<()> {
    let site = site(&NAMES[..1])?;
    let (machine, other, lab) = (&site.machine, &site.others[0], &site.cloud.chassis);
    other.agent.wait_unlisted(&machine.port)?;
    let mut kept = machine.connect()?;
    is_identity_of(&machine.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    let moves = |_: &Asked| -> Result<()> {
        let row = site.cloud.chassis.binding(&machine.port, "chassis")?;
        site.cloud.chassis.set_priority(&machine.port, &other.name, 200)?;
        let moved = thread::scope(|scope| -> Result<Duration> {
            let serves = scope.spawn(|| -> Result<Instant> {
                until("the other one serves", SOON, || {
                    let ports = other.agent.ports()?;
                    if ports.iter().any(|status| status.port == machine.port.id && status.state == "known") {
                        return Ok(Instant::now());
                    }
                    keep_claimed(lab, &machine.port, &other.name, 200)?;
                    bail!("{ports:?}")
                })
            });
            until("the row names the other chassis", SOON, || {
                let now = site.cloud.chassis.binding(&machine.port, "chassis")?;
                ensure!(now != row && !now.is_empty());
                Ok(())
            })?;
            let named = Instant::now();
            let served = serves.join().ok().context("a thread panicked")??;
            Ok(served.saturating_duration_since(named))
        })?;
        println!("served {moved:?} after the row named the chassis, as far as looking again and again tells");
        site.cloud.agent.wait_unlisted(&machine.port)?;
        until("the other one answers", SOON, || {
            keep_claimed(lab, &machine.port, &other.name, 200)?;
            own_identity(machine)?;
            ensure!(!other.nova.take_requests().is_empty());
            Ok(())
        })?;
        // What was kept is reset at once: nobody knows that connection here.
        let answer = kept.request("GET", META_DATA, &[], b"").err();
        let is_reset = answer.as_ref().is_some_and(|error| !matches!(error, Error::Timeout));
        ensure!(is_reset, "{answer:?}");
        site.cloud.nova.take_requests();
        own_identity(machine)?;
        ensure!(site.cloud.nova.take_requests().is_empty(), "the former chassis has answered");
        // And back: the other one is none of them any more.
        site.cloud.chassis.exclude(&machine.port, &other.name)?;
        other.agent.wait_unlisted(&machine.port)?;
        let name = site.cloud.chassis.chassis_name()?;
        until("this one serves again", SOON, || {
            keep_claimed(lab, &machine.port, &name, 100)?;
            own_identity(machine)
        })
    };
    let asked = while_asking(machine, moves)?;
    println!("{} answers, the longest time without one {:?}", asked.count(), asked.gap());
    site.cloud.agent.wait_station(machine)?;
    own_identity(machine)
}

/// The chassis that is responsible dies, and the next of three takes the machine over.
#[test]
fn another_chassis_serves_when_one_dies() -> Result<()> {
    let mut site = site(&NAMES)?;
    // Two of them have to hear each other: one that hears nobody takes itself for the one that is cut off.
    for (number, priority) in [(1, 150), (0, 200)] {
        let name = site.others[number].name.clone();
        site.cloud.chassis.set_priority(&site.machine.port, &name, priority)?;
    }
    until("the first one answers", SOON, || {
        keep_claimed(&site.cloud.chassis, &site.machine.port, &site.others[0].name, 200)?;
        own_identity(&site.machine)?;
        ensure!(!site.others[0].nova.take_requests().is_empty());
        Ok(())
    })?;
    site.cloud.agent.wait_unlisted(&site.machine.port)?;
    let Site { machine, others, cloud, .. } = &mut site;
    let [dies, heir] = others.as_mut_slice() else { panic!("there are two") };
    heir.nova.take_requests();
    let started = Instant::now();
    let asked = while_asking(machine, |_| {
        dies.chassis.die()?;
        heir.agent.wait_station(machine)?;
        let after = started.elapsed();
        until("the heir answers", SOON, || {
            keep_claimed(&cloud.chassis, &machine.port, &heir.name, 150)?;
            own_identity(machine)?;
            ensure!(!heir.nova.take_requests().is_empty());
            Ok(())
        })
        .with_context(|| {
            let row = cloud.chassis.binding(&machine.port, "chassis");
            format!(
                "{} has it ({row:?}), {:?}\n{}",
                heir.name,
                heir.agent.ports(),
                heir.chassis.sandbox().log_tails()
            )
        })?;
        println!("responsible after {after:?}, and answers after {:?}", started.elapsed());
        Ok(())
    })?;
    println!("{} answers, the longest time without one {:?}", asked.count(), asked.gap());
    Ok(())
}

/// ovn-controller takes the chassis out of the Southbound when it is stopped, and makes it anew when it is started.
#[test]
fn a_chassis_that_is_made_anew_loses_nothing() -> Result<()> {
    let mut site = site(&[])?;
    let before = site.cloud.agent.wait_station(&site.machine)?;
    let mut kept = site.machine.connect()?;
    is_identity_of(&site.machine.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    // Who looks for a machine of Ironic's knows its MAC address.
    let Port { id, mac, .. } = &site.machine.port;
    let (status, explained) = site.cloud.agent.tells(&["explain", &mac.to_uppercase()])?;
    ensure!(status == 0 && explained.contains(&format!("port {id} on mdn")), "{status}: {explained}");
    let name = site.cloud.chassis.chassis_name()?;
    let row = site.cloud.chassis.chassis_private(&name)?.uuid;
    site.cloud.chassis.stop_controller()?;
    site.cloud.chassis.start_controller()?;
    until("the chassis has another row", SOON, || {
        ensure!(site.cloud.chassis.chassis_private(&name)?.uuid != row);
        Ok(())
    })?;
    until("the machine is answered", SOON, || own_identity(&site.machine))?;
    let after = site.cloud.agent.wait_station(&site.machine)?;
    ensure!(
        (after.index, after.generation, after.ifindex) == (before.index, before.generation, before.ifindex)
    );
    is_identity_of(&site.machine.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    Ok(())
}
