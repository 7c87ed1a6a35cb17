//! Turns: how the clients of a server that restarts, or of a region that boots, come by their rows one after another.
//!
//! A server goes through whole tables for first contents and for a change of conditions, with its only thread, and
//! meanwhile does nothing else: it serves nobody, and hears and sends nothing of its cluster, which elects and elects for
//! as long as hundreds of clients wait. So whoever wants such a thing first takes a lock on that server, and gives it up
//! when it is done, after as long again: half of the time is for all others. A server gives the locks of a connection
//! that is gone to the next one, so that nobody has to hurry, or to give up.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Context, Pending, SessionConfig};

/// Settings of the turns.
#[derive(Debug, Clone)]
pub(crate) struct TurnConfig {
    /// The name of the lock.
    pub(crate) lock: String,
    /// Time after which a client goes on without a turn: somebody may hold the lock for ever.
    pub(crate) patience: Duration,
}

impl TurnConfig {
    /// True if that lock is the one by which `config` takes turns.
    pub(super) fn is_of(config: &SessionConfig, lock: &str) -> bool {
        config.turns.as_ref().is_some_and(|turns| turns.lock == lock)
    }
}

/// The turn on a connection.
#[derive(Debug, Default)]
pub(super) enum Turn {
    /// Not wanted.
    #[default]
    None,
    Awaited {
        since: Instant,
    },
    /// The work that the turn is for is under way.
    Taken {
        since: Instant,
    },
    /// The work is done, and the next client's turn is at `until`.
    Over {
        until: Instant,
    },
}

impl Turn {
    /// Takes the turn if it is this client's; if not, it is waited for. It always is where no turns are taken.
    pub(super) fn take(&mut self, context: &mut Context<'_>) -> bool {
        let (Some(turns), Some(now)) = (&context.config.turns, context.now) else { return true };
        match self {
            Self::Taken { .. } => true,
            Self::Over { .. } => {
                *self = Self::Taken { since: now };
                true
            }
            Self::Awaited { .. } => false,
            Self::None => {
                *self = Self::Awaited { since: now };
                context.mailbox.ask("lock", &json!([turns.lock]), Pending::Turn);
                false
            }
        }
    }

    /// The server has given the lock, or gives none, which is as good. Tells whether that was waited for.
    pub(super) fn came(&mut self, context: &Context<'_>) -> bool {
        let (Self::Awaited { .. }, Some(now)) = (&self, context.now) else { return false };
        *self = Self::Taken { since: now };
        true
    }

    /// Ends the turn: its work is done.
    pub(super) fn end(&mut self, context: &Context<'_>) {
        if let (Self::Taken { since }, Some(now)) = (&self, context.now) {
            *self = Self::Over { until: now + now.saturating_duration_since(*since) };
        }
    }

    /// Gives the lock up, or the place in the queue.
    pub(super) fn give_up(&mut self, context: &mut Context<'_>) {
        if !matches!(std::mem::take(self), Self::None)
            && let Some(turns) = &context.config.turns
        {
            context.mailbox.ask("unlock", &json!([turns.lock]), Pending::Unlock);
        }
    }

    /// Time of the next step: the lock was waited for long enough, or is to be given up.
    pub(super) fn due(&self, config: &SessionConfig) -> Option<Instant> {
        match self {
            Self::None | Self::Taken { .. } => None,
            Self::Awaited { since } => since.checked_add(config.turns.as_ref()?.patience),
            Self::Over { until } => Some(*until),
        }
    }

    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited { .. })
    }
}
