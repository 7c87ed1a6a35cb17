//! The agent and the databases are restarted; guests do not notice more than a delay.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use metadata_ebpf::map::LAYOUT;
use metadata_tests::{
    agent::{Agent, Options, service_namespace},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::Guest,
    http::Error,
    netns::Namespace,
    ovn::{Lab, Routing},
    port::{METADATA_PORT, Port, uuid},
    stage::Path,
    wait::until,
};

/// Long enough for a SYN and its first retransmission.
const GAP: Duration = Duration::from_millis(1500);

#[test]
fn the_agent_is_stopped_and_started() -> Result<()> {
    survives(Agent::stop)
}

#[test]
fn the_agent_is_killed_and_started() -> Result<()> {
    survives(Agent::kill_both)
}

fn survives(end: fn(&mut Agent) -> Result<()>) -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let guests = cloud.overlapping_guests()?;
    guests.iter().try_for_each(own_identity)?;
    let network = cloud.chassis.add_network("green", Routing::Isolated)?;

    for _ in 0..2 {
        end(&mut cloud.agent)?;
        for guest in &guests {
            let gap = guest.connect_with(None, GAP).err();
            assert!(matches!(gap, Some(Error::Timeout)), "a connection while the agent was away: {gap:?}");
        }
        // One that was plugged while the agent was away.
        let newcomer = cloud.add_guest(&network)?;
        cloud.nova.take_requests();
        thread::scope(|scope| -> Result<()> {
            let waiting = guests.each_ref().map(|guest| scope.spawn(|| connected_in_the_gap(guest)));
            for guest in &guests {
                until("the guest connects", Duration::from_secs(30), || {
                    ensure!(guest.netns.is_connecting(80)?);
                    Ok(())
                })?;
            }
            cloud.agent.resume()?;
            for guest in waiting {
                guest.join().ok().context("the guest's thread panicked")??;
            }
            Ok(())
        })?;
        cloud.agent.wait_ready()?;
        cloud.agent.wait_served(&newcomer, cloud.chassis.ifindex(&newcomer)?)?;
        own_identity(&newcomer)?;
        guests.iter().try_for_each(own_identity)?;
    }
    assert!(cloud.agent.counter("refusal_hidden")? > 0);
    assert_eq!(cloud.agent.counter("stale_tag")?, 0);
    // The maps were adopted, not made anew: two old guests and two newcomers, each learned once.
    assert_eq!(cloud.agent.counter("source_learned")?, 4);
    Ok(())
}

/// The SYN leaves while nobody listens; only a retransmission can be accepted.
fn connected_in_the_gap(guest: &Guest) -> Result<()> {
    let mut connection = guest.connect_with(None, Duration::from_secs(30))?;
    is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)
}

#[test]
fn addresses_resolve_while_the_agent_is_away() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [on_link, _] = cloud.overlapping_guests()?;
    own_identity(&on_link)?;
    cloud.agent.kill_both()?;
    on_link.netns.ip("neigh flush dev eth0")?;
    let gap = on_link.connect_with(None, GAP).err();
    assert!(matches!(gap, Some(Error::Timeout)), "a connection while the agent was away: {gap:?}");
    assert!(on_link.netns.ip("neigh show 169.254.169.254")?.contains("lladdr"));
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    own_identity(&on_link)
}

/// A successor whose maps have another layout cannot adopt its predecessor's: it starts with its own, puts its programs
/// in place of the former ones, and removes those, also from a tap that is nobody's any more.
#[test]
fn an_agent_of_another_layout_is_succeeded() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [red, blue] = cloud.overlapping_guests()?;
    let left = cloud.chassis.add_guest(&cloud.chassis.add_network("left")?, Path::OnLink)?;
    cloud.nova.add_instance(&left.port);
    cloud.chassis.write_inventory(&[&red.port, &blue.port, &left.port])?;
    cloud.agent.reload()?;
    cloud.agent.wait_served(&left, cloud.chassis.ifindex(&left)?)?;
    // Made again, so that the successor gives the index that blue has now to red.
    cloud.chassis.stop_tap(&red)?;
    cloud.agent.wait_gone(&red.port.tap)?;
    cloud.chassis.start_tap(&red, Path::OnLink)?;
    cloud.agent.wait_served(&red, cloud.chassis.ifindex(&red)?)?;
    [&red, &blue, &left].into_iter().try_for_each(own_identity)?;

    cloud.agent.kill_both()?;
    cloud.chassis.write_inventory(&[&red.port, &blue.port])?;
    let pins = cloud.agent.run_dir().join("bpf");
    let [own, other] = [LAYOUT, LAYOUT + 1].map(|layout| format!("layout-{layout}"));
    fs::rename(pins.join(&own), pins.join(&other))?;
    let host = cloud.chassis.host();
    for guest in [&red, &blue, &left] {
        ensure!(programs(host, &guest.port.tap)? == 1, "{} lost its program", guest.port.tap);
    }
    thread::scope(|scope| -> Result<()> {
        let waiting = [&red, &blue].map(|guest| scope.spawn(|| connected_in_the_gap(guest)));
        for guest in [&red, &blue] {
            until("the guest connects", Duration::from_secs(30), || {
                ensure!(guest.netns.is_connecting(80)?);
                Ok(())
            })?;
        }
        cloud.agent.resume()?;
        waiting.into_iter().try_for_each(|guest| guest.join().ok().context("the guest's thread panicked")?)
    })?;
    cloud.agent.wait_ready()?;
    for guest in [&red, &blue] {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        own_identity(guest)?;
    }
    // The kernel removes a link a moment after its pin.
    for (device, expected) in
        [(&*red.port.tap, 1), (&*blue.port.tap, 1), (&*left.port.tap, 0), ("metadata0", 1)]
    {
        until("the successor's programs are alone", Duration::from_secs(30), || {
            let found = programs(cloud.chassis.host(), device)?;
            ensure!(found == expected, "{device} has {found} programs, not {expected}");
            Ok(())
        })?;
    }
    // Both sources were learned by maps that knew none.
    assert_eq!(cloud.agent.counter("source_learned")?, 2);
    let folders: Vec<_> = fs::read_dir(&pins)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(
        folders.iter().any(|name| *name == *own) && !folders.iter().any(|name| *name == *other),
        "{folders:?}"
    );
    Ok(())
}

/// Number of programs that a device has on its ingress, by either kind of attachment.
fn programs(host: &Namespace, device: &str) -> Result<usize> {
    // A kernel without TCX refuses the question.
    let links = host.run(|| SchedClassifier::query_tcx(device, TcAttachType::Ingress))?;
    let filters = run(host.command("tc")?.words(format!("filter show dev {device} ingress")))?;
    Ok(links.map_or(0, |(_, programs)| programs.len()) + filters.matches("handle 0xa9fe").count())
}

#[test]
fn a_clean_up_leaves_nothing() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let guests = cloud.overlapping_guests()?;
    guests.iter().try_for_each(own_identity)?;
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    assert!(service.path().exists());
    cloud.agent.stop()?;
    cloud.agent.clean_up()?;
    assert!(!service.path().exists());
    assert!(!cloud.chassis.host().ip("-o link")?.contains("prog/"), "a program is left");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    assert!(!mounts.contains(&cloud.chassis.sandbox().dir().display().to_string()), "{mounts}");
    // Nobody hides that there is no service any more; nobody answers either.
    let gone = guests[0].connect_with(None, GAP).err();
    assert!(matches!(gone, Some(Error::Unreachable | Error::Timeout)), "{gone:?}");
    cloud.agent.clean_up()
}

#[test]
fn the_southbound_is_restarted() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let guests = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Routed)?;
    let open = guests.each_ref().map(Guest::connect);
    cloud.chassis.kill_southbound()?;
    guests.iter().try_for_each(own_identity)?;
    cloud.chassis.start_southbound()?;
    let newcomer = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&newcomer, cloud.chassis.ifindex(&newcomer)?)?;
    own_identity(&newcomer)?;
    guests.iter().try_for_each(own_identity)?;
    for (connection, guest) in open.into_iter().zip(&guests) {
        is_identity_of(&guest.port, &connection?.request("GET", META_DATA, &[], b"")?)
            .context("on a connection from before")?;
    }
    Ok(())
}

/// Identities that were known are remembered, so the Southbound is not needed for guests that were there before.
#[test]
fn the_agent_is_restarted_while_the_southbound_is_away() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let guests = cloud.overlapping_guests()?;
    guests.iter().try_for_each(|guest| cloud.agent.wait_remembered(guest))?;
    cloud.chassis.kill_southbound()?;
    cloud.agent.kill_both()?;
    cloud.agent.resume()?;
    guests.iter().try_for_each(own_identity)?;
    cloud.chassis.start_southbound()?;
    cloud.agent.wait_ready()?;
    guests.iter().try_for_each(own_identity)
}

/// Identities that are remembered are of use only while the hypervisor says the same: neither a port that moved to
/// another instance nor a tap that got another port is answered as the old one.
#[test]
fn what_is_remembered_is_not_given_to_others() -> Result<()> {
    let mut cloud = Cloud::on(Lab::start()?, &Options { hold: 2, ..Options::default() })?;
    let old = cloud.overlapping_guests()?;
    old.iter().try_for_each(|guest| cloud.agent.wait_remembered(guest))?;
    cloud.chassis.kill_southbound()?;
    cloud.agent.kill_both()?;
    cloud.nova.take_requests();

    let mut heirs = Vec::new();
    for (guest, port) in old.iter().zip([
        Port { instance: uuid()?, ..old[0].port.clone() },
        Port { id: uuid()?, instance: uuid()?, ..old[1].port.clone() },
    ]) {
        cloud.chassis.unplug(guest)?;
        cloud.chassis.stop_tap(guest)?;
        let heir = cloud.chassis.boot(port)?;
        heir.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
        cloud.chassis.plug(&heir)?;
        heirs.push(heir);
    }
    cloud.agent.resume()?;
    for heir in &heirs {
        assert_eq!(heir.get(META_DATA)?.status, 503);
    }
    assert_eq!(cloud.nova.take_requests().len(), 0);
    Ok(())
}

#[test]
fn the_ovs_database_is_restarted() -> Result<()> {
    let mut cloud = Cloud::with_ovn()?;
    let guests = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green", Routing::Routed)?;
    // Without its database the userspace datapath forwards nothing, so next hops must be resolved before.
    guests.iter().try_for_each(own_identity)?;
    cloud.chassis.kill_ovs_database()?;
    guests.iter().try_for_each(own_identity)?;
    cloud.chassis.start_ovs_database()?;
    let newcomer = cloud.add_guest(&network)?;
    cloud.agent.wait_served(&newcomer, cloud.chassis.ifindex(&newcomer)?)?;
    own_identity(&newcomer)?;
    guests.iter().try_for_each(own_identity)?;
    Ok(())
}

#[test]
fn two_agents_share_a_machine() -> Result<()> {
    let clouds = [Cloud::with_inventory()?, Cloud::with_inventory()?];
    let guests = [clouds[0].overlapping_guests()?, clouds[1].overlapping_guests()?];
    assert_ne!(clouds[0].chassis.host().name(), clouds[1].chassis.host().name());
    for _ in 0..10 {
        guests.iter().flatten().try_for_each(own_identity)?;
    }
    Ok(())
}
