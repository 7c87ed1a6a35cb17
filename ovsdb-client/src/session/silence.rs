//! Silence: when a server is asked for a sign of life, and when it is given up.

use std::time::{Duration, Instant};

use super::Hangup;

/// Time at which a server was last heard of.
#[derive(Debug, Default)]
pub(super) struct Silence {
    last_received: Option<Instant>,
    probed: bool,
}

impl Silence {
    /// Something was received, a complete message or not: the peer lives.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_received = Some(now);
        self.probed = false;
    }

    /// Time at which the server was last heard of; nothing without a connection.
    pub(super) fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    pub(super) fn disconnected(&mut self) {
        *self = Self::default();
    }

    /// Time of the next look. An interval of zero never asks, and neither does one beyond all time.
    pub(super) fn due(&self, interval: Duration) -> Option<Instant> {
        if interval.is_zero() {
            return None;
        }
        self.last_received?.checked_add(if self.probed { interval.saturating_mul(2) } else { interval })
    }

    /// Time has passed; tells whether the server has to be asked.
    pub(super) fn check(&mut self, now: Instant, interval: Duration) -> Result<bool, Hangup> {
        if self.due(interval).is_none_or(|due| due > now) {
            return Ok(false);
        }
        if self.probed {
            return Err(Hangup::Silent(interval.saturating_mul(2)));
        }
        self.probed = true;
        Ok(true)
    }
}
