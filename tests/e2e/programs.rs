//! The loaded programs against their reference, on generated and mutated frames, and the learning of sources by several
//! processors at once.

use std::{cell::RefCell, env, fs, thread};

use anyhow::{Context as _, Result};
use metadata_ebpf::{
    counter::Counter,
    map::{
        Control, FrameLimit, Mac, NETWORK_ADDRESSES, Network, OpenSources, Port, PortKey, Source as Entry,
    },
};
use metadata_tests::{
    model::{Agent, DROP, METADATA_V4, MetadataPort, Outcome, REDIRECT, World, map_sources},
    programs::{ALIVE, IFINDEX, Programs, Which},
};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

mod generated;

use generated::{MACS, guest_frames, service_frames, world, worlds};

const KEY: PortKey = PortKey::tap(IFINDEX, 0);
/// Number of frames that each program gets; more by METADATA_TEST_FRAMES.
const FRAMES: u32 = 100_000;
const LIMIT: FrameLimit = FrameLimit { interval: 1, tolerance: 0 };

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
