//! What guests may take of us: each tap for itself, and all of them together.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::rate::WindowLimit;
use crate::config::Rate;

/// The bounds.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of all guests together.
    pub connections: u32,
    /// Requests of all guests together that are complete, and with Nova.
    pub requests: u32,
    /// Bytes of all guests together: of requests that are not complete, and of answers that are not acknowledged, in the
    /// kernel too.
    pub unfinished_bytes: u32,
    /// Connections of one tap; 0 for no limit.
    pub port_connections: u32,
    /// Requests of one tap that are with Nova; 0 for no limit.
    pub port_requests: u32,
    /// Requests of one tap that wait for their identity; 0 for no limit.
    pub port_held: u32,
    /// Requests of one tap in time.
    pub rates: RequestLimits,
    /// Answered to a request beyond a limit: 503, or 429 for those who want it.
    pub limit_status: u16,
    /// How long a request waits for its guest to become known.
    pub hold: Duration,
    /// How long a guest may take to send a request's head.
    pub head: Duration,
    /// How long a guest may pause within a request's body, or while it takes the response.
    pub pause: Duration,
    /// How long a connection may wait for a next request.
    pub idle: Duration,
    /// How long a connection may last.
    pub lifetime: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Bytes of a request's body; Nova takes 1020 for the password, the only body there is.
    pub body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            requests: 1024,
            unfinished_bytes: 32 << 20,
            port_connections: 128,
            port_requests: 32,
            port_held: 32,
            rates: RequestLimits { rate: Rate { rate: 100, burst: 200 }, windows: [None, None] },
            limit_status: 503,
            hold: Duration::from_secs(8),
            head: Duration::from_secs(30),
            pause: Duration::from_secs(32),
            idle: Duration::from_secs(30),
            lifetime: Duration::from_secs(600),
            head_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
        }
    }
}

/// How many requests a tap may make in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Ours.
    pub rate: Rate,
    /// Neutron's base and burst windows, where `[metadata_rate_limiting]` is on.
    pub windows: [Option<WindowLimit>; 2],
}

/// How many there are of something; each holds a permit while it lasts.
#[derive(Debug, Clone, Default)]
pub(super) struct Gauge(Arc<AtomicU32>);

impl Gauge {
    /// One more, unless there are `most` already; 0 for no limit.
    pub(super) fn take(&self, most: u32) -> Option<Permit> {
        let permit = Permit(self.0.clone());
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        (most == 0 || before < most).then_some(permit)
    }
}

/// Counts for as long as it lives.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicU32>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_given_back() {
        let gauge = Gauge::default();
        let held: Vec<_> = (0..5).filter_map(|_| gauge.take(3)).collect();
        assert_eq!(held.len(), 3);
        drop(held);
        assert_eq!((0..3).filter_map(|_| gauge.take(3)).collect::<Vec<_>>().len(), 3);
        assert!((0..100).all(|_| gauge.take(0).is_some()));
    }
}
