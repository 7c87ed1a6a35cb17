//! One of Nova's endpoints, and what requests told about its health.
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::config;

/// For how long an endpoint is avoided after its first failure, and doubled with each further one.
const BACKOFF: Duration = Duration::from_millis(500);
/// Doubled up to this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Is told what happens to endpoints, which are named as `host:port`.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Whether it is taken for healthy.
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
    observer: Arc<dyn Observer>,
}

impl Endpoint {
    pub(super) fn new(address: config::Endpoint, observer: Arc<dyn Observer>) -> Self {
        let name = address.authority();
        observer.up(&name, true);
        Self { address, name, health: Mutex::default(), observer }
    }

    pub(super) fn address(&self) -> &config::Endpoint {
        &self.address
    }

    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.health().is_up(now)
    }

    pub(super) fn connected(&self) {
        self.observer.connected(&self.name);
    }

    /// An answer, whatever its status: Nova's errors are Nova's.
    pub(super) fn answered(&self) {
        if self.health().succeed() {
            info!(nova = %self, "nova answers again");
            self.observer.up(&self.name, true);
        }
    }

    pub(super) fn failed(&self, error: &dyn std::error::Error, now: Instant) {
        let avoided = self.health().fail(now);
        let error = crate::error_chain::chain(error);
        warn!(nova = %self, error, avoided_seconds = avoided.as_secs_f64(), "nova failed");
        self.observer.failed(&self.name);
        self.observer.up(&self.name, false);
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Failures in a row, and until when they count.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    avoided_until: Option<Instant>,
}

impl Health {
    fn is_up(&self, now: Instant) -> bool {
        self.avoided_until.is_none_or(|until| until <= now)
    }

    /// True if it had failed before.
    fn succeed(&mut self) -> bool {
        let recovered = self.failures > 0;
        *self = Self::default();
        recovered
    }

    /// For how long it is to be avoided. Requests that were under way together count as one failure.
    fn fail(&mut self, now: Instant) -> Duration {
        if self.is_up(now) {
            self.failures = self.failures.saturating_add(1);
        }
        let backoff = BACKOFF.saturating_mul(1 << (self.failures.clamp(1, 16) - 1)).min(LONGEST_BACKOFF);
        self.avoided_until = Some(now + backoff);
        backoff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_avoided_longer_and_longer_until_one_succeeds() {
        let mut now = Instant::now();
        let mut health = Health::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = health.fail(now);
            assert_eq!(health.fail(now), wait, "at the same time");
            assert!(!health.is_up(now));
            now += wait;
            assert!(health.is_up(now));
            waits.push(wait.as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert!(health.succeed());
        assert!(!health.succeed());
        assert_eq!(health.fail(now), BACKOFF);
    }
}
