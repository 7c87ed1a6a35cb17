//! Ports come and go while the agent runs; nobody is ever answered as somebody else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, attempt, first_answer, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    http::{self, Error, Response},
    ovn::{Lab, Routing},
    port::{METADATA_PORT, Port},
    stage::Path,
    wait::until,
};
use nix::sys::signal::Signal;

/// Long enough for a SYN and its first retransmission.
const NO_ANSWER: Duration = Duration::from_secs(2);
const HOLD: u32 = 2;
/// More than a netlink socket holds messages of.
const DEVICES: usize = 150;

#[test]
fn plug_unplug_replug() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)?;
    let mut before = guest.connect()?;
    is_identity_of(&guest.port, &before.request("GET", META_DATA, &[], b"")?)?;

    cloud.chassis.unplug(&guest)?;
    cloud.agent.wait_gone(&guest.port.tap)?;
    cloud.nova.take_requests();
    let fresh = guest.connect_with(None, NO_ANSWER).err();
    assert!(matches!(fresh, Some(Error::Timeout)), "an unplugged guest's connection: {fresh:?}");
    before.stream().set_read_timeout(Some(NO_ANSWER))?;
    let old = before.request("GET", META_DATA, &[], b"");
    assert!(old.is_err(), "an unplugged guest was answered: {old:?}");
    assert_eq!(cloud.nova.take_requests().len(), 0);

    cloud.chassis.plug(&guest)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)
}

#[test]
fn a_machine_is_stopped_and_started() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    let before = cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)?;

    cloud.chassis.stop_tap(&guest)?;
    cloud.agent.wait_gone(&guest.port.tap)?;
    cloud.chassis.start_tap(&guest)?;
    // The userspace datapath keeps its socket on the device that went away.
    cloud.chassis.unplug(&guest)?;
    cloud.chassis.plug(&guest)?;
    cloud.chassis.wait_bound(&guest)?;
    guest.dhcp()?;
    let after = cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    // What the datapath tells them apart by.
    assert_ne!((after.index, after.generation), (before.index, before.generation));
    own_identity(&guest)
}

#[test]
fn a_deleted_port_is_nobody() -> Result<()> {
    let cloud = Cloud::on(Lab::start()?, &Options { hold: HOLD, ..Options::default() })?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)?;
    let mut before = guest.connect()?;
    is_identity_of(&guest.port, &before.request("GET", META_DATA, &[], b"")?)?;

    // The machine still runs and is still plugged; only its rows are gone.
    cloud.chassis.delete_port(&guest.port)?;
    until("the agent forgets the port", Duration::from_secs(30), || {
        let ports = cloud.agent.ports()?;
        ensure!(ports.iter().all(|status| status.state != "known"), "/ports says {ports:?}");
        Ok(())
    })?;
    cloud.nova.take_requests();
    assert_nobody(&guest.get(META_DATA)?);
    if let Ok(response) = before.request("GET", META_DATA, &[], b"") {
        assert_ne!(response.status, 200, "an old connection was answered: {response:?}");
    }
    assert_eq!(cloud.nova.take_requests().len(), 0);
    Ok(())
}

#[test]
fn an_unknown_port_is_held_and_then_told_to_retry() -> Result<()> {
    let cloud = Cloud::on(Lab::start()?, &Options { hold: HOLD, ..Options::default() })?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.chassis.boot(Port::new(&network)?)?;
    cloud.nova.add_instance(&guest.port);
    cloud.chassis.plug(&guest)?;
    guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;

    let asked = Instant::now();
    assert_nobody(&guest.get(META_DATA)?);
    assert!(asked.elapsed() >= Duration::from_secs(HOLD.into()), "held for {:?} only", asked.elapsed());
    assert_eq!(cloud.nova.take_requests().len(), 0);

    // Whoever is held is answered as soon as the row is there.
    let mut held = guest.connect()?;
    held.send(&http::request_head("GET", META_DATA, &[], 0))?;
    cloud.chassis.create_port(&guest.port)?;
    is_identity_of(&guest.port, &held.response("GET")?)
}

#[test]
fn a_tap_is_made_again_for_another_instance() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let (red, blue) = (
        cloud.chassis.add_network("red", Routing::Routed)?,
        cloud.chassis.add_network("blue", Routing::Isolated)?,
    );
    let old = cloud.add_guest(&red)?;
    let ifindex = cloud.chassis.ifindex(&old)?;
    cloud.agent.wait_served(&old, ifindex)?;
    own_identity(&old)?;
    cloud.nova.take_requests();

    cloud.chassis.unplug(&old)?;
    cloud.chassis.stop_tap(&old)?;
    let port = Port { tap: old.port.tap.clone(), ..Port::new(&blue)? };
    assert_eq!(port.address, old.port.address);
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    let new = cloud.chassis.boot(port)?;
    new.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
    assert_ne!(cloud.chassis.ifindex(&new)?, ifindex);

    // From its first moment on it asks and asks; the first answer and all others must be its own.
    assert!(matches!(attempt(&new), Err(Error::Timeout)), "a tap that is not plugged was answered");
    cloud.chassis.plug(&new)?;
    first_answer(&new)?;
    own_identity(&new)?;
    assert!(
        cloud
            .nova
            .take_requests()
            .iter()
            .all(|request| { request.header("X-Instance-ID") == [new.port.instance.as_str()] })
    );
    Ok(())
}

#[test]
fn an_inventory_gives_a_tap_to_another_instance() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [old, other] = cloud.overlapping_guests()?;
    own_identity(&old)?;
    let mut before = old.connect()?;
    is_identity_of(&old.port, &before.request("GET", META_DATA, &[], b"")?)?;

    // The same device, the same addresses, another instance: connections of the old one do not carry over.
    let heir = Port {
        instance: other.port.instance.clone(),
        project: other.port.project.clone(),
        ..old.port.clone()
    };
    cloud.chassis.write_inventory(&[&heir])?;
    cloud.agent.reload()?;
    until("the tap is the heir's", Duration::from_secs(30), || {
        let ports = cloud.agent.ports()?;
        ensure!(
            ports
                .iter()
                .any(|status| status.instance.as_ref() == Some(&heir.instance) && status.tap == heir.tap)
        );
        Ok(())
    })?;
    is_identity_of(&heir, &old.get(META_DATA)?)?;
    if let Ok(response) = before.request("GET", META_DATA, &[], b"") {
        assert!(is_identity_of(&old.port, &response).is_err(), "an old connection kept the old identity");
    }

    // A new device under the old name.
    cloud.chassis.stop_tap(&old)?;
    cloud.chassis.start_tap(&old, Path::OnLink)?;
    cloud.agent.reload()?;
    until("the new device is served", Duration::from_secs(30), || {
        let (ports, ifindex) = (cloud.agent.ports()?, cloud.chassis.ifindex(&old)?);
        ensure!(ports.iter().any(|status| status.ifindex == ifindex && status.state == "known"), "{ports:?}");
        Ok(())
    })?;
    is_identity_of(&heir, &old.get(META_DATA)?)
}

/// An agent that was stopped for a moment hears of some devices only, which the kernel tells it, and of others never.
#[test]
fn devices_that_netlink_did_not_tell_of_are_found() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let network = cloud.chassis.add_network("green")?;
    let ports = (0..DEVICES).map(|_| Port::new(&network)).collect::<Result<Vec<_>>>()?;
    cloud.chassis.write_inventory(&ports.iter().collect::<Vec<_>>())?;
    cloud.agent.reload()?;
    cloud.agent.signal(Signal::SIGSTOP)?;
    for Port { tap, .. } in &ports {
        cloud.chassis.host().ip(format!("link add {tap} type veth peer name p{}", &tap[3..]))?;
    }
    cloud.agent.signal(Signal::SIGCONT)?;
    until("all taps are served", Duration::from_secs(120), || {
        let statuses = cloud.agent.ports()?;
        let served = statuses.iter().filter(|status| status.reason.is_empty()).count();
        ensure!(served == ports.len(), "{served} of {}", ports.len());
        Ok(())
    })?;
    cloud.agent.wait_logged(&["netlink lost messages"]).context("the kernel kept all of them")?;
    Ok(())
}

/// A tenant can write the device_id of a port, but not what the hypervisor plugged.
#[test]
fn a_port_that_claims_another_instance_is_nobody() -> Result<()> {
    let cloud = Cloud::on(Lab::start()?, &Options { hold: HOLD, ..Options::default() })?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let victim = cloud.add_guest(&network)?;
    let port = Port::new(&network)?;
    cloud.chassis.create_port(&Port { instance: victim.port.instance.clone(), ..port.clone() })?;
    cloud.nova.add_instance(&port);
    let guest = cloud.chassis.boot(port)?;
    cloud.chassis.plug(&guest)?;
    guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
    assert_nobody(&guest.get(META_DATA)?);
    assert_eq!(cloud.nova.take_requests().len(), 0);
    let ports = cloud.agent.ports()?;
    assert!(
        ports.iter().any(|status| status.tap == guest.port.tap && status.state == "conflict"),
        "{ports:?}"
    );
    cloud.agent.wait_logged(&["ERROR", "contradictory identity", &guest.port.id])?;
    own_identity(&victim)
}

/// The bound is loose because the machine may be busy; the number is printed for those who look.
#[test]
fn a_plugged_guest_is_served_soon() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    for _ in 0..3 {
        let port = Port::new(&network)?;
        cloud.nova.add_instance(&port);
        cloud.chassis.create_port(&port)?;
        let guest = cloud.chassis.boot(port)?;
        guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
        let plugging = Instant::now();
        cloud.chassis.plug(&guest)?;
        let plugged = Instant::now();
        first_answer(&guest)?;
        println!(
            "served {:?} after ovs-vsctl returned, {:?} after it was started",
            plugged.elapsed(),
            plugging.elapsed()
        );
        assert!(plugged.elapsed() < Duration::from_secs(5), "served after {:?}", plugged.elapsed());
    }
    Ok(())
}

fn assert_nobody(response: &Response) {
    assert_eq!(response.status, 503, "{response:?}");
    assert_eq!(response.header("Retry-After"), Some("1"), "{response:?}");
}
