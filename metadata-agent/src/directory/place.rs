//! A connection as those see it who are looking for one that can be spared: what it holds, and what it is doing.
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use super::usage::{Holds, Limit, Resource};

/// Phase of a connection, the most dispensable first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest has ended its side, and may have gone.
    HalfClosed,
    /// No request is under way.
    Idle,
    /// The guest has begun a request, and takes its time.
    Reading,
    /// Its answer has begun, and it takes its time with that.
    Sending,
    /// The guest waits for us, or for Nova, and was told nothing yet.
    Waiting,
}

impl Phase {
    /// Slow is slow, whatever it is slow with.
    fn rank(self) -> u8 {
        match self {
            Self::HalfClosed => 0,
            Self::Idle => 1,
            Self::Reading | Self::Sending => 2,
            Self::Waiting => 3,
        }
    }
}

/// A connection, as those see it who are looking for one that can be spared.
#[derive(Debug)]
pub(crate) struct Place {
    state: Mutex<State>,
    evicted: Notify,
}

#[derive(Debug)]
struct State {
    holds: Holds,
    phase: Phase,
    since: Instant,
    /// Limit for which it had to give way. It holds nothing then, and gets nothing any more.
    evicted: Option<Limit>,
}

impl Place {
    /// That of a connection which has just been made.
    pub(crate) fn new(now: Instant) -> Self {
        let mut holds = [0; Resource::COUNT];
        holds[Resource::Connections as usize] = 1;
        let state = State { holds, phase: Phase::Idle, since: now, evicted: None };
        Self { state: Mutex::new(state), evicted: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rank for eviction, lowest first, by what the connection is doing and since when; none if it holds nothing of that
    /// resource. If `departed`, only a connection whose guest may have gone has a rank.
    pub(crate) fn rank(&self, resource: Resource, departed: bool) -> Option<(u8, Instant)> {
        let state = self.state();
        let eligible = state.holds[resource as usize] > 0 && (!departed || state.phase == Phase::HalfClosed);
        eligible.then_some((state.phase.rank(), state.since))
    }

    /// Has it give way; what it held, unless it has ended meanwhile.
    pub(crate) fn evict(&self, limit: Limit) -> Option<Holds> {
        let mut state = self.state();
        if state.evicted.is_some() {
            return None;
        }
        state.evicted = Some(limit);
        self.evicted.notify_one();
        Some(std::mem::take(&mut state.holds))
    }
    /// Says what it is doing from now on.
    pub(crate) fn begin(&self, phase: Phase, now: Instant) {
        let mut state = self.state();
        (state.phase, state.since) = (phase, now);
    }

    /// Has it hold no more than so much of that; how much it held.
    pub(crate) fn lower(&self, resource: Resource, amount: u32) -> Result<u32, Limit> {
        let mut state = self.state();
        if let Some(limit) = state.evicted {
            return Err(limit);
        }
        let held = &mut state.holds[resource as usize];
        Ok(std::mem::replace(held, amount.min(*held)))
    }

    /// Has it hold so much of that, which was taken for it.
    pub(crate) fn raise(&self, resource: Resource, amount: u32) -> Result<(), Limit> {
        let mut state = self.state();
        if let Some(limit) = state.evicted {
            return Err(limit);
        }
        state.holds[resource as usize] = amount;
        Ok(())
    }

    /// Has it hold nothing any more; what it held.
    pub(crate) fn clear(&self) -> Holds {
        std::mem::take(&mut self.state().holds)
    }

    /// Waits until it has to give way; for which limit, and what it was doing.
    pub(crate) async fn evicted(&self) -> (Limit, Phase) {
        loop {
            let (evicted, phase) = {
                let state = self.state();
                (state.evicted, state.phase)
            };
            match evicted {
                Some(limit) => return (limit, phase),
                None => self.evicted.notified().await,
            }
        }
    }
}
