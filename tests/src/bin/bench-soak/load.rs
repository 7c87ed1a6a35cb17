//! The load: guests that ask at a steady pace, some requests on each connection, and note what becomes of each.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use metadata_tests::{
    check::{META_DATA, is_identity_of},
    guest::Guest,
};

/// Requests on one connection, about as many as a boot makes on all of its own.
const ON_ONE: usize = 25;
/// A guest that is without an answer for so long begins anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// Outcomes of requests.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    /// Of those that were answered as they should.
    pub(crate) times: Vec<Duration>,
    /// Answered that Nova is not there.
    pub(crate) refused: usize,
    /// Not answered at all.
    pub(crate) failed: usize,
}

#[derive(Debug)]
pub(crate) struct Load {
    interval: Duration,
    outcomes: Mutex<Outcomes>,
}

impl Load {
    /// With that many requests a second of each guest.
    pub(crate) fn new(rate: u32) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), outcomes: Mutex::default() }
    }

    /// Outcomes of requests since this was last called.
    pub(crate) fn take(&self) -> Outcomes {
        std::mem::take(&mut self.outcomes())
    }

    /// Asks until it is over. An answer that is another guest's is an error.
    pub(crate) fn ask(&self, guest: &Guest, is_over: &AtomicBool) -> Result<()> {
        let mut next = Instant::now();
        while !is_over.load(Ordering::Relaxed) {
            let Ok(mut connection) = guest.connect_with(None, PATIENCE) else {
                self.outcomes().failed += 1;
                continue;
            };
            for _ in 0..ON_ONE {
                // Behind time it asks at once, but makes up for no more than a second.
                next = next.max(Instant::now() - Duration::from_secs(1)) + self.interval;
                thread::sleep(next.saturating_duration_since(Instant::now()));
                let asked = Instant::now();
                match connection.request("GET", META_DATA, &[], b"") {
                    Ok(response) if response.status >= 500 => self.outcomes().refused += 1,
                    Ok(response) => {
                        is_identity_of(&guest.port, &response)?;
                        self.outcomes().times.push(asked.elapsed());
                    }
                    Err(_) => {
                        self.outcomes().failed += 1;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn outcomes(&self) -> MutexGuard<'_, Outcomes> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
