//! Guests that ask again and again while something happens behind the agent, and must not notice.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    check::{META_DATA, is_identity_of},
    guest::Guest,
    wait::until,
};

/// Each guest asks about as often as a busy boot does.
const PAUSE: Duration = Duration::from_millis(10);

/// Patience of a client that tries again.
const PATIENCE: Duration = Duration::from_millis(300);
const ANSWERED: Duration = Duration::from_secs(60);

/// Answers that one guest saw.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    pub count: usize,
    pub slowest: Duration,
    /// Time that each took.
    pub times: Vec<Duration>,
}

/// Does `work` while each guest makes one request after another, each on a connection of its own. All answers must be
/// right; a single one that is not, or that is missing, is an error.
pub fn meanwhile<T>(guests: &[Guest], work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Answers>)> {
    let going = AtomicBool::new(true);
    thread::scope(|scope| {
        // Also when the work panics, since the scope waits for its threads.
        let stop = Stop(&going);
        let asking: Vec<_> = guests.iter().map(|guest| scope.spawn(|| ask(guest, &going))).collect();
        let done = work();
        drop(stop);
        let mut answers = Vec::new();
        for (thread, guest) in asking.into_iter().zip(guests) {
            let answered = thread.join().ok().context("a guest's thread panicked")?;
            answers.push(answered.with_context(|| format!("{} noticed", guest.port.tap))?);
        }
        Ok((done?, answers))
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn ask(guest: &Guest, going: &AtomicBool) -> Result<Answers> {
    let mut answers = Answers::default();
    while going.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let response = guest.get(META_DATA).with_context(|| format!("after {} answers", answers.count))?;
        is_identity_of(&guest.port, &response)
            .with_context(|| format!("after {} answers, waited {:?}", answers.count, asked.elapsed()))?;
        let time = asked.elapsed();
        answers.slowest = answers.slowest.max(time);
        answers.times.push(time);
        answers.count += 1;
        thread::sleep(PAUSE);
    }
    ensure!(answers.count > 0, "there was no time to ask");
    Ok(answers)
}

/// Requests of a guest that tries again, one after the other.
#[derive(Debug, Default)]
pub struct Asked {
    /// Times at which answers came.
    answers: Mutex<Vec<Instant>>,
    failed: AtomicUsize,
    is_over: AtomicBool,
}

impl Asked {
    /// Asks until it is over. Each answer has to be its own; a connection that nobody answers is given up, and tried again, as
    /// clients do.
    fn ask(&self, guest: &Guest) -> Result<()> {
        while !self.is_over.load(Ordering::Relaxed) {
            let connection = guest.connect_with(None, PATIENCE);
            let asked = connection.and_then(|mut connection| {
                connection.request("GET", META_DATA, &[("Connection", "close")], b"")
            });
            match asked {
                Ok(response) => {
                    is_identity_of(&guest.port, &response)?;
                    self.answers().push(Instant::now());
                }
                Err(_) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.answers().len()
    }

    /// Requests that were not answered, or whose connection was given up.
    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits for more answers.
    pub fn wait_answers(&self) -> Result<()> {
        let before = self.count();
        until("the guest is answered", ANSWERED, || {
            ensure!(self.count() >= before + 20);
            Ok(())
        })
    }

    /// The longest time without an answer.
    pub fn gap(&self) -> Duration {
        let answers = self.answers();
        answers.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
    }
}

/// Does `work` while a guest asks that may be without an answer for a while, but never gets a wrong one.
pub fn while_asking(guest: &Guest, work: impl FnOnce(&Asked) -> Result<()>) -> Result<Asked> {
    let asked = Asked::default();
    thread::scope(|scope| {
        let asking = scope.spawn(|| asked.ask(guest));
        let done = asked.wait_answers().and_then(|()| work(&asked)).and_then(|()| asked.wait_answers());
        asked.is_over.store(true, Ordering::Relaxed);
        asking.join().ok().context("the guest panicked")??;
        done
    })?;
    Ok(asked)
}
