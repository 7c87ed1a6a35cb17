//! A seat: the limited resources that one connection holds, and gives back when it ends.
use std::sync::Arc;

use super::{shares::Shares, turn};
use crate::directory::{Limit, Phase, Place, Resource, Tap};

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
        let place = Arc::new(Place::new(turn::now()));
        tap.enter(&place);
        Ok(Self { shares: shares.clone(), tap: tap.clone(), place })
    }

    /// Says what it is doing from now on.
    pub(super) fn begin(&self, phase: Phase) {
        self.place.begin(phase, turn::now());
    }

    /// One of those, until what is returned is dropped.
    pub(super) fn hold(&self, resource: Resource) -> Result<Held<'_>, Limit> {
        self.set(resource, 1)?;
        Ok(Held { seat: self, resource })
    }

    /// Holds so much of that from now on, in place of what it held.
    pub(super) fn set(&self, resource: Resource, amount: u32) -> Result<(), Limit> {
        let held = self.place.lower(resource, amount)?;
        let Some(more) = amount.checked_sub(held) else {
            self.shares.give_back(&self.tap, resource, held - amount);
            return Ok(());
        };
        // Not with the lock: others may have to give way for it.
        self.shares.take(&self.tap, resource, more)?;
        self.place.raise(resource, amount).inspect_err(|_| self.shares.give_back(&self.tap, resource, more))
    }

    /// Waits until it has to give way; for which limit, and what it was doing.
    pub(super) async fn evicted(&self) -> (Limit, Phase) {
        self.place.evicted().await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.tap.leave(&self.place);
        self.shares.give_back_all(&self.tap, self.place.clear());
    }
}

/// Connections of a tap, its requests that are with Nova, and those that wait for an identity.
pub fn held(tap: &Tap) -> [u32; 3] {
    [Resource::Connections, Resource::Requests, Resource::Held].map(|resource| tap.used.of(resource))
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
