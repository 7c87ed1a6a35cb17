//! Identity of a guest, which follows from its tap, and from nothing that it sends.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result};
use metadata_tests::{
    check::{META_DATA, is_identity_of, own_identity, was_signed_for},
    cloud::Cloud,
    guest::Guest,
    http::Error,
    nova::signature,
    ovn::{Lab, Routing},
    port::{METADATA_PORT, Port},
};

const REQUESTS: usize = 1000;

#[test]
fn two_tenants_with_one_source_at_one_time() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let guests = cloud.overlapping_guests()?;
    let [red, blue] = &guests;
    assert_eq!(red.port.address, blue.port.address);
    assert_ne!(red.port.project, blue.port.project);
    guests.iter().try_for_each(own_identity)?;
    cloud.nova.take_requests();

    let counters = cloud.agent.counters()?;
    for port in 40000..40010 {
        let source = SocketAddrV4::new(red.port.address, port);
        let mut connections = [red.connect_from(source)?, blue.connect_from(source)?];
        // Each connection is used twice, in turn with the other, while both are open.
        for _ in 0..2 {
            for (guest, connection) in guests.iter().zip(&mut connections) {
                assert_eq!(connection.stream().local_addr()?, source.into());
                is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)?;
            }
        }
    }
    let requests = cloud.nova.take_requests();
    assert_eq!(requests.len(), 40);
    for (request, guest) in requests.iter().zip(guests.iter().cycle()) {
        was_signed_for(&guest.port, request)?;
    }
    for (name, count) in cloud.agent.counters()? {
        let before = counters[&name];
        match name.as_str() {
            "redirected" | "replied" => assert!(count >= before + 80, "{name}: {before}, then {count}"),
            "source_learned" | "unknown_port" | "stale_tag" => assert_eq!(count, before, "{name}"),
            _ => {}
        }
    }
    Ok(())
}

/// While a machine is migrated its port is bound to where it comes from; the tap is here before that changes.
#[test]
fn a_guest_that_is_being_migrated_here_is_served() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let port = Port::new(&network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    cloud.chassis.request_chassis(&port, "source")?;
    let guest = cloud.chassis.boot(port)?;
    guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
    cloud.chassis.plug(&guest)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)?;
    assert_eq!(cloud.chassis.binding(&guest.port, "chassis")?, "", "the port is bound here");
    Ok(())
}

#[test]
fn a_thousand_alternating_requests() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let guests = cloud.overlapping_guests()?;
    let user_data = guests.each_ref().map(|guest| guest.port.instance.repeat(100));
    for (guest, text) in guests.iter().zip(&user_data) {
        cloud.nova.set_user_data(&guest.port, text.clone());
    }
    for (number, (guest, text)) in guests.iter().zip(&user_data).cycle().take(REQUESTS).enumerate() {
        let response = guest.get("/latest/user-data").with_context(|| format!("request {number}"))?;
        assert_eq!(
            (response.status, response.text() == *text),
            (200, true),
            "request {number}: {response:?}"
        );
    }
    let requests = cloud.nova.take_requests();
    assert_eq!(requests.len(), REQUESTS);
    for (request, guest) in requests.iter().zip(guests.iter().cycle()) {
        was_signed_for(&guest.port, request)?;
    }
    assert_eq!(cloud.agent.counter("source_learned")?, 2);
    assert_eq!(cloud.agent.counter("stale_tag")?, 0);
    Ok(())
}

#[test]
fn headers_cannot_change_it() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [attacker, victim] = cloud.overlapping_guests()?;
    let (id, project) = (victim.port.instance.as_str(), victim.port.project.as_str());
    let signature = signature(id);
    let stolen = [("X-Instance-ID", id), ("X-Tenant-ID", project), ("X-Instance-ID-Signature", &signature)];
    let attempts: Vec<Vec<(&str, &str)>> = vec![
        stolen.to_vec(),
        vec![("x-instance-id", id)],
        vec![("X-Instance-ID", id), ("X-Instance-ID", id)],
        vec![("X_Instance_ID", id), ("X-Instance_ID", id), ("X_Tenant_ID", project)],
        vec![("X_Instance_ID_Signature", &signature)],
        vec![("X-Forwarded-For", "9.9.9.9")],
        vec![("X-Forwarded-For", "9.9.9.9, 192.168.1.11"), ("X-Real-IP", "9.9.9.9")],
        vec![("Forwarded", "for=9.9.9.9"), ("X_Forwarded_For", "9.9.9.9")],
        vec![("X-Metadata-Provider", id), ("X-Metadata-Provider-Signature", &signature)],
        vec![("X_Metadata_Provider", id)],
        vec![("X-OVN-Network-ID", &victim.port.network), ("X-Neutron-Router-ID", &victim.port.network)],
        // A proxy that removes what Connection lists would remove its own.
        vec![("Connection", "X-Instance-ID, X-Tenant-ID, X-Instance-ID-Signature, X-Forwarded-For")],
        vec![("Connection", "X-Instance-ID"), ("Connection", "close"), ("Keep-Alive", id)],
        [&stolen[..], &[("Connection", "keep-alive, X-Metadata-Provider")]].concat(),
    ];
    let allowed = [
        "accept",
        "connection",
        "host",
        "user-agent",
        "x-forwarded-for",
        "x-instance-id",
        "x-instance-id-signature",
        "x-tenant-id",
    ];
    for headers in &attempts {
        let response = attacker.connect()?.request("GET", META_DATA, headers, b"")?;
        is_identity_of(&attacker.port, &response).with_context(|| format!("with {headers:?}"))?;
        let requests = cloud.nova.take_requests();
        let [request] = requests.as_slice() else { panic!("{headers:?} became {requests:?}") };
        was_signed_for(&attacker.port, request).with_context(|| format!("with {headers:?}"))?;
        for (name, value) in &request.headers {
            assert!(allowed.contains(&name.as_str()), "{headers:?} sent {name} to Nova");
            let value = String::from_utf8_lossy(value);
            assert!(!value.contains(id) && !value.contains("9.9.9.9"), "{headers:?} sent {name}: {value}");
        }
    }
    Ok(())
}

/// Spellings that some parsers accept and others do not: refused, or answered with the guest's own identity.
#[test]
fn malformed_headers_cannot_change_it() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [attacker, victim] = cloud.overlapping_guests()?;
    let id = &victim.port.instance;
    for lines in [
        format!("X-Instance-ID : {id}\r\n"),
        format!("X-Other: 1\r\n X-Instance-ID: {id}\r\n"),
        format!("X-Other: 1\rX-Instance-ID: {id}\r\n"),
        format!("X-Other: 1\nX-Instance-ID: {id}\n"),
        format!("X-Instance-ID\0: {id}\r\n"),
        format!("\u{212a}-Instance-ID: {id}\r\n"),
        format!("Content-Length: 0\r\nTransfer-Encoding: chunked\r\nX-Instance-ID: {id}\r\n\r\n0\r\n"),
    ] {
        let mut connection = attacker.connect()?;
        connection.send(
            format!("GET {META_DATA} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n").as_bytes(),
        )?;
        match connection.response("GET") {
            Ok(response) if response.status == 200 => is_identity_of(&attacker.port, &response)?,
            Ok(response) => assert_eq!(response.status, 400, "{lines:?}"),
            Err(error) => panic!("{lines:?}: {error}"),
        }
        for request in cloud.nova.take_requests() {
            was_signed_for(&attacker.port, &request).with_context(|| format!("with {lines:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn source_addresses_cannot_change_it() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let (attacker, victim) = (cloud.add_guest(&network)?, cloud.add_guest(&network)?);
    for guest in [&attacker, &victim] {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        own_identity(guest)?;
    }

    // Its neighbour's address, one that nobody has, and again its own.
    let stranger = Ipv4Addr::new(10, 9, 8, 7);
    for address in [victim.port.address, stranger, attacker.port.address] {
        claim(&attacker, address)?;
        asks_as_itself(&cloud, &attacker, address)?;
    }
    own_identity(&victim)?;

    // One of those by which the service tells ports apart.
    let tag = Ipv4Addr::new(240, 0, 0, 16);
    claim(&attacker, tag)?;
    let answer = attacker.connect_with(Some(SocketAddrV4::new(tag, 0)), Duration::from_secs(2)).err();
    assert!(matches!(answer, Some(Error::Timeout)), "a connection from {tag}: {answer:?}");
    assert!(cloud.agent.counter("bad_source")? > 0);

    attacker.netns.ip(format!("link set eth0 address {}", victim.port.mac))?;
    for address in [attacker.port.address, victim.port.address] {
        claim(&attacker, address)?;
        asks_as_itself(&cloud, &attacker, address)?;
    }
    own_identity(&victim)?;
    Ok(())
}

/// Takes one more address, and the way to the metadata service that needs no answer from the network.
fn claim(guest: &Guest, address: Ipv4Addr) -> Result<()> {
    guest.netns.ip(format!("addr replace {address}/24 dev eth0"))?;
    guest
        .netns
        .ip(format!("neigh replace {METADATA_PORT} lladdr fa:16:3e:aa:bb:cc dev eth0 nud permanent"))?;
    guest.netns.ip(format!("route replace 169.254.169.254 via {METADATA_PORT} dev eth0"))?;
    Ok(())
}

fn asks_as_itself(cloud: &Cloud<Lab>, guest: &Guest, source: Ipv4Addr) -> Result<()> {
    cloud.nova.take_requests();
    let mut connection = guest.connect_from(SocketAddrV4::new(source, 0))?;
    let response = connection.request("GET", META_DATA, &[], b"")?;
    is_identity_of(&guest.port, &response).with_context(|| format!("from {source}"))?;
    for request in cloud.nova.take_requests() {
        was_signed_for(&guest.port, &request).with_context(|| format!("from {source}"))?;
    }
    Ok(())
}
