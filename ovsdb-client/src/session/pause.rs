//! Pauses: a connection on which nothing is monitored for a while (RFC 7047, section 4.1.7, `monitor_cancel`).

use serde_json::json;

use super::{DATA_MONITOR, Hangup, Pending, Session, SessionEvent, State};
use crate::message::Payload;

impl Session {
    /// Wants nothing of the database monitored, on this connection and all later ones, or wants it again from where it
    /// was. [`SessionEvent::Paused`] tells when the first is so, [`SessionEvent::Contents`] when the second is.
    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.follow_pause();
    }

    /// Does what is wanted if the state allows it; the answer that is waited for otherwise leads here again.
    pub(super) fn follow_pause(&mut self) {
        match self.state {
            State::Monitoring(_) if self.paused => {
                self.send("monitor_cancel", &json!([DATA_MONITOR]), Pending::Cancel);
                self.state = State::Canceling;
            }
            // A server tells of a new schema only those that monitor.
            State::Paused if !self.paused => {
                self.send("get_schema", &json!([self.config.database]), Pending::Schema);
                self.state = State::Greeting;
            }
            _ => {}
        }
    }

    /// No update comes after the answer.
    pub(super) fn cancel_answered(&mut self, result: Result<Payload, String>) -> Result<(), Hangup> {
        result.map_err(|error| Hangup::Refused { method: "monitor_cancel", error })?;
        self.be_paused();
        self.follow_pause();
        Ok(())
    }

    pub(super) fn be_paused(&mut self) {
        self.be_ready();
        self.state = State::Paused;
        self.events.push_back(SessionEvent::Paused);
    }

    /// Tells that requests can be made, once on each connection.
    pub(super) fn be_ready(&mut self) {
        self.end_greeting();
        if !std::mem::replace(&mut self.ready, true) {
            self.tally.connections.add(1);
            self.events.push_back(SessionEvent::Ready);
        }
    }
}
