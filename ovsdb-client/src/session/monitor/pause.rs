//! Pauses, in which nothing is monitored (RFC 7047, section 4.1.7, `monitor_cancel`).

use serde_json::json;

use super::super::{Context, DATA_MONITOR, Hangup, Pending, SessionEvent};
use super::{Monitor, State};
use crate::message::Payload;

impl Monitor {
    /// Wants nothing of the database monitored, on this connection and all later ones, or wants it again from where it
    /// was.
    pub(in crate::session) fn set_paused(&mut self, paused: bool, context: &mut Context<'_>) {
        self.paused = paused;
        self.follow_pause(context);
    }

    /// Does what is wanted if the state allows it; the answer that is waited for otherwise leads here again.
    pub(super) fn follow_pause(&mut self, context: &mut Context<'_>) {
        match self.state {
            State::Monitoring(_) if self.paused => {
                context.mailbox.ask("monitor_cancel", &json!([DATA_MONITOR]), Pending::Cancel);
                self.state = State::Canceling;
            }
            // A server tells of a new schema only those that monitor.
            State::Paused if !self.paused => {
                context.mailbox.ask("get_schema", &json!([context.config.database]), Pending::Schema);
                self.state = State::Greeting;
            }
            _ => {}
        }
    }

    /// No update comes after the answer.
    pub(in crate::session) fn cancel_answered(
        &mut self,
        result: Result<Payload, String>,
        context: &mut Context<'_>,
    ) -> Result<(), Hangup> {
        result.map_err(|error| Hangup::Refused { method: "monitor_cancel", error })?;
        self.state = State::Paused;
        context.mailbox.tell(SessionEvent::Paused);
        self.follow_pause(context);
        Ok(())
    }
}
