//! The loaded programs against their reference, on generated and mutated frames, and the learning of sources by several
//! processors at once.

use std::{cell::RefCell, env, fs, thread};

use anyhow::{Context as _, Result};
use metadata_ebpf::{
    address::MAX_PORTS,
    counter::Counter,
    map::{Control, Limit, Mac, NETWORK_ADDRESSES, Network, OpenSources, Port, PortKey, Source as Entry},
};
use metadata_tests::{
    model::{
        Agent, DROP, METADATA_V4, METADATA_V6, MetadataPort, Outcome, REDIRECT, Source, World, map_sources,
    },
    programs::{ALIVE, IFINDEX, Programs, Which},
};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

const KEY: PortKey = PortKey::tap(IFINDEX, 0);
/// Number of frames that each program gets; more by METADATA_TEST_FRAMES.
const FRAMES: u32 = 100_000;
const LIMIT: Limit = Limit { interval: 1, tolerance: 0 };

/// The metadata port of the network whose device it is.
const METADATA_PORT: MetadataPort = MetadataPort {
    mac: [0xfa, 0x16, 0x3e, 0xaa, 0xbb, 0xcc],
    v4: [192, 168, 1, 2],
    v6: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
};

const MACS: [[u8; 6]; 4] =
    [[0xfa, 0x16, 0x3e, 1, 2, 3], [0xfa, 0x16, 0x3e, 9, 9, 9], [2, 0, 0xa9, 0xfe, 0xa9, 0xfe], [0xff; 6]];

fn mac() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![8 => proptest::sample::select(&MACS[..2]), 1 => proptest::sample::select(&MACS[..]), 1 => any::<[u8; 6]>()]
}

fn v4() -> impl Strategy<Value = [u8; 4]> {
    let known = [
        [192, 168, 1, 10],
        [192, 168, 1, 11],
        METADATA_V4,
        METADATA_PORT.v4,
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [240, 0, 0, 0x70],
    ];
    prop_oneof![6 => proptest::sample::select(known[..2].to_vec()), 2 => proptest::sample::select(known.to_vec()), 1 => any::<[u8; 4]>()]
}

fn v6() -> impl Strategy<Value = [u8; 16]> {
    let mut guest = METADATA_V6;
    guest[15] = 1;
    let mut fixed = METADATA_PORT.v6;
    fixed[15] = 10;
    let mut tagged = [0; 16];
    tagged[..6].copy_from_slice(&[0xfd, 0, 0xa9, 0xfe, 0xa9, 0xfe]);
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 192, 168, 1, 10]);
    let mut all_nodes = [0; 16];
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    let known = vec![guest, fixed, METADATA_V6, METADATA_PORT.v6, [0; 16], tagged, mapped, all_nodes];
    prop_oneof![6 => Just(guest), 2 => proptest::sample::select(known), 1 => any::<[u8; 16]>()]
}

fn ethernet(ethertype: u16) -> impl Strategy<Value = Vec<u8>> {
    (mac(), mac()).prop_map(move |(to, from)| [&to[..], &from, &ethertype.to_be_bytes()].concat())
}

fn tcp() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(0x02_u8), 2 => Just(0x10), 1 => Just(0x14), 1 => any::<u8>()];
    let port = prop_oneof![8 => Just(80_u16), 1 => any::<u16>()];
    let sequence = prop_oneof![Just(0_u32), any::<u32>()];
    let payload = proptest::collection::vec(any::<u8>(), 0..40);
    (any::<u16>(), port, sequence, flags, any::<u16>(), payload).prop_map(
        |(from, to, sequence, flags, sum, payload)| {
            let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
            segment.extend(sequence.to_be_bytes());
            segment.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff]);
            segment.extend(sum.to_be_bytes());
            segment.extend([0, 0]);
            segment.extend(payload);
            segment
        },
    )
}

fn icmp(kinds: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(any::<u8>(), 4..60);
    (proptest::sample::select(kinds), any::<u16>(), payload)
        .prop_map(|(kind, sum, payload)| [&[kind, 0][..], &sum.to_be_bytes(), &payload].concat())
}

fn ipv4(
    to: impl Strategy<Value = [u8; 4]>,
    from: impl Strategy<Value = [u8; 4]>,
) -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        6 => tcp().prop_map(|bytes| (6_u8, bytes)),
        2 => icmp(&[8, 0, 3]).prop_map(|bytes| (1, bytes)),
        1 => tcp().prop_map(|bytes| (17, bytes)),
    ];
    (ethernet(0x0800), from, to, any::<u16>(), payload).prop_map(
        |(head, from, to, sum, (protocol, payload))| {
            let sum = sum.to_be_bytes();
            [&head[..], &[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol], &sum, &from, &to, &payload].concat()
        },
    )
}

fn ipv6(
    to: impl Strategy<Value = [u8; 16]>,
    from: impl Strategy<Value = [u8; 16]>,
) -> impl Strategy<Value = Vec<u8>> {
    let nd =
        (proptest::sample::select(&[135_u8, 136][..]), v6(), proptest::collection::vec(any::<u8>(), 0..24));
    let nd =
        nd.prop_map(|(kind, target, options)| [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target, &options].concat());
    let payload = prop_oneof![
        5 => tcp().prop_map(|bytes| (6_u8, bytes)),
        2 => icmp(&[128, 129, 1]).prop_map(|bytes| (58, bytes)),
        3 => nd.prop_map(|bytes| (58, bytes)),
        1 => (proptest::sample::select(&[0_u8, 17, 43, 44, 50, 51, 60, 135, 139, 140][..]), tcp()),
    ];
    (ethernet(0x86dd), from, to, payload).prop_map(|(head, from, to, (next, payload))| {
        let length = (payload.len() as u16).to_be_bytes();
        [&head[..], &[0x60, 0, 0, 0], &length, &[next, 255], &from, &to, &payload].concat()
    })
}

fn arp() -> impl Strategy<Value = Vec<u8>> {
    (ethernet(0x0806), 1..=2_u8, mac(), v4(), mac(), prop_oneof![Just(METADATA_V4), v4()]).prop_map(
        |(head, operation, sender_mac, sender, target_mac, target)| {
            [&head[..], &[0, 1, 8, 0, 6, 4, 0, operation], &sender_mac, &sender, &target_mac, &target]
                .concat()
        },
    )
}

/// A frame as built, with a few bytes changed or cut off.
fn mutated(frame: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let mutations = prop_oneof![
        3 => Just(Vec::new()),
        2 => proptest::collection::vec((0..100_usize, any::<u8>()), 1..4),
    ];
    let cut = prop_oneof![5 => Just(None), 1 => (15..100_usize).prop_map(Some)];
    (frame, mutations, cut).prop_map(|(mut frame, mutations, cut)| {
        for (at, value) in mutations {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        frame
    })
}

fn guest_frames() -> impl Strategy<Value = Vec<u8>> {
    let to_v4 = prop_oneof![8 => Just(METADATA_V4), 1 => v4()];
    let to_v6 = prop_oneof![8 => Just(METADATA_V6), 1 => v6()];
    mutated(prop_oneof![4 => ipv4(to_v4, v4()), 4 => ipv6(to_v6, v6()), 2 => arp()])
}

fn tag_v4() -> impl Strategy<Value = [u8; 4]> {
    (proptest::sample::select(&[240_u8, 240, 240, 10][..]), generation(), index(), 0..16_u32).prop_map(
        |(net, generation, index, source)| {
            let tag = (u32::from(generation) << 16 | index << 4 | source).to_be_bytes();
            [net, tag[1], tag[2], tag[3]]
        },
    )
}

fn tag_v6() -> impl Strategy<Value = [u8; 16]> {
    tag_v4().prop_map(|tag| {
        let mut address = [0; 16];
        address[..6].copy_from_slice(&[0xfd, 0, 0xa9, 0xfe, 0xa9, 0xfe]);
        address[12] = tag[0] ^ 240;
        address[13..].copy_from_slice(&tag[1..]);
        address
    })
}

fn service_frames() -> impl Strategy<Value = Vec<u8>> {
    let from_v4 = prop_oneof![12 => Just(METADATA_V4), 1 => v4()];
    let from_v6 = prop_oneof![12 => Just(METADATA_V6), 1 => v6()];
    mutated(prop_oneof![6 => ipv4(tag_v4(), from_v4), 6 => ipv6(tag_v6(), from_v6), 1 => arp()])
}

fn generation() -> impl Strategy<Value = u8> {
    prop_oneof![8 => Just(3_u8), 1 => 1..=255_u8]
}

fn index() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(7_u32), 1 => 0..MAX_PORTS]
}

fn sources() -> impl Strategy<Value = [Option<Source>; 16]> {
    let address = prop_oneof![
        v4().prop_map(|address| {
            let mut mapped = [0; 16];
            mapped[10..12].copy_from_slice(&[0xff, 0xff]);
            mapped[12..].copy_from_slice(&address);
            mapped
        }),
        v6(),
    ];
    // What has been idle for long enough depends on how long the machine is up.
    let up = uptime();
    let age = prop_oneof![3 => Just(0_u64), 1 => Just(1_000_000_000), 1 => Just(if up > 20_000_000_000 { 6_000_000_000 } else { 0 })];
    let source = (address, mac(), mac(), age)
        .prop_map(|(address, mac, via, age)| Source { address, mac, via, age })
        .boxed();
    let some = proptest::array::uniform16(proptest::option::weighted(0.3, source.clone()));
    let full = proptest::array::uniform16(source.prop_map(Some));
    prop_oneof![3 => some, 1 => full].prop_map(distinct)
}

/// The programs never learn a source twice.
fn distinct(mut sources: [Option<Source>; 16]) -> [Option<Source>; 16] {
    for number in 1..16 {
        let (before, rest) = sources.split_at_mut(number);
        let key = |source: &Option<Source>| source.map(|source| (source.address, source.mac));
        if before.iter().any(|other| key(other).is_some() && key(other) == key(&rest[0])) {
            rest[0] = None;
        }
    }
    sources
}

fn agents() -> impl Strategy<Value = Agent> {
    let rarely = || proptest::bool::weighted(0.1);
    (proptest::bool::weighted(0.95), rarely(), proptest::bool::weighted(0.95), rarely())
        .prop_map(|(alive, leaving, ipv6, young)| Agent { alive, leaving, ipv6, young })
}

fn worlds() -> impl Strategy<Value = World> {
    let known = proptest::bool::weighted(0.9);
    let exhausted = proptest::bool::weighted(0.1);
    let ended = proptest::bool::weighted(0.1);
    let bits = || prop_oneof![Just(0_u16), Just(u16::MAX), any::<u16>()];
    let v4 = world().address;
    let mut v6 = METADATA_PORT.v6;
    v6[15] = 10;
    let address = proptest::sample::select(vec![v4, v4, v6]);
    (known, exhausted, ended, sources(), bits(), bits(), agents(), address).prop_map(
        |(known, exhausted, ended, sources, open, own, agent, address)| World {
            address,
            known,
            exhausted,
            sources,
            open,
            own,
            agent,
            ended,
            ..world()
        },
    )
}

/// A world in which nothing has happened yet.
fn world() -> World {
    World {
        known: true,
        index: 7,
        generation: 3,
        exhausted: false,
        sources: [None; 16],
        open: 0,
        own: 0,
        address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 10],
        agent: Agent { alive: true, leaving: false, ipv6: true, young: false },
        ended: false,
        station: MACS[0],
        metadata_port: METADATA_PORT,
    }
}

/// The port of a world as the map holds it.
fn port(world: &World) -> Port {
    let mut port = Port::new(world.index, world.generation);
    (port.connections, port.answers) = (LIMIT, LIMIT);
    port.own[1] = Entry::compared(std::net::Ipv6Addr::from_octets(world.address).to_canonical());
    port.foreign_until = if world.agent.young { u64::MAX } else { 0 };
    port
}

/// The key of the world's port, as that program looks it up.
fn key(which: Which, world: &World) -> PortKey {
    match which {
        Which::FromNetwork => PortKey::station(IFINDEX, Mac::new(world.station)),
        Which::FromGuest | Which::ToGuest => KEY,
    }
}

fn network(MetadataPort { mac, v4, v6 }: MetadataPort) -> Network {
    let mut addresses = [[0; 4]; NETWORK_ADDRESSES];
    (addresses[0], addresses[1]) = (Entry::compared(v4.into()), Entry::compared(v6.into()));
    Network { mac: Mac::new(mac), addresses }
}

fn set(programs: &mut Programs, which: Which, world: &World) -> Result<()> {
    let Agent { alive, leaving, ipv6, .. } = world.agent;
    let alive_until = if alive { u64::MAX } else { 1 };
    programs.set_control(Control { alive_until, leaving: leaving.into(), ipv6: ipv6.into(), ..ALIVE })?;
    let key = key(which, world);
    programs.set_network(network(world.metadata_port))?;
    programs.set_port(key, world.known.then(|| port(world)))?;
    let sources = map_sources(world, key, uptime());
    let connections = std::array::from_fn(|source| (world.open >> source & 1).into());
    let addresses = sources.sources.map(|source| source.address);
    programs.set_open(world.index, OpenSources { connections, addresses })?;
    programs.set_sources(world.index, sources)
}

fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default();
    (seconds * 1e9) as u64
}

/// Runs one frame through program and model, in one world.
fn compare(programs: &mut Programs, which: Which, world: &World, frame: &[u8]) -> Result<()> {
    set(programs, which, world)?;
    let before = programs.counters()?;
    let counts_before = programs.port_counts(world.index)?;
    let (action, bytes) = programs.run(which, frame)?;
    let after = programs.counters()?;
    let counts = programs.port_counts(world.index)?;
    let expected = match which {
        Which::FromGuest => world.from_guest(frame),
        Which::FromNetwork => world.from_network(frame),
        Which::ToGuest => world.to_guest(frame),
    };
    let Outcome { action: expected_action, frame: expected_frame, counters, sources, own } = expected;
    anyhow::ensure!(
        action == expected_action,
        "action {action}, the model says {expected_action} and {counters:?}"
    );
    if action != DROP {
        let (bytes, expected) = (normal(&bytes, action), normal(&expected_frame, action));
        anyhow::ensure!(bytes == expected, "the frame is\n{bytes:02x?}, the model says\n{expected:02x?}");
    }
    for (name, value) in &after {
        let wanted = counters.iter().filter(|counter| counter.name() == *name).count() as u64;
        anyhow::ensure!(
            value - before[name] == wanted,
            "{name}: {} instead of {wanted}",
            value - before[name]
        );
    }
    let mut of_port = counts_before.frames;
    for counter in counters.iter().filter(|counter| is_of_port(which, **counter)) {
        of_port[*counter as usize] += 1;
    }
    anyhow::ensure!(counts.frames == of_port, "for the port {:?} instead of {of_port:?}", counts.frames);
    // What passes is dropped on a network's device, and by nobody's decision.
    let passes = |counter: Counter| matches!(counter, Counter::ForeignConnection | Counter::Leaving);
    let last = counters.last().filter(|last| is_of_port(which, **last) && !passes(**last));
    let dropped = last.filter(|_| action == DROP);
    if let Some(counter) = dropped {
        anyhow::ensure!(counts.dropped_at > counts_before.dropped_at, "the time of a drop was not noted");
        anyhow::ensure!(counts.dropped_as == *counter as u64, "dropped as {}", counts.dropped_as);
    } else {
        anyhow::ensure!(counts.dropped_at == counts_before.dropped_at, "nothing was dropped");
    }
    let held = programs.sources(world.index)?;
    let told = map_sources(&World { sources, own, ..world.clone() }, key(which, world), uptime());
    anyhow::ensure!(held.own == told.own, "its own are {:#b}, the model says {:#b}", held.own, told.own);
    for (number, (held, told)) in held.sources.iter().zip(&told.sources).enumerate() {
        let of = |source: &metadata_ebpf::map::Source| {
            (source.last_seen != 0).then_some((source.address, source.mac, source.via))
        };
        anyhow::ensure!(of(held) == of(told), "source {number} is {held:?}, the model says {told:?}");
        let shown = programs.open(world.index)?.addresses[number];
        anyhow::ensure!(shown == held.address, "source {number} is {held:?}, the agent is told {shown:?}");
    }
    Ok(())
}

/// True if an outcome is counted for a port as well: where the programs get to know whose the frame is.
fn is_of_port(which: Which, counter: Counter) -> bool {
    let of_nobody = match which {
        Which::FromGuest => &[Counter::UnknownPort][..],
        Which::FromNetwork => &[
            Counter::UnknownPort,
            Counter::OtherStation,
            Counter::ArpClaim,
            Counter::NdClaim,
            Counter::NdInvalid,
        ],
        Which::ToGuest => &[Counter::StaleTag, Counter::ServiceOther, Counter::RefusalHidden],
    };
    !of_nobody.contains(&counter)
}

/// Zero has two representations in checksums, and programs and model may differ in which they find.
fn normal(frame: &[u8], action: i32) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let ipv4 = frame.get(12..14) == Some(&[8, 0]);
    let places: &[usize] = if action != REDIRECT {
        &[]
    } else if ipv4 {
        &[24, 36, 50]
    } else {
        &[56, 70]
    };
    for at in places {
        if let Some(sum) = frame.get_mut(*at..at + 2)
            && sum == [0xff, 0xff]
        {
            sum.fill(0);
        }
    }
    frame
}

/// The kernel runs no test on a frame without all of its network header.
fn is_testable(frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    };
    frame.len() >= least
}

fn check(which: Which, frames: impl Strategy<Value = Vec<u8>>) -> Result<()> {
    let cases = env::var("METADATA_TEST_FRAMES").ok().and_then(|text| text.parse().ok()).unwrap_or(FRAMES);
    let persistence =
        FileFailurePersistence::Direct(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/programs.regressions"));
    let config = Config {
        cases,
        max_global_rejects: cases,
        failure_persistence: Some(Box::new(persistence)),
        ..Config::default()
    };
    let programs = RefCell::new(Programs::load()?);
    let result = TestRunner::new(config).run(&(worlds(), frames), |(world, frame)| {
        prop_assume!(is_testable(&frame));
        compare(&mut programs.borrow_mut(), which, &world, &frame)
            .map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    result.map_err(|error| anyhow::anyhow!("{which:?}: {error}"))
}

#[test]
fn from_guest_does_what_the_model_does() -> Result<()> {
    check(Which::FromGuest, guest_frames())
}

#[test]
fn from_network_does_what_the_model_does() -> Result<()> {
    check(Which::FromNetwork, guest_frames())
}

#[test]
fn to_guest_does_what_the_model_does() -> Result<()> {
    check(Which::ToGuest, service_frames())
}

/// Several threads show the same new sources to one port: each gets one entry, whoever comes first.
#[test]
fn processors_that_learn_at_once_learn_once() -> Result<()> {
    let syn = |source: u8| {
        let mut frame =
            [&MACS[1][..], &MACS[0], &[8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]].concat();
        frame.extend([192, 168, 1, source]);
        frame.extend(METADATA_V4);
        frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        frame
    };
    let mut programs = Programs::load()?;
    for round in 0..200 {
        programs.set_sources(7, map_sources(&world(), KEY, uptime()))?;
        programs.set_port(KEY, Some(Port::new(7, 3)))?;
        let before = programs.counters()?;
        let programs = &programs;
        thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    scope.spawn(move || -> Result<()> {
                        for step in 0..16_u8 {
                            let (action, _) =
                                programs.run(Which::FromGuest, &syn((step + thread * 4) % 16 + 1))?;
                            anyhow::ensure!(action == REDIRECT, "action {action}");
                        }
                        Ok(())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
        })?;
        let after = programs.counters()?;
        anyhow::ensure!(after["source_learned"] - before["source_learned"] == 16, "round {round}: {after:?}");
        let mut learned: Vec<_> = programs.sources(7)?.sources.iter().map(|source| source.v4()).collect();
        learned.sort();
        learned.dedup();
        anyhow::ensure!(
            learned.len() == 16 && learned.iter().all(Option::is_some),
            "round {round}: {learned:?}"
        );
    }
    Ok(())
}
