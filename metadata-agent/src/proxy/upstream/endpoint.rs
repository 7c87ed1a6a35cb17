//! One of Nova's endpoints, and who is told of its health.
use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::health::Health;
use crate::{config, directory::Tap, error_chain::chain, notice::Notice};

/// Is told what happens to endpoints, which are named as `host:port`.
pub trait Observer: fmt::Debug + Send + Sync {
    /// The endpoint is taken for healthy from now on, or is not.
    fn up(&self, endpoint: &str, up: bool);
    /// A connection was made.
    fn connected(&self, endpoint: &str);
    /// A connection or a request failed.
    fn failed(&self, endpoint: &str);
}

/// A server of Nova's metadata.
#[derive(Debug)]
pub(super) struct Endpoint {
    address: config::Endpoint,
    name: String,
    health: Mutex<Health>,
    /// Time at which somebody last saw that nobody serves there, or went to see.
    away: Mutex<Option<Instant>>,
    mute: Notice,
    failing: Notice,
    forbidden: Notice,
    broken_off: Notice,
    observer: Arc<dyn Observer>,
}

impl Endpoint {
    pub(super) fn new(address: config::Endpoint, observer: Arc<dyn Observer>) -> Self {
        let name = address.authority();
        observer.up(&name, true);
        Self {
            address,
            name,
            health: Mutex::default(),
            away: Mutex::default(),
            mute: Notice::default(),
            failing: Notice::default(),
            forbidden: Notice::default(),
            broken_off: Notice::default(),
            observer,
        }
    }

    pub(super) fn address(&self) -> &config::Endpoint {
        &self.address
    }

    /// For requests of that tap.
    pub(super) fn is_up_for(&self, tap: &Tap) -> bool {
        self.health().is_up_for(tap.name())
    }

    /// See [`Health::try_again`].
    pub(super) fn try_again(&self, tap: &Tap, now: Instant, time: Duration) -> bool {
        self.health().try_again(tap.name(), now, time)
    }

    /// See [`Health::undecided`].
    pub(super) fn undecided(&self, now: Instant) {
        self.health().undecided(now);
    }

    pub(super) fn connected(&self) {
        *self.away() = None;
        self.observer.connected(&self.name);
    }

    /// It refused a connection, or dropped one.
    pub(super) fn is_away(&self, now: Instant) {
        *self.away() = Some(now);
    }

    /// True if to go and see if it is back: of all who wait for it, one does in each `interval`.
    pub(super) fn shall_look(&self, now: Instant, interval: Duration) -> bool {
        let mut away = self.away();
        match *away {
            Some(at) if now.saturating_duration_since(at) < interval => false,
            Some(_) => {
                *away = Some(now);
                true
            }
            None => true,
        }
    }

    fn away(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer to that tap's request, whatever its status: Nova's errors are Nova's.
    pub(super) fn answered(&self, tap: &Tap) {
        if self.health().succeed(tap.name()) {
            info!(nova = %self, "nova answers again");
            self.observer.up(&self.name, true);
        }
    }

    /// It answered 403, which Nova says to signatures and to hardly anything else (`handler.py` of nova's metadata API).
    pub(super) fn forbade(&self, now: Instant) {
        if let Some(times) = self.forbidden.times(now) {
            warn!(
                nova = %self,
                times,
                "nova refuses signatures (403): metadata_proxy_shared_secret probably differs from that in nova's [neutron]"
            );
        }
    }

    /// It cannot be reached, which no guest can bring about.
    pub(super) fn failed(&self, error: &dyn Error, now: Instant) {
        self.observer.failed(&self.name);
        let (was_up, avoided) = {
            let mut health = self.health();
            (health.is_up(), health.fail(now))
        };
        self.is_down(was_up, avoided, error);
    }

    /// It was reached, and did not answer a request of that tap as it should.
    pub(super) fn failed_request(&self, tap: &Tap, error: &dyn Error, now: Instant) {
        self.observer.failed(&self.name);
        self.suspect(tap, error, now);
    }

    /// Has that tap's requests avoid it for a while, and everybody's if it fails several.
    pub(super) fn suspect(&self, tap: &Tap, error: &dyn Error, now: Instant) {
        let (was_up, avoided) = {
            let mut health = self.health();
            (health.is_up(), health.fail_request(tap.name(), now))
        };
        match avoided {
            Some(avoided) => self.is_down(was_up, avoided, error),
            None => {
                if let Some(times) = self.failing.times(now) {
                    let error = chain(error);
                    warn!(nova = %self, times, %tap, error, "nova failed a guest's request, which may be to blame");
                }
            }
        }
    }

    fn is_down(&self, was_up: bool, avoided: Duration, error: &dyn Error) {
        let error = chain(error);
        if was_up {
            warn!(nova = %self, error, "nova failed");
            self.observer.up(&self.name, false);
        } else {
            debug!(nova = %self, error, avoided_seconds = avoided.as_secs_f64(), "nova still fails");
        }
    }

    /// It closed a new connection without an answer, which may be the request's fault.
    pub(super) fn kept_mute(&self, now: Instant) {
        self.observer.failed(&self.name);
        self.undecided(now);
        if let Some(times) = self.mute.times(now) {
            warn!(nova = %self, times, "nova closed connections without an answer");
        }
    }

    /// It did not finish an answer, which may be the fault of a guest that was slow to take it.
    pub(super) fn broke_off(&self, error: &dyn Error, now: Instant) {
        self.observer.failed(&self.name);
        if let Some(times) = self.broken_off.times(now) {
            warn!(nova = %self, times, error = chain(error), "nova broke off an answer");
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
