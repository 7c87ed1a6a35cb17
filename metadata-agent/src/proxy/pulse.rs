//! Pulse of the workers: a thread that hangs, or has ended before its time, would take its share of the guests' connections with
//! it while the others serve on.
use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Looks in a row, a second apart, without a beat since, that make a worker a stuck one.
const STUCK: u32 = 20;

/// One worker's pulse.
#[derive(Debug, Default)]
struct Pulse {
    beats: AtomicU64,
    has_ended: AtomicBool,
}

/// The worker's end of it.
#[derive(Debug)]
pub(super) struct Heart(Arc<Pulse>);

impl Heart {
    /// Shows that the worker goes on.
    pub(super) fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Relaxed);
    }
}

/// The other end of all of them.
#[derive(Debug, Default)]
pub struct Pulses(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    pulse: Arc<Pulse>,
    beats: u64,
    looks: u32,
}

impl Pulses {
    /// One more, for the next worker.
    pub(super) fn add(&mut self) -> Heart {
        let pulse = Arc::<Pulse>::default();
        self.0.push(Watched { pulse: pulse.clone(), beats: 0, looks: 0 });
        Heart(pulse)
    }

    /// Feels all of them, once a second; tells what is wrong. Looks are counted and not time: a process that was stopped as a
    /// whole, or a machine that was, is not stuck.
    pub fn feel(&mut self) -> Result<(), String> {
        for (number, watched) in self.0.iter_mut().enumerate() {
            if watched.pulse.has_ended.load(Ordering::Relaxed) {
                return Err(format!(
                    "worker {number} has ended, and guests of its connections are not answered"
                ));
            }
            let beats = watched.pulse.beats.load(Ordering::Relaxed);
            let former = mem::replace(&mut watched.beats, beats);
            watched.looks = if former == beats { watched.looks + 1 } else { 0 };
            if watched.looks >= STUCK {
                return Err(format!(
                    "worker {number} has been stuck for {STUCK} s, and guests of its connections are not answered"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_stuck_or_has_ended_is_told() {
        let mut pulses = Pulses::default();
        let (first, second) = (pulses.add(), pulses.add());
        for _ in 0..3 * STUCK {
            first.beat();
            second.beat();
            pulses.feel().unwrap();
        }
        for _ in 1..STUCK {
            first.beat();
            pulses.feel().unwrap();
        }
        // It was not stuck, but slow.
        second.beat();
        pulses.feel().unwrap();
        let mut looks = 0;
        let trouble = loop {
            first.beat();
            looks += 1;
            if let Err(trouble) = pulses.feel() {
                break trouble;
            }
        };
        assert!(trouble.starts_with("worker 1 has been stuck"), "{trouble}");
        assert_eq!(looks, STUCK);
        drop(first);
        assert!(pulses.feel().unwrap_err().starts_with("worker 0 has ended"));
    }
}
