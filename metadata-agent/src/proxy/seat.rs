//! What one connection holds of what is limited, and what it is doing, by which it is chosen to give way.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    answer::Limit,
    shares::{Resource, Shares},
    tap::Tap,
};

/// What a connection is doing, the most dispensable first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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
pub(super) struct Place {
    state: Mutex<State>,
    evicted: Notify,
}

#[derive(Debug)]
struct State {
    holds: [u32; Resource::COUNT],
    phase: Phase,
    since: Instant,
    /// For which limit it had to give way. It holds nothing then, and gets nothing any more.
    evicted: Option<Limit>,
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How dispensable it is, if it holds something of that: the least first, by what it is doing and since when. If
    /// `departed`, only one that may have gone counts.
    pub(super) fn rank(&self, resource: Resource, departed: bool) -> Option<(u8, Instant)> {
        let state = self.state();
        let eligible = state.holds[resource as usize] > 0 && (!departed || state.phase == Phase::HalfClosed);
        eligible.then_some((state.phase.rank(), state.since))
    }

    /// Has it give way; what it held, unless it has ended meanwhile.
    pub(super) fn evict(&self, limit: Limit) -> Option<[u32; Resource::COUNT]> {
        let mut state = self.state();
        if state.evicted.is_some() {
            return None;
        }
        state.evicted = Some(limit);
        self.evicted.notify_one();
        Some(std::mem::take(&mut state.holds))
    }
}

/// A connection's place among the others. What it holds is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    shares: Arc<Shares>,
    tap: Arc<Tap>,
    place: Arc<Place>,
}

impl Seat {
    /// For one more connection of that tap.
    pub(super) fn take(shares: &Arc<Shares>, tap: &Arc<Tap>) -> Result<Self, Limit> {
        shares.take(tap, Resource::Connections, 1)?;
        let mut holds = [0; Resource::COUNT];
        holds[Resource::Connections as usize] = 1;
        let state = State { holds, phase: Phase::Idle, since: Instant::now(), evicted: None };
        let place = Arc::new(Place { state: Mutex::new(state), evicted: Notify::new() });
        tap.enter(&place);
        Ok(Self { shares: shares.clone(), tap: tap.clone(), place })
    }

    /// Says what it is doing from now on.
    pub(super) fn begin(&self, phase: Phase) {
        let mut state = self.place.state();
        (state.phase, state.since) = (phase, Instant::now());
    }

    /// One of those, until what is returned is dropped.
    pub(super) fn hold(&self, resource: Resource) -> Result<Held<'_>, Limit> {
        self.set(resource, 1)?;
        Ok(Held { seat: self, resource })
    }

    /// Holds so much of that from now on, in place of what it held.
    pub(super) fn set(&self, resource: Resource, amount: u32) -> Result<(), Limit> {
        let held = {
            let mut state = self.place.state();
            if let Some(limit) = state.evicted {
                return Err(limit);
            }
            let held = &mut state.holds[resource as usize];
            std::mem::replace(held, amount.min(*held))
        };
        let Some(more) = amount.checked_sub(held) else {
            self.shares.give_back(&self.tap, resource, held - amount);
            return Ok(());
        };
        // Not with the lock: others may have to give way for it.
        self.shares.take(&self.tap, resource, more)?;
        let mut state = self.place.state();
        match state.evicted {
            None => {
                state.holds[resource as usize] = amount;
                Ok(())
            }
            Some(limit) => {
                drop(state);
                self.shares.give_back(&self.tap, resource, more);
                Err(limit)
            }
        }
    }

    /// Waits until it has to give way; for which limit, and what it was doing.
    pub(super) async fn evicted(&self) -> (Limit, Phase) {
        loop {
            let (evicted, phase) = {
                let state = self.place.state();
                (state.evicted, state.phase)
            };
            match evicted {
                Some(limit) => return (limit, phase),
                None => self.place.evicted.notified().await,
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.tap.leave(&self.place);
        let holds = std::mem::take(&mut self.place.state().holds);
        self.shares.give_back_all(&self.tap, holds);
    }
}

/// Held for as long as it lives.
#[derive(Debug)]
pub(super) struct Held<'a> {
    seat: &'a Seat,
    resource: Resource,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Less is always to be had, and there is nothing left to give back for one that had to give way.
        let _ = self.seat.set(self.resource, 0);
    }
}
