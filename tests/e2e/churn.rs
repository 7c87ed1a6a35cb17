//! Taps are deleted and made again under the same name, with the same ifindex and the same addresses, for one tenant
//! after another: nobody is ever answered as anybody else, and no answer arrives at the next tenant.

use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of},
    cloud::{Chassis as _, Cloud},
    http::{Connection, request_head},
    kernel,
    port::{Network, Port},
    stage::Stage,
    station::Station,
    traffic::meanwhile,
    wait::until,
};

/// Taps that are replaced at a time.
const TAPS: usize = 32;
const FIRST_IFINDEX: u32 = 5000;
/// All tenants connect from here, so that nothing but the tap tells their connections apart.
const SOURCE_PORT: u16 = 40_000;
/// Most attempts of a tenant to connect.
const ATTEMPTS: u16 = 3;
/// Seconds for which it goes on; another number by METADATA_TEST_CHURN.
const TIME: u64 = 30;

#[test]
fn the_next_tenant_hears_nothing_of_the_last_with_links() -> Result<()> {
    if !kernel::has_tcx()? {
        println!("this kernel has no TCX: there are filters only");
        return Ok(());
    }
    churn("tcx")
}

#[test]
fn the_next_tenant_hears_nothing_of_the_last_with_filters() -> Result<()> {
    churn("clsact")
}

fn churn(attach: &str) -> Result<()> {
    let more = vec![("metadata_ebpf", format!("attach = {attach}"))];
    let cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let neighbours = cloud.overlapping_guests()?;
    let network = cloud.chassis.add_network("green")?;
    let taps = (0..TAPS).map(|_| Ok(Port::new(&network)?.tap)).collect::<Result<Vec<_>>>()?;
    let time = env::var("METADATA_TEST_CHURN").ok().and_then(|text| text.parse().ok()).unwrap_or(TIME);
    let deadline = Instant::now() + Duration::from_secs(time);

    let cloud = &cloud;
    let (rounds, answers) = meanwhile(&neighbours, || {
        let mut round = 0;
        while round < 3 || Instant::now() < deadline {
            round += 1;
            let tenants = tenants(cloud, &taps, &network, &neighbours[0].port)?;
            introduce(cloud, &tenants, &neighbours.each_ref().map(|guest| &guest.port), round)?;
            thread::scope(|scope| {
                let ask = |(tenant, ifindex)| scope.spawn(move || ask(cloud, tenant, ifindex, round));
                let asking: Vec<_> = tenants.iter().zip(FIRST_IFINDEX..).map(ask).collect();
                asking
                    .into_iter()
                    .try_for_each(|thread| thread.join().ok().context("a tenant's thread panicked")?)
            })
            .with_context(|| format!("in round {round}"))?;
        }
        Ok(round)
    })?;

    let reuses = (rounds as usize - 1) * TAPS;
    let counters = cloud.agent.settled_counters()?;
    println!(
        "{attach}: {reuses} times a tap's name and ifindex were used again; neighbours meanwhile: {answers:?}"
    );
    for (name, count) in counters.iter().filter(|(_, count)| **count > 0) {
        println!("{attach}: {name} {count}");
    }
    // Each tenant was somebody new to the datapath, and nobody's frames were taken for an older assignment's.
    ensure!(counters["source_learned"] >= (reuses + TAPS + 2) as u64, "{counters:?}");
    Ok(())
}

/// An instance for each tap, all with the same address and MAC.
fn tenants(cloud: &Cloud<Stage>, taps: &[String], network: &Network, like: &Port) -> Result<Vec<Port>> {
    let tenant = |tap: &String| -> Result<Port> {
        let port = Port { tap: tap.clone(), address: like.address, ..Port::new(network)? };
        cloud.nova.add_instance(&port);
        Ok(port)
    };
    taps.iter().map(tenant).collect()
}

/// Puts the tenants into the inventory, and waits until the agent has read it: one neighbour's fixed address says so.
fn introduce(cloud: &Cloud<Stage>, tenants: &[Port], neighbours: &[&Port; 2], round: u32) -> Result<()> {
    let told = Port { address: Ipv4Addr::from_bits(0x0a00_0000 + round), ..neighbours[0].clone() };
    let ports: Vec<&Port> = [&told, neighbours[1]].into_iter().chain(tenants).collect();
    cloud.chassis.write_inventory(&ports)?;
    cloud.agent.reload()?;
    until("the agent has read the inventory", Duration::from_secs(60), || {
        let ports = cloud.agent.ports()?;
        let read = ports
            .iter()
            .any(|status| status.port == told.id && status.fixed_ips == [IpAddr::V4(told.address)]);
        ensure!(read, "{ports:?}");
        Ok(())
    })
}

/// From its first moment on the tenant asks; it hears who it is, asks once more, and is gone before the answer.
///
/// A tap that is made under the name and the index of the one before is taken for that one until netlink tells. What was
/// connected meanwhile is reset then, and the tenant connects again, as anybody does.
fn ask(cloud: &Cloud<Stage>, tenant: &Port, ifindex: u32, round: u32) -> Result<()> {
    let mut station = Station::plug(cloud.chassis.host(), tenant, ifindex)?;
    for attempt in 0..ATTEMPTS {
        // Another tenant's segments would not be in this tenant's window.
        let first = round.wrapping_mul(0x0100_0000);
        match ask_once(&mut station, tenant, SOURCE_PORT + attempt, first) {
            Err(error) if attempt + 1 < ATTEMPTS && was_reset(&error) => {}
            result => return result,
        }
    }
    Ok(())
}

fn ask_once(station: &mut Station, tenant: &Port, source_port: u16, first: u32) -> Result<()> {
    station.connect(source_port, first).context("connecting")?;
    let mut connection = Connection::new(station);
    is_identity_of(tenant, &connection.request("GET", META_DATA, &[], b"")?)?;
    connection.send(&request_head("GET", META_DATA, &[], 0))?;
    Ok(())
}

fn was_reset(error: &anyhow::Error) -> bool {
    let is_reset = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(metadata_tests::http::Error::Reset))
            || cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    };
    error.chain().any(is_reset)
}
