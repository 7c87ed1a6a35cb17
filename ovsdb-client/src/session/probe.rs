//! Silence: when a server is asked for a sign of life, and when it is given up.

use std::time::Instant;

use serde_json::json;

use super::{Hangup, Pending, Session};

impl Session {
    /// Something was received, a complete message or not: the peer lives.
    pub(crate) fn activity(&mut self, now: Instant) {
        self.last_received = Some(now);
        self.probed = false;
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        [self.probe_timeout(), self.log_end.due(), self.greeting_timeout()].into_iter().flatten().min()
    }

    fn probe_timeout(&self) -> Option<Instant> {
        let interval = self.config.probe_interval;
        if interval.is_zero() {
            return None;
        }
        // An interval beyond all time never asks either.
        self.last_received?.checked_add(if self.probed { interval.saturating_mul(2) } else { interval })
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), Hangup> {
        if self.log_end.due().is_some_and(|due| due <= now) {
            self.ask_log_end();
        }
        self.check_greeting(now)?;
        if self.probe_timeout().is_none_or(|timeout| timeout > now) {
            return Ok(());
        }
        if self.probed {
            return Err(Hangup::Silent(self.config.probe_interval.saturating_mul(2)));
        }
        self.probed = true;
        self.probe();
        Ok(())
    }

    /// Sends an `echo`, so that the server hears from a client that does not read at the moment.
    pub(crate) fn probe(&mut self) {
        self.send("echo", &json!([]), Pending::Probe);
    }
}
