//! Trunks: a tagged frame is its subport's and the answer carries the tag; a VLAN that is nobody's is none of ours.

use std::{
    io::{ErrorKind, Read as _},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::{Options, service_namespace},
    check::{META_DATA, is_identity_of, own_identity, was_signed_for},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, require, run},
    guest::{Guest, METADATA},
    http::Error,
    netns::Namespace,
    ovn::{Lab, Routing},
    port::Port,
    trunk::{Trunk, UPLINK, Uplink},
    wait::until,
};

/// The same in every trunk, and on both its subports the same addresses.
const SUBPORTS: [(u16, Ipv4Addr); 2] =
    [(101, Ipv4Addr::new(192, 168, 1, 20)), (4094, Ipv4Addr::new(192, 168, 1, 21))];
/// Long enough for a SYN and its first retransmission.
const NO_ANSWER: Duration = Duration::from_millis(1500);
const REACTION: Duration = Duration::from_secs(30);

/// A new tenant's instance with a trunk of two subports, each in a network of its own.
fn trunk(cloud: &Cloud<Lab>, uplink: Uplink) -> Result<Trunk> {
    let parent = Port::new(&cloud.chassis.add_network("parent", Routing::Isolated)?)?;
    let subport = |(vlan, address)| -> Result<(u16, Port)> {
        let network = cloud.chassis.add_network("subport", Routing::Routed)?;
        Ok((vlan, Port { address, ..Port::subport(&network, &parent)? }))
    };
    let subports = SUBPORTS.into_iter().map(subport).collect::<Result<_>>()?;
    cloud.nova.add_instance(&parent);
    let trunk = cloud.chassis.add_trunk(uplink, parent, subports)?;
    for guest in trunk.guests() {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
    }
    Ok(trunk)
}

/// Answers to the guest are its instance's, and Nova is told the address of the subport: parent and subports have
/// nothing else to be told apart by.
fn asks_as_itself(cloud: &Cloud<Lab>, guest: &Guest) -> Result<()> {
    cloud.nova.take_requests();
    own_identity(guest)?;
    let requests = cloud.nova.take_requests();
    ensure!(requests.len() == 2, "{requests:?}");
    requests.iter().try_for_each(|request| was_signed_for(&guest.port, request))
}

/// Two tenants with the same VLANs and addresses: the tags of one are inside of its frames, those of the other beside
/// them as far as `txvlan` says so; in either direction, and with segments larger than the MTU.
#[test]
fn tagged_frames_are_the_subports() -> Result<()> {
    require(&["ethtool"])?;
    let cloud = Cloud::with_ovn()?;
    let trunks = [trunk(&cloud, Uplink::Tap)?, trunk(&cloud, Uplink::Veth)?];
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    let offload = |netns: &Namespace, device: &str, on: &str| -> Result<()> {
        run(netns.command("ethtool")?.words(format!("-K {device} txvlan {on}")))?;
        let state = run(netns.command("ethtool")?.words(format!("-k {device}")))?;
        ensure!(state.contains(&format!("tx-vlan-offload: {on}\n")), "{state}");
        Ok(())
    };
    for (guest_offload, tap_offload) in [("on", "on"), ("off", "on"), ("on", "off"), ("off", "off")] {
        offload(&trunks[1].parent.netns, UPLINK, guest_offload)?;
        for trunk in &trunks {
            offload(cloud.chassis.host(), &trunk.parent.port.tap, tap_offload)?;
        }
        for guest in trunks.iter().flat_map(Trunk::guests) {
            let say = || format!("{} with txvlan {guest_offload} and {tap_offload}", guest.port.address);
            asks_as_itself(&cloud, guest).with_context(say)?;
            let body: Vec<u8> = (0..1 << 16).map(|index| (index * 7 % 253) as u8).collect();
            cloud.nova.set_user_data(&guest.port, body.clone());
            ensure!(guest.get("/latest/user-data")?.body == body, "{}: the body changed", say());
            let long = "x".repeat(6000);
            ensure!(guest.request("GET", META_DATA, &[("Accept", &long)], b"")?.status == 200, "{}", say());
            for netns in [&guest.netns, &service] {
                assert_eq!(netns.tcp_statistic("InCsumErrors")?, 0, "{}", say());
                assert_eq!(netns.tcp_statistic("InErrs")?, 0, "{}", say());
            }
        }
    }
    let counters = cloud.agent.settled_counters()?;
    // Each guest's source was learned once, and behind its own port: parent and subports of two trunks.
    assert_eq!((counters["source_learned"], counters["stale_tag"], counters["unknown_port"]), (6, 0, 0));
    Ok(())
}

/// A trunk gives a guest no more than a tap: its subports share the limits of the untagged port.
#[test]
fn limits_are_those_of_the_tap() -> Result<()> {
    let more =
        ["connection_rate = 10", "connection_burst = 30"].map(|line| ("metadata_ebpf", line.to_owned()));
    let cloud = Cloud::on(Lab::start()?, &Options { more: more.to_vec(), ..Options::default() })?;
    let trunk = trunk(&cloud, Uplink::Tap)?;
    let started = Instant::now();
    let mut opened = Vec::new();
    // Each of them less than the burst, and together more.
    for _ in 0..20 {
        for guest in trunk.guests() {
            match guest.connect_with(None, Duration::from_millis(50)) {
                Ok(connection) => opened.push(connection),
                Err(error) => ensure!(matches!(error, Error::Timeout), "{error}"),
            }
        }
    }
    let allowed = 30 + 10 * (started.elapsed().as_secs() as usize + 1);
    ensure!(opened.len() <= allowed, "{} connections in {:?}", opened.len(), started.elapsed());
    ensure!(opened.len() >= 30, "the burst was not allowed: {}", opened.len());
    ensure!(cloud.agent.counter("connections_limited")? > 0);
    Ok(())
}

/// ARP, echo, neighbour discovery and IPv6, on the VLAN.
#[test]
fn whatever_is_answered_is_answered_with_the_tag() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let trunk = trunk(&cloud, Uplink::Tap)?;
    for (_, guest) in &trunk.subports {
        let before = cloud.agent.settled_counters()?;
        guest.netns.ip(format!("route replace {} dev eth0", METADATA.ip()))?;
        asks_as_itself(&cloud, guest)?;
        guest.ping(*METADATA.ip())?;
        for scope in ["all", "eth0"] {
            guest.netns.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "0")?;
        }
        until("the guest has a link-local address", REACTION, || {
            let addresses = guest.netns.ip("-6 -o addr show dev eth0 scope link -tentative")?;
            ensure!(addresses.contains("fe80::"), "{addresses:?}");
            Ok(())
        })?;
        let mut connection = guest.connect_v6()?;
        cloud.nova.take_requests();
        is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        cloud.nova.take_requests().iter().try_for_each(|request| was_signed_for(&guest.port, request))?;
        let after = cloud.agent.settled_counters()?;
        let counted = |name: &str| after[name] - before[name];
        assert_eq!((counted("arp_answered"), counted("echo_answered")), (1, 1));
        assert!(counted("nd_answered") >= 1, "{after:?}");
    }
    Ok(())
}

#[test]
fn subports_come_and_go() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let trunk = trunk(&cloud, Uplink::Tap)?;
    let [(_, stays), (vlan, leaves)] = trunk.subports.as_slice() else { panic!("there are two") };
    let mut open = leaves.connect()?;
    is_identity_of(&leaves.port, &open.request("GET", META_DATA, &[], b"")?)?;

    cloud.chassis.delete_port(&leaves.port)?;
    cloud.agent.wait_unlisted(&leaves.port)?;
    // Its VLAN is the tenant's own now: nothing is answered, and nothing is counted.
    // The reset of its open connection is the last that it hears, and is counted as a reply.
    let mut stream = open.stream();
    stream.set_read_timeout(Some(REACTION))?;
    let ended = stream.read(&mut [0]);
    let is_reset = ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    ensure!(is_reset, "the open connection: {ended:?}");
    let before = cloud.agent.settled_counters()?;
    cloud.nova.take_requests();
    leaves.netns.ip(format!("route replace {} dev eth0", METADATA.ip()))?;
    let fresh = leaves.connect_with(None, NO_ANSWER).err();
    ensure!(matches!(fresh, Some(Error::Timeout | Error::Unreachable)), "{fresh:?}");
    open.stream().set_read_timeout(Some(NO_ANSWER))?;
    let old = open.request("GET", META_DATA, &[], b"");
    ensure!(old.is_err(), "a subport that is gone was answered: {old:?}");
    ensure!(cloud.nova.take_requests().is_empty());
    assert_eq!(cloud.agent.settled_counters()?, before);
    for guest in [&trunk.parent, stays] {
        asks_as_itself(&cloud, guest)?;
    }

    // The VLAN is given to a port of another network.
    let network = cloud.chassis.add_network("next", Routing::Isolated)?;
    let next = Port { mac: leaves.port.mac.clone(), ..Port::subport(&network, &trunk.parent.port)? };
    cloud.chassis.create_subport(&next, &trunk.parent.port, *vlan)?;
    until("the next subport is served", REACTION, || {
        let ports = cloud.agent.ports()?;
        ensure!(ports.iter().any(|status| status.port == next.id && status.state == "known"), "{ports:?}");
        Ok(())
    })?;
    cloud.nova.take_requests();
    is_identity_of(&next, &leaves.get(META_DATA)?)?;
    let requests = cloud.nova.take_requests();
    ensure!(requests.len() == 1, "{requests:?}");
    was_signed_for(&next, &requests[0])
}

/// A port is taken out of one instance's trunk and put into that of another: it is the other one's then, and nobody's where
/// it was.
#[test]
fn a_subport_moves_to_another_trunk() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let [from, to] = [trunk(&cloud, Uplink::Tap)?, trunk(&cloud, Uplink::Tap)?];
    let ((vlan, leaves), (_, comes)) = (&from.subports[0], &to.subports[0]);
    let mut open = leaves.connect()?;
    is_identity_of(&leaves.port, &open.request("GET", META_DATA, &[], b"")?)?;
    for port in [&leaves.port, &comes.port] {
        cloud.chassis.delete_port(port)?;
    }
    let Port { tap, instance, project, .. } = to.parent.port.clone();
    let moved = Port { tap, instance, project, ..leaves.port.clone() };
    cloud.chassis.create_subport(&moved, &to.parent.port, *vlan)?;
    until("it is served where it is now", REACTION, || {
        let ports = cloud.agent.ports()?;
        let is_there = ports.iter().any(|status| {
            status.port == moved.id
                && status.tap == moved.tap
                && status.instance.as_ref() == Some(&moved.instance)
        });
        ensure!(is_there && ports.iter().filter(|status| status.port == moved.id).count() == 1, "{ports:?}");
        Ok(())
    })?;
    // Its MAC address is another's, for which OVN answers nothing.
    comes.netns.ip(format!("route replace {} dev eth0", METADATA.ip()))?;
    cloud.nova.take_requests();
    is_identity_of(&moved, &comes.get(META_DATA)?)?;
    cloud.nova.take_requests().iter().try_for_each(|request| was_signed_for(&moved, request))?;
    open.stream().set_read_timeout(Some(NO_ANSWER))?;
    let old = open.request("GET", META_DATA, &[], b"");
    ensure!(old.is_err(), "a connection from where it was: {old:?}");
    let fresh = leaves.connect_with(None, NO_ANSWER).err();
    ensure!(matches!(fresh, Some(Error::Timeout | Error::Unreachable)), "{fresh:?}");
    ensure!(cloud.nova.take_requests().is_empty());
    asks_as_itself(&cloud, &from.parent)?;
    asks_as_itself(&cloud, &to.parent)
}

/// With and without the Southbound, which alone knows of subports: they are remembered.
#[test]
fn a_restarted_agent_serves_subports() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let trunk = trunk(&cloud, Uplink::Veth)?;
    for guest in trunk.guests() {
        asks_as_itself(&cloud, guest)?;
        cloud.agent.wait_remembered(guest)?;
    }
    let learned = cloud.agent.counter("source_learned")?;
    for southbound in ["up", "away"] {
        if southbound == "away" {
            cloud.chassis.kill_southbound()?;
        }
        cloud.agent.kill_both()?;
        let gap = trunk.subports[0].1.connect_with(None, NO_ANSWER).err();
        ensure!(matches!(gap, Some(Error::Timeout)), "a connection while the agent was away: {gap:?}");
        cloud.agent.resume()?;
        for guest in trunk.guests() {
            cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
            asks_as_itself(&cloud, guest).with_context(|| format!("the Southbound is {southbound}"))?;
        }
    }
    cloud.chassis.start_southbound()?;
    cloud.agent.wait_ready()?;
    for guest in trunk.guests() {
        asks_as_itself(&cloud, guest)?;
    }
    assert_eq!(cloud.agent.counter("source_learned")?, learned, "a subport was somebody new");
    Ok(())
}
