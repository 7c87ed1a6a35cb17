//! Cost of a frame that is dropped: by the program, and by the kernel where there is no program.

use std::{num::NonZeroUsize, time::Duration};

use anyhow::Result;
use metadata_ebpf::map::{FrameLimit, Port as Assigned, PortKey, PortSources};
use metadata_tests::{
    agent::Options,
    cloud::{Chassis as _, Cloud},
    flood::{Flood, time_of_a_write},
    guest::METADATA,
    netns::Namespace,
    port::{Network, Port},
    programs::{IFINDEX, Programs, Which},
    spread::Spread,
    stage::{Nic, Stage},
    tap::BareTap,
};

const TEST_RUNS: u32 = 1_000_000;
const WRITES: u32 = 200_000;
const FRAMES: u32 = 4096;
/// Header that a tap's descriptor takes before the frame.
const VIRTIO_HEADER: usize = 10;
const QUEUE: NonZeroUsize = NonZeroUsize::MIN;
/// MAC address that the frames are sent to, and that of who sends them.
const TO: &str = "02:00:00:00:00:01";
const FROM: &str = "02:00:00:00:00:02";

/// A tap, and what becomes of frames there.
struct Place {
    name: &'static str,
    flood: Flood,
    tap: BareTap,
    times: Vec<f64>,
}

pub(crate) fn measure(rounds: usize) -> Result<()> {
    let programs = by_programs(rounds)?;
    let mut cloud = Cloud::on(Stage::start_with(Nic::Tap)?, &Options::default())?;
    cloud.quiet = true;
    let served = [
        ("our program drops it: over its port's limit", Flood::Syn),
        ("our program drops it: no place for its source", Flood::AckSpoofed),
        ("our program leads it to the service, whose TCP resets it", Flood::Ack),
        ("our program lets it pass, and the bridge drops it", Flood::SynPast),
    ];
    let mut places = Vec::new();
    for (name, flood) in served {
        // The bridge would carry what passes to each other tap on it.
        let tap = cloud.chassis.add_tap_on(&cloud.chassis.add_network(name)?, QUEUE)?;
        places.push(Place { name, flood, tap, times: Vec::new() });
    }
    cloud.chassis.write_inventory(&places.iter().map(|place| &place.tap.port).collect::<Vec<_>>())?;
    for place in &places {
        cloud.nova.add_instance(&place.tap.port);
        cloud.agent.wait_port_served(&place.tap.port, place.tap.ifindex)?;
    }
    // Each has a namespace of its own, with nothing in it but what is named.
    let bridge = Namespace::create(cloud.chassis.sandbox(), "bridge")?;
    let closed = Namespace::create(cloud.chassis.sandbox(), "closed")?;
    let open = Namespace::create(cloud.chassis.sandbox(), "open")?;
    let nobody = Namespace::create(cloud.chassis.sandbox(), "nobody")?;
    let without = [
        ("no program: the bridge drops it", Flood::Syn, &bridge),
        ("no program: the host's TCP resets it", Flood::Syn, &closed),
        ("no program: the host's TCP answers it, by cookies once its queue is full", Flood::Syn, &open),
        ("no program: the host's IP drops it, since it is nobody's", Flood::Syn, &nobody),
    ];
    for (name, flood, host) in without {
        let tap = BareTap::plug_with(host, Port::new(&Network::new(name)?)?, 77, QUEUE)?;
        places.push(Place { name, flood, tap, times: Vec::new() });
    }
    let [.., in_bridge, at_closed, at_open, _] = &places[..] else { unreachable!("there are eight") };
    bridge.ip("link add br0 type bridge")?;
    bridge.ip("link set br0 up")?;
    bridge.ip(format!("link set {} master br0", in_bridge.tap.port.tap))?;
    for (host, place) in [(&closed, at_closed), (&open, at_open)] {
        let Port { tap, address, .. } = &place.tap.port;
        host.ip(format!("link set {tap} address {TO}"))?;
        host.ip(format!("addr add {}/32 dev lo", METADATA.ip()))?;
        host.ip(format!("route add {address}/32 dev {tap} src {}", METADATA.ip()))?;
        host.ip(format!("neigh replace {address} lladdr {FROM} dev {tap}"))?;
    }
    let _listener = open.listen(METADATA)?;
    for _ in 0..rounds {
        for place in &mut places {
            let own = place.tap.port.address;
            let frames: Vec<_> = (0..FRAMES).map(|number| place.flood.frame(own, number)).collect();
            let queue = &place.tap.queues[0];
            // Limits and queues are used up first.
            time_of_a_write(queue, &frames, WRITES / 10)?;
            place.times.push(nanoseconds(time_of_a_write(queue, &frames, WRITES)?));
        }
    }
    println!("\n| a frame written to a tap | ns, median (quartiles) |\n| --- | --- |");
    for place in &places {
        println!(
            "| {} ({}) | {:.0} |",
            place.name,
            place.flood.name(),
            Spread::of(place.times.iter().copied())
        );
    }
    println!("| the program alone, of a SYN over the limit (BPF_PROG_TEST_RUN) | {programs:.0} |");
    Ok(())
}

/// The program's own time, for a SYN over the limit.
fn by_programs(rounds: usize) -> Result<Spread> {
    let mut programs = Programs::load()?;
    let (key, index, generation) = (PortKey::tap(IFINDEX, 0), 1, 1);
    let mut port = Assigned::new(index, generation);
    // One in a thousand seconds: the first is let through.
    port.connections = FrameLimit { interval: 1_000_000_000_000, tolerance: 0 };
    programs.set_port(key, Some(port))?;
    programs.set_sources(index, PortSources::assigned(key, generation))?;
    let frame = Flood::Syn.frame([192, 168, 1, 10].into(), 0).split_off(VIRTIO_HEADER);
    programs.run(Which::FromGuest, &frame)?;
    let time = || Ok(programs.time(Which::FromGuest, &frame, TEST_RUNS)? as f64);
    Ok(Spread::of((0..rounds).map(|_| time()).collect::<Result<Vec<_>>>()?))
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}
