//! Operations of Nova on a machine between its boot and its end, as it does them to Open vSwitch and Neutron to OVN:
//! who is answered then, as whom, and by which chassis.

use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, attempt, first_answer, is_identity_of, own_identity, was_signed_for},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    http::{Connection, Error, request_head},
    nova,
    ovn::{HOSTNAME, Lab, Routing},
    port::{METADATA_PORT, Port, uuid},
    traffic::meanwhile,
    two_chassis::{THERE, TwoChassis},
    upstream::{Script, Upstream},
    wait::until,
};
use nix::{
    libc::linger,
    sys::socket::{setsockopt, sockopt},
};

const SOON: Duration = Duration::from_secs(30);
/// Long enough for a SYN and its first retransmission.
const NO_ANSWER: Duration = Duration::from_secs(2);
/// Sooner than a client's patience ends, and later than any machine is busy.
const AT_ONCE: Duration = Duration::from_secs(10);
/// MAC address for the metadata port's address, for a machine that does not ask: it is the tap's frames that are
/// served.
const NEXT_HOP: &str = "fa:16:3e:aa:bb:cc";
const SOURCE_PORT: u16 = 40_000;

/// The machine has booted: its NIC has an address, and it asks from its first moment on.
fn boots(guest: &Guest) -> Result<Duration> {
    let started = Instant::now();
    guest.configure(Some((METADATA_PORT, NEXT_HOP)))?;
    first_answer(guest)?;
    Ok(started.elapsed())
}

/// A machine that was switched off forgets its connections without a word.
fn forget(connection: Connection<std::net::TcpStream>) -> Result<()> {
    setsockopt(connection.stream(), sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

/// Cold migration, which a resize is as well: the machine is off while it moves, and comes back when that is reverted.
#[test]
fn a_machine_is_migrated_cold_and_reverted() -> Result<()> {
    let site = TwoChassis::start(&Options::default())?;
    let TwoChassis { here, there, .. } = &site;
    // Another tenant's machines with the same address, on either chassis' side of the move.
    let blue = here.chassis.add_network("blue", Routing::Isolated)?;
    let stays = [site.add_guest(&blue)?];
    let red = here.chassis.add_network("red", Routing::Routed)?;
    let guest = site.add_guest(&red)?;
    ensure!(guest.port.address == stays[0].port.address);
    site.asks_here(&guest)?;

    let moved = || -> Result<()> {
        // Nova switches it off and unplugs it, Neutron binds the port to the destination, which plugs it and boots it.
        forget(guest.connect()?)?;
        here.chassis.stop_tap(&guest)?;
        here.chassis.unplug(&guest)?;
        here.agent.wait_unlisted(&guest.port)?;
        here.chassis.request_chassis(&guest.port, THERE)?;
        there.chassis.plug(&guest.port)?;
        there.chassis.start_tap(&guest)?;
        println!("migrated cold: answered after {:?}", boots(&guest)?);
        there.agent.wait_served(&guest, there.chassis.ifindex(&guest.port)?)?;
        site.asks_there(&guest)?;
        // Confirmed: the source unplugs it once more, and nothing changes.
        here.chassis.unplug(&guest)?;
        site.asks_there(&guest)?;

        // Reverted.
        there.chassis.stop_tap(&guest)?;
        there.chassis.unplug(&guest.port)?;
        here.chassis.request_chassis(&guest.port, HOSTNAME)?;
        here.chassis.plug(&guest)?;
        here.chassis.start_tap(&guest)?;
        println!("reverted: answered after {:?}", boots(&guest)?);
        here.agent.wait_served(&guest, here.chassis.ifindex(&guest)?)?;
        there.agent.wait_unlisted(&guest.port)?;
        site.asks_here(&guest)
    };
    let ((), answers) = meanwhile(&stays, moved)?;
    println!("another machine meanwhile: {answers:?}");
    Ok(())
}

/// The chassis dies, and the machine is made again elsewhere. What the dead one still has of it when it comes back serves nobody,
/// and Nova removes it.
#[test]
fn a_machine_is_evacuated_and_its_chassis_comes_back() -> Result<()> {
    let mut site = TwoChassis::start(&Options::default())?;
    let network = site.here.chassis.add_network("red", Routing::Routed)?;
    let guest = site.add_guest(&network)?;
    site.asks_here(&guest)?;
    forget(guest.connect()?)?;

    let TwoChassis { here, there, .. } = &mut site;
    here.agent.kill_both()?;
    here.chassis.kill_controller()?;
    here.chassis.kill_vswitchd()?;
    here.chassis.kill_ovs_database()?;
    here.chassis.stop_tap(&guest)?;
    ensure!(!here.chassis.binding(&guest.port, "chassis")?.is_empty(), "OVN does not know that it is dead");
    here.chassis.request_chassis(&guest.port, THERE)?;
    there.chassis.plug(&guest.port)?;
    there.chassis.start_tap(&guest)?;
    println!("evacuated: answered after {:?}", boots(&guest)?);
    there.agent.wait_served(&guest, there.chassis.ifindex(&guest.port)?)?;
    site.asks_there(&guest)?;

    let mut guests = [guest];
    let ((), answers) = meanwhile(&guests, || {
        let here = &mut site.here;
        here.chassis.start_ovs_database()?;
        here.chassis.restart_vswitchd()?;
        here.chassis.start_controller()?;
        here.agent.resume()?;
        here.agent.wait_ready()?;
        here.agent.wait_unserved(&guests[0].port.id, "there is no device")?;
        here.chassis.unplug(&guests[0])?;
        here.agent.wait_unlisted(&guests[0].port)
    })?;
    println!("while its former chassis came back: {answers:?}");
    let [guest] = &mut guests;
    site.asks_there(guest)
}

/// The chassis was only cut off, and goes on running the machine beside its copy: until Nova ends it, it is itself as well.
#[test]
fn a_machine_that_was_evacuated_and_runs_on_is_still_itself() -> Result<()> {
    let site = TwoChassis::start(&Options::default())?;
    let TwoChassis { here, there, .. } = &site;
    let network = here.chassis.add_network("red", Routing::Routed)?;
    let guests = [site.add_guest(&network)?];
    let [guest] = &guests;
    let copy = Guest::create(there.chassis.sandbox(), guest.port.clone())?;
    let changes = || here.agent.metric("metadata_ovsdb_condition_changes_total{database=\"OVN_Southbound\"}");
    let before = changes()?;
    let ((), answers) = meanwhile(&guests, || {
        here.chassis.request_chassis(&guest.port, THERE)?;
        there.chassis.plug(&copy.port)?;
        there.chassis.start_tap(&copy)?;
        boots(&copy)?;
        there.agent.wait_served(&copy, there.chassis.ifindex(&copy.port)?)?;
        until("the row that names another chassis is asked for by name", SOON, || {
            ensure!(changes()? > before);
            Ok(())
        })?;
        here.agent.wait_served(guest, here.chassis.ifindex(guest)?)?;
        own_identity(&copy)
    })?;
    println!("the one that runs on: {answers:?}");
    here.chassis.stop_tap(guest)?;
    here.chassis.unplug(guest)?;
    here.agent.wait_unlisted(&guest.port)?;
    site.asks_there(&copy)
}

/// A shelved machine is nowhere, and its port is listed where it was only until Nova offloads it.
#[test]
fn a_machine_is_shelved_and_unshelved_elsewhere() -> Result<()> {
    let site = TwoChassis::start(&Options::default())?;
    let TwoChassis { here, there, .. } = &site;
    let network = here.chassis.add_network("red", Routing::Routed)?;
    let guest = site.add_guest(&network)?;
    site.asks_here(&guest)?;
    forget(guest.connect()?)?;

    // Switched off, which leaves the row of the Interface.
    here.chassis.stop_tap(&guest)?;
    here.agent.wait_unserved(&guest.port.id, "there is no device")?;
    // Offloaded: the port is nobody's to bind, and still the instance's.
    here.chassis.unplug(&guest)?;
    here.chassis.request_chassis(&guest.port, "")?;
    for agent in [&here.agent, &there.agent] {
        agent.wait_unlisted(&guest.port)?;
    }
    until("no chassis has the port", SOON, || {
        let chassis = here.chassis.binding(&guest.port, "chassis")?;
        ensure!(chassis.is_empty(), "{chassis}");
        Ok(())
    })?;

    here.chassis.request_chassis(&guest.port, THERE)?;
    there.chassis.plug(&guest.port)?;
    there.chassis.start_tap(&guest)?;
    println!("unshelved: answered after {:?}", boots(&guest)?);
    there.agent.wait_served(&guest, there.chassis.ifindex(&guest.port)?)?;
    site.asks_there(&guest)?;
    here.agent.wait_unlisted(&guest.port)
}

/// Both unplug the port and plug it again before the machine has its new tap, sooner than anybody could have noticed; the second
/// one is another machine to Nova, with other data.
#[test]
fn a_machine_is_rebooted_hard_and_rebuilt() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    let mut before = cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    let source = SocketAddrV4::new(guest.port.address, SOURCE_PORT);
    for (operation, user_data) in [("rebooted hard", "of the first image"), ("rebuilt", "of the second one")]
    {
        // One request is answered, and one is on its way when the machine ends.
        let mut connection = guest.connect_from(source)?;
        is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        connection.send(&request_head("GET", "/latest/user-data", &[], 0))?;
        forget(connection)?;
        cloud.chassis.stop_tap(&guest)?;
        cloud.chassis.unplug(&guest)?;
        cloud.nova.set_user_data(&guest.port, user_data);
        cloud.chassis.plug(&guest)?;
        cloud.chassis.start_tap(&guest)?;
        println!("{operation}: answered after {:?}", boots(&guest)?);

        let after = cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
        ensure!((after.index, after.generation) != (before.index, before.generation), "{after:?}");
        // A new kernel begins with the same ports, and hears nothing of what the former one had asked.
        let mut connection = guest.connect_from(source)?;
        let answer = connection.request("GET", "/latest/user-data", &[], b"")?;
        ensure!((answer.status, answer.text().as_str()) == (200, user_data), "{operation}: {answer:?}");
        own_identity(&guest)?;
        forget(connection)?;
        before = after;
    }
    Ok(())
}

/// An instance with two NICs loses one, which another instance gets: the same port, MAC address and tap's name.
#[test]
fn an_interface_is_detached_and_attached_to_another_machine() -> Result<()> {
    let cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let stays = [cloud.add_guest(&network)?];
    let Port { instance, .. } = stays[0].port.clone();
    let second = Port { instance, ..Port::new(&network)? };
    let leaves = cloud.chassis.add_guest_on(second)?;
    cloud.agent.wait_served(&leaves, cloud.chassis.ifindex(&leaves)?)?;
    own_identity(&leaves)?;
    let mut kept = leaves.connect()?;
    is_identity_of(&leaves.port, &kept.request("GET", META_DATA, &[], b"")?)?;

    let ((), answers) = meanwhile(&stays, || {
        // The device goes out of the running machine, then os-vif unplugs it, then Neutron has it be nobody's.
        cloud.chassis.stop_tap(&leaves)?;
        cloud.chassis.unplug(&leaves)?;
        cloud.chassis.set_device(&leaves.port, "")?;
        cloud.chassis.request_chassis(&leaves.port, "")?;
        cloud.agent.wait_unlisted(&leaves.port)?;
        kept.stream().set_read_timeout(Some(NO_ANSWER))?;
        let old = kept.request("GET", META_DATA, &[], b"");
        ensure!(old.is_err(), "a connection of a NIC that is gone: {old:?}");

        // Nova gives it to the other machine, and that machine's kernel has never heard of it.
        let heir = Port { instance: uuid()?, ..leaves.port.clone() };
        cloud.nova.add_instance(&heir);
        cloud.chassis.set_device(&heir, &heir.instance)?;
        cloud.chassis.request_chassis(&heir, HOSTNAME)?;
        cloud.chassis.plug_port(&heir)?;
        let heir = cloud.chassis.boot(heir)?;
        println!("attached: answered after {:?}", boots(&heir)?);
        cloud.agent.wait_served(&heir, cloud.chassis.ifindex(&heir)?)?;
        own_identity(&heir)?;
        let requests = cloud.nova.take_requests().into_iter();
        let of_port = requests
            .filter(|request| request.header("X-Forwarded-For") == [heir.port.address.to_string()])
            .skip_while(|request| request.header("X-Instance-ID") == [leaves.port.instance.as_str()]);
        of_port.map(|request| was_signed_for(&heir.port, &request)).collect::<Result<Vec<_>>>().map(drop)
    })?;
    println!("the NIC that stayed meanwhile: {answers:?}");
    Ok(())
}

/// A port that is plugged is given to another instance: between what Neutron says and what the hypervisor does it is nobody's, and
/// what was connected before ends when it is the other one's.
#[test]
fn the_instance_of_a_plugged_port_changes() -> Result<()> {
    let cloud = Cloud::on(Lab::start()?, &Options { hold: 1, ..Options::default() })?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    let ifindex = cloud.chassis.ifindex(&guest)?;
    let before = cloud.agent.wait_served(&guest, ifindex)?;
    let mut kept = guest.connect()?;
    is_identity_of(&guest.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    let is_nobody = |state: &str, kept: &mut Connection<_>| -> Result<()> {
        until(&format!("the port is {state}"), SOON, || {
            let ports = cloud.agent.ports()?;
            ensure!(ports.iter().any(|port| port.port == guest.port.id && port.state == state), "{ports:?}");
            Ok(())
        })?;
        // The process that guests talk to hears of it a moment later.
        until("the guest is told so", SOON, || {
            let answer = guest.get(META_DATA)?;
            ensure!(answer.status == 503, "{answer:?}");
            Ok(())
        })?;
        cloud.nova.take_requests();
        for answer in [guest.get(META_DATA)?, kept.request("GET", META_DATA, &[], b"")?] {
            ensure!(answer.status == 503 && answer.header("Retry-After").is_some(), "{answer:?}");
        }
        let requests = cloud.nova.take_requests();
        ensure!(requests.is_empty(), "Nova was asked: {requests:?}");
        Ok(())
    };
    cloud.chassis.set_device(&guest.port, "")?;
    is_nobody("unknown", &mut kept)?;
    let heir = Port { instance: uuid()?, ..guest.port.clone() };
    cloud.nova.add_instance(&heir);
    cloud.chassis.set_device(&heir, &heir.instance)?;
    is_nobody("conflict", &mut kept)?;

    let started = Instant::now();
    cloud.chassis.plug_port(&heir)?;
    let after = cloud.agent.wait_port_served(&heir, ifindex)?;
    ensure!((after.index, after.generation) != (before.index, before.generation), "{after:?}");
    let old = kept.request("GET", META_DATA, &[], b"");
    ensure!(matches!(old, Err(Error::Reset | Error::Closed)), "what was connected before: {old:?}");
    ensure!(started.elapsed() < AT_ONCE, "after {:?}", started.elapsed());
    println!("what was connected before ended after {:?}", started.elapsed());
    is_identity_of(&heir, &guest.get(META_DATA)?)?;
    let requests = cloud.nova.take_requests();
    ensure!(requests.len() == 1, "{requests:?}");
    was_signed_for(&heir, &requests[0])
}

/// Nova's answer to a machine that is no more reaches nobody, and Nova is not kept waiting for somebody who takes it.
#[test]
fn a_machine_is_deleted_while_it_asks() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Silence)?;
    let mut asking = guest.connect_from(SocketAddrV4::new(guest.port.address, SOURCE_PORT))?;
    asking.send(&request_head("GET", META_DATA, &[], 0))?;
    until("Nova is asked", SOON, || {
        ensure!(upstream.take_requests().len() == 1);
        Ok(())
    })?;
    ensure!(upstream.open_connections() == 1, "{} connections", upstream.open_connections());

    // The hypervisor ends the machine, os-vif unplugs it, Neutron deletes the port.
    let started = Instant::now();
    forget(asking)?;
    cloud.chassis.stop_tap(&guest)?;
    cloud.chassis.unplug(&guest)?;
    cloud.chassis.delete_port(&guest.port)?;
    until("the request to Nova is given up", AT_ONCE, || {
        let open = upstream.open_connections();
        ensure!(open == 0, "{open} connections");
        Ok(())
    })?;
    println!("given up {:?} after the machine began to end", started.elapsed());
    cloud.agent.wait_unlisted(&guest.port)?;
    drop(upstream);
    cloud.nova.resume(cloud.chassis.host())?;

    // The next machine has its address, its MAC address and the name of its tap, and connects from the same port.
    let Port { tap, mac, address, .. } = guest.port.clone();
    let heir = Port { tap, mac, address, ..Port::new(&network)? };
    cloud.nova.add_instance(&heir);
    cloud.chassis.create_port(&heir)?;
    cloud.chassis.plug_port(&heir)?;
    let heir = cloud.chassis.boot(heir)?;
    ensure!(matches!(attempt(&heir), Err(Error::Io(_))), "it has no address yet");
    boots(&heir)?;
    let mut connection = heir.connect_from(SocketAddrV4::new(address, SOURCE_PORT))?;
    is_identity_of(&heir.port, &connection.request("GET", META_DATA, &[], b"")?).context("the next machine")
}
