//! Turns: how the clients of a server that restarts, or of a region that boots, come by their rows one after another.
//!
//! A server goes through whole tables for first contents and for a change of conditions, with its only thread, and
//! meanwhile does nothing else: it serves nobody, and hears and sends nothing of its cluster, which elects and elects for
//! as long as hundreds of clients wait. So whoever wants such a thing first takes a lock on that server, and gives it up
//! when it is done, after as long again: half of the time is for all others. A server gives the locks of a connection
//! that is gone to the next one, so that nobody has to hurry, or to give up.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Hangup, Pending, Session, State};

/// How turns are taken.
#[derive(Debug, Clone)]
pub(crate) struct TurnConfig {
    /// The name of the lock.
    pub(crate) lock: String,
    /// After how long one goes on without a turn: somebody may hold the lock for ever.
    pub(crate) patience: Duration,
}

/// The turn on this connection.
#[derive(Debug, Default)]
pub(super) enum Turn {
    /// Not wanted.
    #[default]
    None,
    Awaited {
        since: Instant,
    },
    /// What it is for is under way.
    Taken {
        since: Instant,
    },
    /// That is done, and the next one's turn is then.
    Over {
        until: Instant,
    },
}

impl Session {
    /// Whether it is this client's turn; if not, it is waited for. It always is where no turns are taken.
    pub(super) fn has_turn(&mut self) -> bool {
        let (Some(config), Some(now)) = (&self.config.turns, self.last_received) else { return true };
        match self.turn {
            Turn::Taken { .. } => true,
            Turn::Over { .. } => {
                self.turn = Turn::Taken { since: now };
                true
            }
            Turn::Awaited { .. } => false,
            Turn::None => {
                let lock = json!([config.lock]);
                self.turn = Turn::Awaited { since: now };
                self.send("lock", &lock, Pending::Turn);
                false
            }
        }
    }

    /// Asks for contents when the turn has come.
    pub(super) fn queue(&mut self) -> Result<(), Hangup> {
        if self.has_turn() {
            return self.begin_monitoring();
        }
        self.state = State::Queued;
        self.end_greeting();
        Ok(())
    }

    /// The server has given the lock, or gives none, which is as good.
    pub(super) fn turn_came(&mut self) -> Result<(), Hangup> {
        let (Turn::Awaited { .. }, Some(now)) = (&self.turn, self.last_received) else { return Ok(()) };
        self.turn = Turn::Taken { since: now };
        if self.state == State::Queued {
            self.state = State::Greeting;
            self.restart_greeting(now);
            if !self.paused {
                return self.begin_monitoring();
            }
            self.be_paused();
        } else {
            self.send_conditions();
        }
        // What it was wanted for may not be wanted any more.
        if !self.pending.values().any(|pending| matches!(pending, Pending::ConditionChange)) {
            self.give_turn();
        }
        Ok(())
    }

    pub(super) fn is_turn(&self, lock: &str) -> bool {
        self.config.turns.as_ref().is_some_and(|turns| turns.lock == lock)
    }

    /// What the turn was for is done.
    pub(super) fn end_turn(&mut self) {
        if let (Turn::Taken { since }, Some(now)) = (&self.turn, self.last_received) {
            self.turn = Turn::Over { until: now + now.saturating_duration_since(*since) };
        }
    }

    /// Gives the lock up, or the place in the queue.
    fn give_turn(&mut self) {
        if !matches!(std::mem::take(&mut self.turn), Turn::None)
            && let Some(config) = &self.config.turns
        {
            let lock = json!([config.lock]);
            self.send("unlock", &lock, Pending::Unlock);
        }
    }

    pub(super) fn turn_timeout(&self) -> Option<Instant> {
        match self.turn {
            Turn::None | Turn::Taken { .. } => None,
            Turn::Awaited { since } => since.checked_add(self.config.turns.as_ref()?.patience),
            Turn::Over { until } => Some(until),
        }
    }

    pub(super) fn check_turn(&mut self, now: Instant) -> Result<(), Hangup> {
        if self.turn_timeout().is_none_or(|timeout| timeout > now) {
            return Ok(());
        }
        if let Turn::Awaited { .. } = self.turn {
            tracing::debug!(database = self.config.database, "the turn does not come: not waiting for it");
            return self.turn_came();
        }
        self.give_turn();
        Ok(())
    }
}
