//! Counters of the programs, the frames that they let pass, and checksums that are right.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::service_namespace,
    capture::{Capture, Checksum, Segment},
    check::{META_DATA, is_identity_of, own_identity, transfer},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, require, run},
    guest::{Guest, METADATA},
    http::{self, Connection, Error},
    netns::Namespace,
    nova::Answer,
    ovn::Routing,
    stage::Path,
    wait::until,
};

const SOURCES_PER_PORT: u8 = 16;

#[test]
fn counters_are_exact() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [on_link, routed] = cloud.overlapping_guests()?;
    let before = cloud.agent.counters()?;
    let segments = |guest: &Guest| -> Result<[u64; 2]> {
        Ok([guest.netns.tcp_statistic("OutSegs")?, guest.netns.tcp_statistic("InSegs")?])
    };

    let mut sent = 0;
    let mut received = 0;
    for guest in [&on_link, &routed] {
        let [out, into] = segments(guest)?;
        for _ in 0..3 {
            let mut connection = guest.connect()?;
            let response = connection.request("GET", META_DATA, &[("Connection", "close")], b"")?;
            is_identity_of(&guest.port, &response)?;
            assert!(connection.is_closed()?);
        }
        cloud.agent.settled_counters()?;
        let after = segments(guest)?;
        sent += after[0] - out;
        received += after[1] - into;
    }

    let after = cloud.agent.settled_counters()?;
    let delta = |name: &str| after[name] - before[name];
    assert_eq!(delta("arp_answered"), 1, "one guest has the address on its link");
    assert_eq!(delta("source_learned"), 2);
    assert_eq!((delta("redirected"), delta("replied")), (sent, received));
    assert_eq!((delta("unknown_port"), delta("stale_tag"), delta("refusal_hidden")), (0, 0, 0));

    // The same by port, and nothing of another port's.
    let ports = cloud.agent.ports()?;
    for guest in [&on_link, &routed] {
        let status = ports.iter().find(|status| status.port == guest.port.id).context("the port")?;
        let of = |name: &str| status.frames.get(name).copied().unwrap_or_default();
        let arp = u64::from(guest.port.tap == on_link.port.tap);
        assert_eq!((of("source_learned"), of("arp_answered")), (1, arp), "{status:?}");
        let [out, into] = segments(guest)?;
        assert_eq!((of("redirected"), of("replied")), (out, into), "{status:?}");
    }
    for name in ["redirected", "replied", "source_learned"] {
        let all: u64 = ports.iter().filter_map(|status| status.frames.get(name)).sum();
        assert_eq!(all, after[name], "{name}");
    }
    Ok(())
}

#[test]
fn other_traffic_passes() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let (one, other) = (cloud.add_guest(&network)?, cloud.add_guest(&network)?);
    for guest in [&one, &other] {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        own_identity(guest)?;
    }
    let before = cloud.agent.settled_counters()?;
    one.ping(other.port.address)?;
    transfer(&one, &other, 80)?;
    transfer(&other, &one, 8080)?;
    let another_port = SocketAddrV4::new(*METADATA.ip(), 8080);
    let answer = one.netns.run(|| http::connect_from(None, another_port, Duration::from_millis(300)))?;
    assert!(matches!(answer, Err(Error::Timeout)), "{answer:?}");
    let after = cloud.agent.counters()?;
    for name in ["redirected", "replied", "source_learned", "arp_answered"] {
        assert_eq!(after[name], before[name], "{name}");
    }
    own_identity(&one)
}

/// Checksums and segments are finished and cut by the sender or by a device, on the way there and on the way back, at
/// the least MTU of IPv6, and at those of a tunnel over an Ethernet and over jumbo frames.
#[test]
fn checksums_verify_with_and_without_offloads() -> Result<()> {
    require(&["ethtool"])?;
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    let body: Vec<u8> = (0..1 << 16).map(|index| (index * 7 % 253) as u8).collect();
    let target = "/openstack/latest/vendor_data2.json";
    cloud.nova.answer(target, Answer { status: 200, headers: vec![], body: body.clone().into() });
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    let tap = &guest.port.tap;
    for mtu in [1280, 1442, 8942] {
        guest.netns.ip(format!("link set eth0 mtu {mtu}"))?;
        cloud.chassis.host().ip(format!("link set {tap} mtu {mtu}"))?;
        for offloads in [[true; 3], [false, true, true], [true, false, true], [true, true, false], [false; 3]]
        {
            let [guest_offload, tap_offload, service_offload] =
                offloads.map(|on| if on { "on" } else { "off" });
            let case = format!(
                "MTU {mtu}, offloads of the guest {guest_offload}, of the tap {tap_offload}, of the service \
                 {service_offload}"
            );
            run(guest.netns.command("ethtool")?.words(format!("-K eth0 tx {guest_offload}")))?;
            run(cloud.chassis.host().command("ethtool")?.words(format!("-K {tap} tx {tap_offload}")))?;
            run(service.command("ethtool")?.words(format!("-K metadata1 tx {service_offload}")))?;
            let capture = Capture::start(&guest)?;
            cloud.nova.take_requests();
            for _ in 0..3 {
                let response = guest.request("POST", target, &[], &body)?;
                assert!(response.body == body, "{case}: the answer's body changed");
            }
            let requests = cloud.nova.take_requests();
            assert!(requests.iter().all(|request| request.body == body), "{case}: a request's body changed");
            let segments = capture.segments()?;
            let carried: usize = segments.iter().map(Segment::payload).sum();
            assert!(carried >= 3 * body.len(), "{case}: {carried} bytes in {} segments", segments.len());
            for segment in &segments {
                match segment.checksum() {
                    Checksum::Verifies => {}
                    Checksum::Unfinished if offloads[1] && offloads[2] => {}
                    checksum => panic!("{case}: {checksum:?} in {segment:02x?}"),
                }
                // What a device without offloads has sent is not longer than the MTU.
                let large = offloads[1] && offloads[2];
                assert!(large || segment.packet() <= mtu, "{case}: {} bytes", segment.packet());
            }
            for netns in [&guest.netns, &service] {
                for name in ["InCsumErrors", "InErrs"] {
                    assert_eq!(netns.tcp_statistic(name)?, 0, "{name}, {case}");
                }
            }
        }
    }
    Ok(())
}

/// A client behind a guest that routes, over a link with a smaller MTU than either end knows of: what the guest says about
/// it is for an address of another namespace, and the service finds out by itself.
#[test]
fn a_smaller_mtu_on_the_way_is_found_out() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [router, _] = cloud.overlapping_guests()?;
    let client = Namespace::create(cloud.chassis.sandbox(), "client")?;
    router.netns.ip(format!("link add eth1 type veth peer name eth0 netns {}", client.name()))?;
    router.netns.ip("addr add 10.9.0.1/24 dev eth1")?;
    router.netns.ip("link set eth1 mtu 1300 up")?;
    router.netns.sysctl("net.ipv4.ip_forward", "1")?;
    client.ip("addr add 10.9.0.2/24 dev eth0")?;
    client.ip("link set eth0 up")?;
    client.ip("route add default via 10.9.0.1")?;
    let target = "/openstack/latest/vendor_data2.json";
    let body: Vec<u8> = (0..3 << 20).map(|index| (index * 7 % 253) as u8).collect();
    cloud.nova.answer(target, Answer { status: 200, headers: vec![], body: body.clone().into() });
    let asked = Instant::now();
    let stream = client.run(|| http::connect_from(None, METADATA, Duration::from_secs(30)))??;
    let answer = Connection::new(stream).request("GET", target, &[], b"")?;
    println!("{} bytes over a link of 1300 in {:?}", answer.body.len(), asked.elapsed());
    assert!(answer.body == body, "the answer's body changed");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    Ok(())
}

/// A guest that routes for others may have so many of them connected at a time. One more has to wait until another has
/// closed its connections; the guest's own address never does, nor does anybody else.
#[test]
fn sources_behind_a_port_are_limited_and_its_own_addresses_are_not() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [router, other] = cloud.overlapping_guests()?;
    let address = |number: u8| Ipv4Addr::new(192, 168, 1, 100 + number);
    let ask = |number: u8, limit: Duration| {
        let source = SocketAddrV4::new(address(number), 0);
        let mut connection = router.connect_with(Some(source), limit)?;
        connection.request("GET", META_DATA, &[], b"").map(|response| (response, connection))
    };
    for number in 0..=SOURCES_PER_PORT {
        router.netns.ip(format!("addr add {}/24 dev eth0", address(number)))?;
    }
    let mut open = Vec::new();
    for number in 0..SOURCES_PER_PORT {
        let (response, connection) = ask(number, Duration::from_secs(3))?;
        is_identity_of(&router.port, &response)?;
        open.push(connection);
    }
    // Longer than those without a connection keep their places, however busy the machine.
    thread::sleep(Duration::from_secs(6));
    let one_more = ask(SOURCES_PER_PORT, Duration::from_secs(3)).err();
    assert!(matches!(one_more, Some(Error::Timeout)), "{one_more:?}");
    assert!(cloud.agent.counter("sources_exhausted")? > 0);
    assert_eq!(cloud.agent.counter("source_learned")?, u64::from(SOURCES_PER_PORT));
    until("it is said once", Duration::from_secs(30), || {
        let log = cloud.agent.log()?;
        ensure!(log.matches("more sources at once than the port has places for").count() == 1, "{log}");
        Ok(())
    })?;

    own_identity(&router)?;
    own_identity(&other)?;
    // Those that still have their places go on being answered.
    let answered = open.iter_mut().filter_map(|connection| {
        connection.stream().set_read_timeout(Some(Duration::from_secs(3))).ok()?;
        connection.request("GET", META_DATA, &[], b"").ok()
    });
    assert_eq!(answered.count(), usize::from(SOURCES_PER_PORT) - 1, "its own address took one place");

    drop(open);
    let (response, _) = ask(SOURCES_PER_PORT, Duration::from_secs(30))?;
    is_identity_of(&router.port, &response)?;
    assert_eq!(cloud.agent.log()?.matches("more sources at once").count(), 1);
    Ok(())
}

/// Packets to the service that cannot be answered are dropped for a reason, and disturb nothing.
#[test]
fn odd_packets_are_dropped_and_counted() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let own = guest.port.address;
    let segment = tcp_syn();
    for (reason, packet) in [
        ("fragment", ipv4(own, 0x2000, &[], &segment)),
        ("fragment", ipv4(own, 0x0001, &[], &segment)),
        ("ip_header", ipv4(own, 0, &[1, 1, 1, 1], &segment)),
        ("tcp_truncated", ipv4(own, 0, &[], &segment[..8])),
        ("bad_source", ipv4(Ipv4Addr::new(224, 0, 0, 1), 0, &[], &segment)),
        ("bad_source", ipv4(Ipv4Addr::new(127, 0, 0, 1), 0, &[], &segment)),
        ("bad_source", ipv4(*METADATA.ip(), 0, &[], &segment)),
        ("bad_source", ipv4(Ipv4Addr::new(240, 0, 0, 1), 0, &[], &segment)),
    ] {
        let before = cloud.agent.settled_counters()?;
        guest.send_packet(&packet)?;
        until("the packet is counted", Duration::from_secs(20), || {
            ensure!(cloud.agent.counter(reason)? == before[reason] + 1, "{reason} is not, for {packet:02x?}");
            Ok(())
        })?;
        let after = cloud.agent.settled_counters()?;
        for (name, count) in &after {
            assert_eq!(*count, before[name] + u64::from(name == reason), "{name}, for {packet:02x?}");
        }
    }
    own_identity(&guest)?;
    own_identity(&other)
}

fn ipv4(source: Ipv4Addr, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    const TCP: u8 = 6;
    let words = 5 + options.len() as u8 / 4;
    let mut packet = vec![0x40 | words, 0, 0, 0, 0, 1];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, TCP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(METADATA.ip().octets());
    packet.extend(options);
    packet.extend(payload);
    packet
}

fn tcp_syn() -> Vec<u8> {
    let mut segment = 40000_u16.to_be_bytes().to_vec();
    segment.extend(METADATA.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

/// A guest cannot make its neighbours send their metadata requests to it.
#[test]
fn the_metadata_address_cannot_be_claimed() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let network = cloud.chassis.add_network("green")?;
    let claimant = cloud.chassis.add_guest(&network, Path::OnLink)?;
    let neighbour = cloud.chassis.add_guest(&network, Path::OnLink)?;
    cloud.chassis.write_inventory(&[&claimant.port, &neighbour.port])?;
    for guest in [&claimant, &neighbour] {
        cloud.nova.add_instance(&guest.port);
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        own_identity(guest)?;
    }
    let entry = neighbour.netns.ip("-o neigh show 169.254.169.254")?;
    let resolved = |entry: &str| entry.split_whitespace().nth(4).map(str::to_owned);
    claimant.netns.ip("addr add 169.254.169.254/32 dev eth0")?;
    for kind in ["-U", "-A"] {
        run(claimant.netns.command("busybox")?.words(format!("arping {kind} -c 1 -I eth0 169.254.169.254")))?;
    }
    assert!(cloud.agent.counter("arp_claim")? >= 2);
    assert_eq!(resolved(&neighbour.netns.ip("-o neigh show 169.254.169.254")?), resolved(&entry));
    own_identity(&neighbour)
}
