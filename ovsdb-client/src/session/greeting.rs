//! The greeting: how long a server may take to show that it is of use, where there is another one to ask.

use std::fmt;
use std::time::{Duration, Instant};

use super::mailbox::Mailbox;
use super::{Hangup, SessionConfig, SessionEvent};

/// Limit of the doublings of the timeout, one for each round in which no server answered in time: servers that restart
/// are asked by all clients at once, and to give them up early would only have them begin again.
const MAX_DOUBLINGS: u32 = 3;

/// Factor by which contents may take longer to begin than the other steps: a server works at all rows of a region for
/// seconds, with nothing to show, and goes on doing so for a client that is gone.
const CONTENTS: u32 = 6;

/// Message that a new connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Awaited {
    /// The schema, and what the server says about itself.
    Greeting,
    /// The first rows of the tables.
    Contents,
}

impl fmt::Display for Awaited {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Greeting => "the schema and the state of the server",
            Self::Contents => "the first contents of the tables",
        })
    }
}

/// The clock of the greeting.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// The last step of the server's; `None` once it is of use.
    since: Option<Instant>,
    /// True if it was told that the next step is late.
    told: bool,
    /// The attempts in a row that ended by this clock.
    unanswered: u32,
}

impl Greeting {
    /// The server made a step, or begins.
    pub(super) fn restart(&mut self, now: Instant) {
        self.since = Some(now);
        self.told = false;
    }

    /// A part of a message came that is not complete: contents take their time.
    pub(super) fn arriving(&mut self, now: Instant) {
        if self.since.is_some() {
            self.since = Some(now);
        }
    }

    /// Nobody listened to the server for `deaf`: that was not its silence.
    pub(super) fn excuse(&mut self, deaf: Duration) {
        self.since = self.since.and_then(|since| since.checked_add(deaf));
    }

    /// The server is of use.
    pub(super) fn end(&mut self) {
        self.since = None;
    }

    /// An attempt is over. A server of use ends the round.
    pub(super) fn attempt_ended(&mut self, was_of_use: bool) {
        self.since = None;
        if was_of_use {
            self.unanswered = 0;
        }
    }

    pub(super) fn due(&self, config: &SessionConfig, awaited: Awaited) -> Option<Instant> {
        let told = notice_time(config).filter(|_| !self.told);
        self.since?.checked_add(told.or(self.limit(config, awaited))?)
    }

    /// Time has passed, in which there was nothing of what is `awaited`.
    pub(super) fn check(
        &mut self,
        config: &SessionConfig,
        now: Instant,
        awaited: Awaited,
        mailbox: &mut Mailbox,
    ) -> Result<(), Hangup> {
        let Some(since) = self.since else { return Ok(()) };
        let waited = now.saturating_duration_since(since);
        if !self.told && notice_time(config).is_some_and(|time| waited >= time) {
            self.told = true;
            mailbox.tell(SessionEvent::Waiting(awaited));
        }
        match self.limit(config, awaited) {
            Some(limit) if waited >= limit => {
                self.unanswered = self.unanswered.saturating_add(1);
                Err(Hangup::Unanswered { awaited, waited: limit })
            }
            _ => Ok(()),
        }
    }

    /// Timeout after which the server is left for another one.
    fn limit(&self, config: &SessionConfig, awaited: Awaited) -> Option<Duration> {
        let servers = u32::try_from(config.servers).unwrap_or(u32::MAX);
        let rounds = self.unanswered.checked_div(servers).unwrap_or(0);
        let step = if awaited == Awaited::Contents { CONTENTS } else { 1 };
        let time = config.greeting_timeout.saturating_mul(step << rounds.min(MAX_DOUBLINGS));
        (servers > 1 && !config.greeting_timeout.is_zero()).then_some(time)
    }
}

/// Time after which the program is told what is being waited for.
fn notice_time(config: &SessionConfig) -> Option<Duration> {
    let time = config.greeting_timeout;
    (!time.is_zero()).then_some(time / 2)
}
