//! Trunks of running machines, as Neutron changes them: ports that are there go into a trunk and out of it, between trunks, and
//! while the machine moves to another chassis.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of, was_signed_for},
    cloud::{Chassis as _, Cloud},
    guest::{Guest, METADATA},
    http::Error,
    nova::Nova,
    ovn::{HOSTNAME, Lab, MTU, Routing},
    port::{Network, Port},
    traffic::while_asking,
    trunk::{Trunk, UPLINK, Uplink},
    two_chassis::{THERE, TwoChassis},
    wait::until,
};

const SOON: Duration = Duration::from_secs(30);
/// Long enough for a SYN and its first retransmission.
const NO_ANSWER: Duration = Duration::from_millis(1500);
/// Sooner than a client's patience ends, and later than any machine is busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// The machine's own interfaces: they are there whether Neutron has a port for them or not.
const VLANS: [(u16, Ipv4Addr); 2] =
    [(101, Ipv4Addr::new(192, 168, 1, 20)), (102, Ipv4Addr::new(192, 168, 1, 21))];

/// Guests that ask without a pause would meet the limits of their tap.
fn without_limits() -> Options {
    Options { more: vec![("metadata_ebpf", "connection_rate = 0".to_owned())], ..Options::default() }
}

/// A trunk of a new machine with both VLANs' ports, each in a network of its own.
fn add_trunk(cloud: &Cloud<Lab>) -> Result<Trunk> {
    let network = |name| -> Result<Network> { cloud.chassis.add_network(name, Routing::Routed) };
    let parent = Port::new(&network("parent")?)?;
    cloud.nova.add_instance(&parent);
    let subport = |(vlan, address)| -> Result<(u16, Port)> {
        Ok((vlan, Port { address, ..Port::subport(&network("subport")?, &parent)? }))
    };
    let subports = VLANS.into_iter().map(subport).collect::<Result<_>>()?;
    let trunk = cloud.chassis.add_trunk(Uplink::Veth, parent, subports)?;
    for guest in trunk.guests() {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        // For what OVN answers no ARP any more: the next hop is whatever is on the link.
        guest.netns.ip(format!("route replace {} dev eth0", METADATA.ip()))?;
    }
    Ok(trunk)
}

/// The port as it is in another machine's trunk.
fn behind(parent: &Port, port: &Port) -> Port {
    let Port { tap, instance, project, .. } = parent.clone();
    Port { tap, instance, project, ..port.clone() }
}

/// Requests on a VLAN are that port's, and Nova hears its address.
fn asks_as(port: &Port, guest: &Guest, nova: &Nova) -> Result<()> {
    nova.take_requests();
    is_identity_of(port, &guest.get(META_DATA)?)?;
    let mut requests = nova.take_requests();
    requests.retain(|request| request.header("X-Forwarded-For") == [port.address.to_string()]);
    ensure!(requests.len() == 1, "{requests:?}");
    was_signed_for(port, &requests[0])
}

/// Nothing of the VLAN is ours.
fn is_nobody(guest: &Guest) -> Result<()> {
    let answer = guest.connect_with(None, NO_ANSWER).err();
    ensure!(matches!(answer, Some(Error::Timeout | Error::Unreachable)), "{answer:?}");
    Ok(())
}

/// Ports stay in their networks all the while, and are only given another parent or none.
#[test]
fn ports_go_from_trunk_to_trunk_while_machines_run() -> Result<()> {
    let cloud = Cloud::on(Lab::start()?, &without_limits())?;
    let (lab, nova) = (&cloud.chassis, &cloud.nova);
    let [red, blue] = [add_trunk(&cloud)?, add_trunk(&cloud)?];
    let ifindex = |trunk: &Trunk| lab.ifindex(&trunk.parent);
    let (vlan, leaves) = &red.subports[0];
    let (_, comes) = &blue.subports[0];

    let asked = while_asking(&red.parent, |_| {
        let mut kept = leaves.connect()?;
        is_identity_of(&leaves.port, &kept.request("GET", META_DATA, &[], b"")?)?;
        lab.remove_subport(&leaves.port)?;
        cloud.agent.wait_unlisted(&leaves.port)?;
        is_nobody(leaves)?;
        kept.stream().set_read_timeout(Some(NO_ANSWER))?;
        let old = kept.request("GET", META_DATA, &[], b"");
        ensure!(old.is_err(), "a connection of a port that has left: {old:?}");

        // Into the other machine, on the VLAN of a port that has left that.
        lab.remove_subport(&comes.port)?;
        let moved = behind(&blue.parent.port, &leaves.port);
        lab.add_subport(&moved, &blue.parent.port, *vlan)?;
        cloud.agent.wait_port_served(&moved, ifindex(&blue)?)?;
        cloud.agent.wait_unlisted(&comes.port)?;
        asks_as(&moved, comes, nova)?;
        is_nobody(leaves)?;

        // And back, on another VLAN than it had, of which the former port leaves in the same moment.
        lab.remove_subport(&moved)?;
        let (other_vlan, other) = &red.subports[1];
        lab.remove_subport(&other.port)?;
        lab.add_subport(&leaves.port, &red.parent.port, *other_vlan)?;
        cloud.agent.wait_port_served(&leaves.port, ifindex(&red)?)?;
        asks_as(&leaves.port, other, nova)?;
        is_nobody(comes)?;
        is_nobody(leaves)
    })?;
    ensure!(asked.gap() < PATIENCE, "{:?}", asked.gap());
    println!(
        "the parent meanwhile: {} answers, the longest time without one {:?}",
        asked.count(),
        asked.gap()
    );
    Ok(())
}

/// Neutron may know no host of a subport, or the one on which it was added.
#[test]
fn a_trunk_moves_between_chassis_whose_subports_name_none() -> Result<()> {
    moves("")
}

#[test]
fn a_trunk_moves_between_chassis_whose_subports_name_the_first() -> Result<()> {
    moves(HOSTNAME)
}

fn moves(hosts_of_subports: &str) -> Result<()> {
    let site = TwoChassis::start(&without_limits())?;
    let TwoChassis { here, there, .. } = &site;
    let [moving, stays] = [add_trunk(here)?, add_trunk(here)?];
    for trunk in [&moving, &stays] {
        there.nova.add_instance(&trunk.parent.port);
        for (_, guest) in &trunk.subports {
            here.chassis.request_chassis(&guest.port, hosts_of_subports)?;
        }
    }
    let parent = &moving.parent;
    let (_, subport) = &moving.subports[0];
    let (vlan, changes) = &moving.subports[1];
    let (_, comes) = &stays.subports[1];
    let came = behind(&parent.port, &comes.port);

    let both = || -> Result<()> {
        here.chassis
            .request_chassis(&parent.port, &format!("{HOSTNAME},{THERE} activation-strategy=rarp"))?;
        let ifindex = parent.insert_device(there.chassis.host(), "to", MTU)?;
        there.chassis.plug(&parent.port)?;
        for port in [&parent.port, &subport.port, &changes.port] {
            there.agent.wait_port_served(port, ifindex)?;
        }
        // Both chassis have it: one port leaves, and one of another machine's comes.
        here.chassis.remove_subport(&changes.port)?;
        for agent in [&here.agent, &there.agent] {
            agent.wait_unlisted(&changes.port)?;
        }
        is_nobody(changes)?;
        here.chassis.remove_subport(&comes.port)?;
        here.chassis.add_subport(&came, &parent.port, *vlan)?;
        here.agent.wait_port_served(&came, here.chassis.ifindex(parent)?)?;
        there.agent.wait_port_served(&came, ifindex)?;
        asks_as(&came, changes, &here.nova)?;
        ensure!(there.nova.take_requests().is_empty(), "it has not moved yet");

        // From now on it runs there.
        let inside = &parent.netns;
        inside.ip("link set to master trunk")?;
        inside.ip(format!("link set {UPLINK} nomaster"))?;
        for guest in moving.guests() {
            guest.announce_itself()?;
        }
        asks_as(&came, changes, &there.nova)?;
        here.nova.take_requests();
        here.chassis.request_chassis(&parent.port, THERE)?;
        here.chassis.unplug(parent)?;
        here.chassis.host().ip(format!("link del {}", parent.port.tap))?;
        here.agent.wait_gone(&parent.port.tap)?;
        until("the port is bound there alone", SOON, || {
            ensure!(here.chassis.binding(&parent.port, "additional_chassis")?.is_empty());
            Ok(())
        })?;
        for port in [&parent.port, &subport.port, &came] {
            there.agent.wait_port_served(port, ifindex)?;
        }
        asks_as(&came, changes, &there.nova)?;
        is_nobody(comes)
    };
    let mut of_subport = None;
    let of_parent = while_asking(parent, |_| {
        of_subport = Some(while_asking(subport, |_| both())?);
        Ok(())
    })?;
    for asked in [Some(of_parent), of_subport].iter().flatten() {
        ensure!(asked.gap() < PATIENCE, "{:?}", asked.gap());
        println!("{} answers, the longest time without one {:?}", asked.count(), asked.gap());
    }
    asks_as(&subport.port, subport, &there.nova)?;
    asks_as(&parent.port, parent, &there.nova)?;
    let (_, untouched) = &stays.subports[0];
    asks_as(&untouched.port, untouched, &here.nova)
}
