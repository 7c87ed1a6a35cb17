//! One worker's idle connections to one endpoint.
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{connection::Connection, tls::Tls};

/// An idle connection older than this is not used again: nova's servers close theirs after a while, and a request
/// sent into a closing connection is lost.
const IDLE: Duration = Duration::from_secs(20);
/// Nor is one that was begun so long ago, however busy: the host's name may have another address now.
const LIFETIME: Duration = Duration::from_secs(60);
/// How many are kept.
const KEPT: usize = 32;

/// The last used at the end.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub(super) fn put(&self, connection: Connection, now: Instant) {
        let mut pool = self.lock();
        if pool.len() < KEPT {
            pool.push(Idle { connection, since: now });
        }
    }

    /// One over which a request can go.
    pub(super) fn take(&self, tls: Option<&Tls>, now: Instant) -> Option<Connection> {
        loop {
            let mut idle = self.lock().pop()?;
            if idle.is_usable(tls, now) {
                return Some(idle.connection);
            }
        }
    }

    /// Closes those over which none can go any more.
    pub(super) fn sweep(&self, tls: Option<&Tls>, now: Instant) {
        self.lock().retain_mut(|idle| idle.is_usable(tls, now));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn is_usable(&mut self, tls: Option<&Tls>, now: Instant) -> bool {
        let Self { connection, since } = self;
        is_young(connection.begun, *since, now)
            && tls.is_none_or(|tls| tls.loaded() <= connection.begun)
            && connection.is_quiet()
    }
}

fn is_young(begun: Instant, idle_since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(idle_since) < IDLE && now.saturating_duration_since(begun) < LIFETIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_age_by_idling_and_by_living() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        for (idle_since, now, young) in [(0, 19, true), (0, 20, false), (59, 59, true), (59, 60, false)] {
            assert_eq!(is_young(begun, at(idle_since), at(now)), young, "{idle_since} {now}");
        }
    }
}
