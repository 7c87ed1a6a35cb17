//! A guest that is plugged, and a restart of the agent while guests ask.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_tests::{guest::Guest, nova::ec2_id, wait::until};
use nix::sys::signal::Signal;

use crate::{
    Arguments,
    pair::{Pair, Side},
    report::{Better, Report, Row},
};

/// A short answer: it is one packet.
const INSTANCE: &str = "/latest/meta-data/instance-id";
/// Timeout of a guest's SYN until it sends another: one that came too early is not answered.
const ATTEMPT: Duration = Duration::from_millis(4);
const PATIENCE: Duration = Duration::from_secs(300);
/// Period of a guest's requests during a restart, and timeout of an answer.
const INTERVAL: Duration = Duration::from_millis(50);
const GIVEN_UP: Duration = Duration::from_secs(5);
/// Good answers in a row after which a restart is over.
const RECOVERED: usize = 40;

/// The first guest of a network on this host, which asks already.
pub(crate) fn plugs(pair: &mut Pair, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..arguments.rounds {
        // Neither is to work beside the other: ours leaves, and the other one stands still.
        let round = pair.both(|pair, side| {
            let (guest, network) = (&pair.guests[1], &pair.networks[1].id);
            if side == Side::Ours {
                pair.neutron.signal(Signal::SIGSTOP)?;
            }
            pair.cloud.chassis.unplug(guest)?;
            match side {
                Side::Theirs => pair.neutron.wait_removed(network)?,
                Side::Ours => pair.cloud.agent.wait_gone(&guest.port.tap)?,
            }
            let took = thread::scope(|scope| -> Result<Duration> {
                let asking = scope.spawn(|| first_answer(guest, ATTEMPT, Duration::ZERO));
                // The guest is asking by then.
                thread::sleep(ATTEMPT * 10);
                let plugged = Instant::now();
                pair.cloud.chassis.plug(guest)?;
                let answered = asking.join().ok().context("the guest's thread panicked")??;
                Ok(answered - plugged)
            })?;
            pair.neutron.signal(Signal::SIGCONT)?;
            pair.cloud.chassis.wait_bound(guest)?;
            pair.neutron.wait_idle()?;
            pair.neutron.wait_provisioned(network)?;
            Ok(took.as_secs_f64() * 1e3)
        })?;
        times.push(round);
    }
    report.add(Row::new(
        "from plugging the first guest of a network to its first answer".into(),
        times,
        0,
        "ms",
        Better::Less,
    ));
    Ok(())
}

/// Tries until it is answered rightly; when that was.
pub(crate) fn first_answer(guest: &Guest, attempt: Duration, pause: Duration) -> Result<Instant> {
    let (deadline, expected) = (Instant::now() + PATIENCE, ec2_id(&guest.port.instance));
    loop {
        let answer = guest.connect_with(None, attempt).and_then(|mut connection| {
            connection.stream().set_read_timeout(Some(GIVEN_UP))?;
            connection.request("GET", INSTANCE, &[("Connection", "close")], b"")
        });
        match answer {
            Ok(response) if response.status == 200 && response.text() == expected => {
                return Ok(Instant::now());
            }
            answer if Instant::now() > deadline => bail!("{} is not answered: {answer:?}", guest.port.tap),
            _ => thread::sleep(pause),
        }
    }
}

/// Requests of one guest, in their order: when it was answered, and whether rightly.
pub(crate) type Asked = Mutex<Vec<(Instant, bool)>>;

/// Outcome of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) failed: usize,
    pub(crate) all: usize,
    /// The longest time without a good answer.
    pub(crate) gap: Duration,
}

impl Seen {
    pub(crate) fn of(asked: Asked) -> Self {
        let asked = asked.into_inner().unwrap_or_else(PoisonError::into_inner);
        let good: Vec<_> = asked.iter().filter(|(_, is_good)| *is_good).map(|(at, _)| *at).collect();
        let gap = good.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default();
        Self { failed: asked.len() - good.len(), all: asked.len(), gap }
    }
}

/// The agent is stopped, and started at once.
pub(crate) fn restarts(pair: &mut Pair, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (mut failed, mut all, mut gaps) = ([0, 0], [0, 0], Vec::new());
    for _ in 0..arguments.rounds {
        let round = pair.both(|pair, side| {
            let asked = Asked::default();
            let is_over = AtomicBool::new(false);
            let guest = pair.guests.remove(0);
            let restarted = thread::scope(|scope| {
                let asking = scope.spawn(|| ask(&guest, &asked, &is_over));
                let restarted = restart(pair, side, &asked);
                is_over.store(true, Ordering::Relaxed);
                asking.join().ok().context("the guest's thread panicked")?;
                restarted
            });
            pair.guests.insert(0, guest);
            restarted?;
            pair.neutron.wait_idle()?;
            Ok(Seen::of(asked))
        })?;
        for (side, seen) in round.iter().enumerate() {
            failed[side] += seen.failed;
            all[side] += seen.all;
        }
        gaps.push(round.map(|seen| seen.gap.as_secs_f64()));
    }
    let told = [0, 1].map(|side| format!("{} of {}", failed[side], all[side]));
    report.note(
        &format!("requests that failed during {} restarts of the agent, 20 a second", arguments.rounds),
        told,
    );
    report.add(Row::new(
        "the longest time without a good answer, in a restart".into(),
        gaps,
        2,
        "s",
        Better::Less,
    ));
    Ok(())
}

pub(crate) fn ask(guest: &Guest, asked: &Asked, is_over: &AtomicBool) {
    let expected = ec2_id(&guest.port.instance);
    while !is_over.load(Ordering::Relaxed) {
        let next = Instant::now() + INTERVAL;
        let answer = guest
            .connect_with(None, GIVEN_UP)
            .and_then(|mut connection| connection.request("GET", INSTANCE, &[("Connection", "close")], b""));
        let is_good = answer.is_ok_and(|response| response.status == 200 && response.text() == expected);
        asked.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), is_good));
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn restart(pair: &mut Pair, side: Side, asked: &Asked) -> Result<()> {
    wait_recovered(asked)?;
    match side {
        Side::Theirs => {
            pair.neutron.stop()?;
            pair.neutron.start(&pair.cloud.chassis)?;
        }
        Side::Ours => {
            pair.cloud.agent.stop()?;
            pair.cloud.agent.resume()?;
            pair.cloud.agent.wait_ready()?;
        }
    }
    wait_recovered(asked)
}

/// Waits for so many requests with good answers that begin now.
pub(crate) fn wait_recovered(asked: &Asked) -> Result<()> {
    let before = asked.lock().unwrap_or_else(PoisonError::into_inner).len();
    until("the guest is answered again", PATIENCE, || {
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let good = asked[before..].iter().rev().take_while(|(_, is_good)| *is_good).count();
        ensure!(good >= RECOVERED, "{good} good answers in a row");
        Ok(())
    })
}
