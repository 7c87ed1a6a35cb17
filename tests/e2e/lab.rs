//! The lab itself, without an agent: what the other tests stand on works.

use std::time::Duration;

use anyhow::Result;
use metadata_tests::{
    check::{META_DATA, is_identity_of, transfer},
    cloud::Chassis as _,
    http::{self, Connection},
    nova::{self, Nova},
    ovn::{Lab, Routing},
    port::Port,
    stage::{Path, Stage},
};

#[test]
fn guests_get_overlapping_leases_and_reach_their_own_network_only() -> Result<()> {
    let lab = Lab::start()?;
    let red = lab.add_network("red", Routing::Routed)?;
    let blue = lab.add_network("blue", Routing::Isolated)?;
    let (red1, red2, blue1) = (lab.add_guest(&red)?, lab.add_guest(&red)?, lab.add_guest(&blue)?);

    for guest in [&red1, &red2, &blue1] {
        assert_eq!(guest.addresses()?, [guest.port.address]);
        assert!(guest.netns.ip("route get 169.254.169.254")?.contains("via 192.168.1.2 dev eth0"));
    }
    assert_eq!(red1.port.address, blue1.port.address);
    red1.ping(red2.port.address)?;
    transfer(&red1, &red2, 80)?;
    assert!(blue1.ping(red2.port.address).is_err(), "one tenant reaches another");
    Ok(())
}

#[test]
fn taps_come_and_go() -> Result<()> {
    let lab = Lab::start()?;
    let network = lab.add_network("red", Routing::Isolated)?;
    let (one, other) = (lab.add_guest(&network)?, lab.add_guest(&network)?);
    let before = lab.ifindex(&one)?;

    lab.unplug(&one)?;
    assert!(other.ping(one.port.address).is_err(), "an unplugged guest answers");
    lab.stop_tap(&one)?;
    lab.start_tap(&one)?;
    assert_ne!(lab.ifindex(&one)?, before);
    lab.plug(&one)?;
    lab.wait_bound(&one)?;
    one.dhcp()?;
    other.ping(one.port.address)?;
    Ok(())
}

#[test]
fn databases_restart() -> Result<()> {
    let mut lab = Lab::start()?;
    let network = lab.add_network("red", Routing::Isolated)?;
    lab.add_guest(&network)?;
    lab.kill_southbound()?;
    lab.start_southbound()?;
    lab.add_guest(&network)?;
    lab.kill_ovs_database()?;
    lab.start_ovs_database()?;
    lab.add_guest(&network)?;
    Ok(())
}

#[test]
fn without_an_agent_metadata_times_out() -> Result<()> {
    let lab = Lab::start()?;
    let network = lab.add_network("red", Routing::Isolated)?;
    let guest = lab.add_guest(&network)?;
    let answer = guest.connect_with(None, Duration::from_secs(2));
    assert!(matches!(answer, Err(http::Error::Timeout)), "{answer:?}");
    Ok(())
}

#[test]
fn the_stage_connects_guests_of_one_network() -> Result<()> {
    let stage = Stage::start()?;
    let (red, blue) = (stage.add_network("red")?, stage.add_network("blue")?);
    let one = stage.add_guest(&red, Path::OnLink)?;
    let other = stage.add_guest(&red, Path::ViaGateway)?;
    let stranger = stage.add_guest(&blue, Path::OnLink)?;
    assert_eq!(one.port.address, stranger.port.address);
    one.ping(other.port.address)?;
    transfer(&one, &other, 80)?;
    assert!(stranger.ping(other.port.address).is_err(), "one tenant reaches another");
    Ok(())
}

#[test]
fn nova_checks_as_nova_does() -> Result<()> {
    let stage = Stage::start()?;
    let port = Port::new(&stage.add_network("red")?)?;
    let mut nova = Nova::start(stage.host())?;
    nova.add_instance(&port);
    let connect = || -> Result<Connection<_>> {
        let limit = Duration::from_secs(30);
        Ok(Connection::new(stage.host().run(|| http::connect_from(None, nova::ADDRESS, limit))??))
    };
    let signature = nova::signature(&port.instance);
    let id = ("X-Instance-ID", port.instance.as_str());
    let signed = ("X-Instance-ID-Signature", signature.as_str());
    let tenant = ("X-Tenant-ID", port.project.as_str());
    let upper = signature.to_uppercase();
    let mut connection = connect()?;
    for (headers, status, text) in [
        (vec![], 400, "X-Instance-ID header is missing from request."),
        (vec![id], 400, "X-Instance-ID-Signature header is missing from request."),
        (vec![id, signed], 400, "X-Tenant-ID header is missing from request."),
        (vec![id, ("X-Instance-ID-Signature", &upper), tenant], 403, "Invalid proxy request signature."),
        (vec![id, id, signed, tenant], 403, "Invalid proxy request signature."),
        (vec![id, signed, tenant, ("X-Metadata-Provider", "x")], 403, "Invalid proxy request signature."),
        (vec![id, signed, ("X-Tenant-ID", "another")], 404, "The resource could not be found."),
        (vec![id, signed, tenant], 200, ""),
    ] {
        let response = connection.request("GET", META_DATA, &headers, b"")?;
        assert_eq!(response.status, status, "{headers:?}");
        assert!(response.text().contains(text), "{headers:?}: {response:?}");
    }
    is_identity_of(&port, &connection.request("GET", META_DATA, &[id, signed, tenant], b"")?)?;
    assert_eq!(nova.take_requests().len(), 9);

    nova.pause();
    assert!(connection.request("GET", "/", &[], b"").is_err(), "a paused nova answers");
    assert!(connect().is_err(), "a paused nova listens");
    nova.resume(stage.host())?;
    assert_eq!(connect()?.request("GET", "/", &[], b"")?.status, 200);
    Ok(())
}
