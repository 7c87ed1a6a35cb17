//! Guests that ask again and again while something happens behind the agent, and must not notice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    check::{META_DATA, is_identity_of},
    guest::Guest,
};

/// Each guest asks about as often as a busy boot does.
const PAUSE: Duration = Duration::from_millis(10);

/// What one guest saw.
#[derive(Debug, Clone, Copy)]
pub struct Answers {
    pub count: usize,
    pub slowest: Duration,
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
    let mut answers = Answers { count: 0, slowest: Duration::ZERO };
    while going.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let response = guest.get(META_DATA).with_context(|| format!("after {} answers", answers.count))?;
        is_identity_of(&guest.port, &response)
            .with_context(|| format!("after {} answers, waited {:?}", answers.count, asked.elapsed()))?;
        answers.slowest = answers.slowest.max(asked.elapsed());
        answers.count += 1;
        thread::sleep(PAUSE);
    }
    ensure!(answers.count > 0, "there was no time to ask");
    Ok(answers)
}
