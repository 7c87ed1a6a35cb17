//! Metadata over IPv6: the same guests, the same identities, on networks that have no IPv6 subnet at all.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of, own_identity, was_signed_for},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::{Generation, Guest, METADATA_V6 as METADATA},
    stage::Stage,
    wait::until,
};

/// Timeout of duplicate address detection.
const DETECTION: Duration = Duration::from_secs(60);
const SERVICE_MAC: &str = "02:00:a9:fe:a9:fe";

fn own_identity_v6(guest: &Guest) -> Result<()> {
    let response = guest.connect_v6()?.request("GET", META_DATA, &[("Connection", "close")], b"")?;
    is_identity_of(&guest.port, &response)
}

#[test]
fn both_families_have_one_identity() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let guests = cloud.overlapping_guests()?;
    for (guest, generation) in guests.iter().zip([Generation::Eui64, Generation::Random]) {
        own_identity(guest)?;
        guest.enable_ipv6(generation)?;
        cloud.nova.take_requests();
        own_identity_v6(guest)?;
        let requests = cloud.nova.take_requests();
        ensure!(requests.len() == 1, "{requests:?}");
        // The port has no IPv6 address: Nova is told the one it has.
        was_signed_for(&guest.port, &requests[0])?;
    }
    let counters = cloud.agent.settled_counters()?;
    ensure!(counters["nd_answered"] >= 2, "{counters:?}");
    ensure!(counters["unknown_port"] == 0 && counters["service_other"] == 0, "{counters:?}");
    Ok(())
}

/// Nova is told the port's address of the family that the guest used, if it has one.
#[test]
fn a_port_with_both_families_is_forwarded_for_the_one_used() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    guest.enable_ipv6(Generation::Random)?;
    let inventory = cloud.chassis.sandbox().path("inventory.toml");
    let own = format!("\"{}\"", guest.port.address);
    let both = fs::read_to_string(&inventory)?.replacen(&own, &format!("{own}, \"fd00::5\""), 1);
    fs::write(&inventory, both)?;
    cloud.agent.reload()?;
    until("the agent knows both", DETECTION, || {
        let ports = cloud.agent.ports()?;
        let port = ports.iter().find(|status| status.port == guest.port.id).context("it is gone")?;
        ensure!(port.fixed_ips.len() == 2, "{port:?}");
        Ok(())
    })?;
    is_identity_of(&guest.port, &guest.get(META_DATA)?)?;
    is_identity_of(&guest.port, &guest.connect_v6()?.request("GET", META_DATA, &[], b"")?)?;
    let requests = cloud.nova.take_requests();
    let told: Vec<_> = requests.iter().map(|request| request.header("X-Forwarded-For")).collect();
    assert_eq!(told, [[guest.port.address.to_string()], ["fd00::5".to_owned()]]);
    Ok(())
}

/// Whoever has used up one family's share has used up the other's.
#[test]
fn both_families_count_together() -> Result<()> {
    let more = vec![
        ("metadata_ebpf", "request_rate = 1".to_owned()),
        ("metadata_ebpf", "request_burst = 8".to_owned()),
    ];
    let cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let [guest, other] = cloud.overlapping_guests()?;
    guest.enable_ipv6(Generation::Random)?;
    guest.netns.ip("route replace 169.254.169.254 dev eth0")?;
    for _ in 0..4 {
        let v4 = guest.get(META_DATA)?;
        is_identity_of(&guest.port, &v4)?;
        own_identity_v6(&guest)?;
    }
    // On a slow machine there may be another one by now, of either family.
    until("both are refused", DETECTION, || {
        let v4 = guest.get(META_DATA)?;
        let v6 = guest.connect_v6()?.request("GET", META_DATA, &[("Connection", "close")], b"")?;
        ensure!((v4.status, v6.status) == (503, 503), "{} and {}", v4.status, v6.status);
        Ok(())
    })?;
    own_identity(&other)
}

#[test]
fn a_large_answer_arrives_whole() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    guest.enable_ipv6(Generation::Eui64)?;
    let user_data: Vec<u8> = (0..200_000_u32).map(|index| (index * 7 % 251) as u8).collect();
    cloud.nova.set_user_data(&guest.port, user_data.clone());
    for offloads in ["off", "on"] {
        run(guest.netns.command("ethtool")?.words(format!("-K eth0 tx {offloads} rx {offloads}")))?;
        let response =
            guest.connect_v6()?.request("GET", "/latest/user-data", &[("Connection", "close")], b"")?;
        ensure!(response.body == user_data, "offloads {offloads}: {} bytes", response.body.len());
    }
    let wrong = guest.netns.tcp_statistic("InCsumErrors")?;
    ensure!(wrong == 0, "{wrong} segments had a wrong checksum");
    Ok(())
}

#[test]
fn the_address_cannot_be_taken() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [thief, other] = cloud.overlapping_guests()?;
    for guest in [&thief, &other] {
        guest.enable_ipv6(Generation::Eui64)?;
    }
    thief.netns.ip(format!("addr add {METADATA}/64 dev eth0"))?;
    until("duplicate address detection fails", DETECTION, || {
        let addresses = thief.netns.ip("-6 -o addr show dev eth0")?;
        ensure!(addresses.contains("dadfailed"), "{addresses:?}");
        Ok(())
    })?;
    thief.netns.ip(format!("addr del {METADATA}/64 dev eth0"))?;
    own_identity_v6(&thief)?;
    own_identity_v6(&other)?;
    let entry = other.netns.ip(format!("-6 -o neigh show {METADATA}"))?;
    ensure!(entry.contains(SERVICE_MAC), "{entry:?}");
    Ok(())
}

#[test]
fn echo_is_answered_over_both_families() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    run(guest.netns.command("busybox")?.words("ping -c 3 -W 2 -s 1000 169.254.169.254"))?;
    guest.enable_ipv6(Generation::Eui64)?;
    run(guest.netns.command("busybox")?.words(format!("ping6 -c 3 -W 2 -s 1000 -I eth0 {METADATA}")))?;
    let answered = cloud.agent.counter("echo_answered")?;
    ensure!(answered == 6, "{answered}");
    Ok(())
}
