//! A guest that floods, by a tap as a hypervisor makes it: no neighbour is refused, and the guest itself keeps what is its own.

use std::{
    net::Ipv4Addr,
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::{Options, PortStatus, service_namespace},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::Cloud,
    flood::{self, Flood},
    guest::Guest,
    netns::Namespace,
    port::Port,
    stage::{Nic, Path, Stage},
    tap::BareTap,
    traffic::{Answers, meanwhile},
    wait::until,
};

const TIME: Duration = Duration::from_millis(1500);
const PROCESSORS: NonZeroUsize = NonZeroUsize::new(2).expect("two is not zero");
/// Longer than a source without a connection keeps its place.
const LONG: Duration = Duration::from_secs(7);
/// A SYN that was lost is sent again after a second.
const LOST: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(15);

fn status(cloud: &Cloud<Stage>, port: &Port) -> Result<PortStatus> {
    let ports = cloud.agent.ports()?;
    ports.into_iter().find(|status| status.port == port.id).context("the port is not listed")
}

fn count(status: &PortStatus, outcome: &str) -> u64 {
    status.frames.get(outcome).copied().unwrap_or(0)
}

fn made_up(number: u64) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0001 + (number % 4096) as u32)
}

/// The flooding guest's tap, and a guest that asks.
fn neighbours(options: &Options) -> Result<(Cloud<Stage>, BareTap, Guest)> {
    let cloud = Cloud::on(Stage::start_with(Nic::Tap)?, options)?;
    let flooding = cloud.chassis.add_network("flooding")?;
    let tap = cloud.chassis.add_tap_on(&flooding, PROCESSORS)?;
    let guest = cloud.chassis.add_guest(&cloud.chassis.add_network("asking")?, Path::OnLink)?;
    cloud.chassis.write_inventory(&[&tap.port, &guest.port])?;
    cloud.nova.add_instance(&guest.port);
    cloud.agent.wait_port_served(&tap.port, tap.ifindex)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    own_identity(&guest)?;
    Ok((cloud, tap, guest))
}

/// Two processors write frames of one kind after another, while a neighbour asks on connections of its own.
#[test]
fn no_neighbour_is_refused() -> Result<()> {
    let (cloud, tap, guest) = neighbours(&Options::default())?;
    let guests = [guest];
    for flood in Flood::ALL {
        let (before, sent_again) = (status(&cloud, &tap.port)?, guests[0].netns.repeated_syns()?);
        let ((_, answers), extent) = flood::meanwhile(&tap, flood, PROCESSORS.get(), || {
            meanwhile(&guests, || {
                thread::sleep(TIME);
                Ok(())
            })
        })
        .with_context(|| flood.name())?;
        let after = status(&cloud, &tap.port)?;
        let [Answers { count: answered, slowest, .. }] = &answers[..] else { unreachable!("one guest asks") };
        println!(
            "{}: {} frames, {answered} answers, the slowest after {slowest:?}",
            flood.name(),
            extent.frames
        );
        let more = |outcome: &str| count(&after, outcome) - count(&before, outcome);
        let seconds = (extent.time / PROCESSORS.get() as u32).as_secs() + 1;
        match flood {
            Flood::Syn | Flood::SynSpoofed => {
                ensure!(more("connections_limited") > extent.frames / 2, "{after:?}");
                ensure!(more("redirected") <= 200 + 100 * seconds, "{after:?}");
            }
            Flood::AckSpoofed => {
                ensure!(more("answers_limited") + more("sources_exhausted") > extent.frames / 2, "{after:?}");
            }
            Flood::Ack | Flood::Repeated => ensure!(more("redirected") > extent.frames / 2, "{after:?}"),
            Flood::Udp | Flood::SynPast | Flood::UdpPast => {
                // The service may still repeat its half of a handshake.
                let outcomes = after.frames.keys().filter(|outcome| *outcome != "replied");
                let counted: Vec<_> = outcomes.filter(|outcome| more(outcome.as_str()) > 0).collect();
                ensure!(counted.is_empty(), "frames that are not ours were counted: {counted:?}");
            }
        }
        // What is shared by all has room for the neighbour's own.
        ensure!(guests[0].netns.repeated_syns()? == sent_again, "{}: a SYN was lost", flood.name());
    }
    let own = status(&cloud, &guests[0].port)?;
    let lost: Vec<_> = ["connections_limited", "answers_limited", "sources_exhausted", "source_reclaimed"]
        .into_iter()
        .filter(|outcome| count(&own, outcome) > 0)
        .collect();
    assert!(lost.is_empty() && count(&own, "source_learned") == 1, "{own:?}");
    own_identity(&guests[0])
}

/// Connections that nobody completes fill the listeners' queues, where limits let that many through: TCP goes on with cookies.
#[test]
fn full_queues_of_half_open_connections_refuse_nobody() -> Result<()> {
    // One listener of each family.
    let more = ["connection_rate = 20000", "connection_burst = 20000", "workers = 1"];
    let more = more.map(|line| ("metadata_ebpf", line.to_owned())).to_vec();
    let (cloud, tap, guest) = neighbours(&Options { more, ..Options::default() })?;
    let (guests, sent_again) = ([guest], |guests: &[Guest; 1]| guests[0].netns.repeated_syns());
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    let before = sent_again(&guests)?;
    let ((_, answers), _) = flood::meanwhile(&tap, Flood::Syn, PROCESSORS.get(), || {
        until("the queues are full", SOON, || {
            ensure!(service.tcp_extension("TCPReqQFullDoCookies")? > 0, "no cookie was sent");
            Ok(())
        })?;
        meanwhile(&guests, || {
            thread::sleep(TIME);
            Ok(())
        })
    })?;
    println!("{} answers, {} cookies", answers[0].count, service.tcp_extension("SyncookiesSent")?);
    assert_eq!(sent_again(&guests)?, before, "a SYN was lost");
    Ok(())
}

/// A guest makes up more addresses than it has places for: its own address keeps its place and its connection, and gets new ones.
#[test]
fn made_up_addresses_cost_the_guest_none_of_its_own() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [flooding, other] = cloud.overlapping_guests()?;
    let mut kept = flooding.connect()?;
    is_identity_of(&flooding.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    let over = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| flooding.flood_as(&over, made_up));
        thread::sleep(LONG);
        let asked = own_identity(&other);
        over.store(true, Ordering::Relaxed);
        let sent = flood.join().ok().context("the flood panicked")??;
        asked.map(|()| sent)
    })?;
    let status = status(&cloud, &flooding.port)?;
    println!("{sent} SYNs: {:?}", status.frames);
    assert!(
        count(&status, "connections_limited") > 0 && count(&status, "sources_exhausted") > 0,
        "{status:?}"
    );
    is_identity_of(&flooding.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    let learned = count(&status, "source_learned");
    let started = Instant::now();
    own_identity(&flooding)?;
    assert!(started.elapsed() < 3 * LOST, "{:?}", started.elapsed());
    // Its own address was known all the time.
    assert_eq!(count(&self::status(&cloud, &flooding.port)?, "source_learned"), learned);
    Ok(())
}
