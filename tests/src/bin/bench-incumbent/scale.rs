//! Memory and the time of a cold start, by the number of networks that have a guest here.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_tests::process;

use crate::{
    Arguments,
    changes::first_answer,
    neutron::Neutron,
    pair::Pair,
    report::{Better, Report, Row},
};

/// For one that is served already as soon as it asks.
const ATTEMPT: Duration = Duration::from_millis(20);
/// Between two attempts of a guest, for each of them: together they ask no more often than one alone.
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) fn starts(networks: usize, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut pair = Pair::start(arguments, networks)?;
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..arguments.starts {
        let started = Instant::now();
        pair.neutron.start(&pair.cloud.chassis)?;
        let theirs = until_all_answered(&pair)?.duration_since(started);
        pair.neutron.wait_idle()?;
        let memory_of_theirs = pair.neutron.memory()?;
        let all: Vec<_> = pair.networks.iter().collect();
        pair.neutron.remove(&pair.cloud.chassis, &all)?;
        pair.neutron = Neutron::install(&pair.cloud.chassis, &arguments.environment, arguments.workers)?;

        let started = Instant::now();
        pair.cloud.agent.resume()?;
        let ours = until_all_answered(&pair)?.duration_since(started);
        pair.wait_ours()?;
        let memory_of_ours = process::memory(pair.cloud.agent.id()?)?;
        pair.stop_ours()?;
        times.push([theirs, ours].map(|time| time.as_secs_f64()));
        memory.push([memory_of_theirs, memory_of_ours].map(|bytes| bytes as f64 / 1e6));
    }
    let named = if networks == 1 { "1 network".to_owned() } else { format!("{networks} networks") };
    report.add(Row::new(
        format!("cold start, to the last guest's answer, {named}"),
        times,
        1,
        "s",
        Better::Less,
    ));
    report.add(Row::new(format!("memory (PSS) of all processes, {named}"), memory, 1, "MB", Better::Less));
    Ok(())
}

/// Time until the last of all guests had its first answer.
fn until_all_answered(pair: &Pair) -> Result<Instant> {
    let pause = PAUSE * u32::try_from(pair.guests.len())?;
    thread::scope(|scope| {
        let asking: Vec<_> = pair
            .guests
            .iter()
            .map(|guest| scope.spawn(move || first_answer(guest, ATTEMPT, pause)))
            .collect();
        let mut last = Instant::now();
        for thread in asking {
            last = last.max(thread.join().ok().context("a guest's thread panicked")??);
        }
        Ok(last)
    })
}
