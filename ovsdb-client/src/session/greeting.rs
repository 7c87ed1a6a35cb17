//! The greeting: how long a server may take to show that it is of use, where there is another one to ask.

use std::fmt;
use std::time::{Duration, Instant};

use super::{Hangup, Session, SessionEvent, State};

/// How often the time doubles, once for each round in which no server answered in time: servers that restart are asked by
/// all clients at once, and to give them up early would only have them begin again.
const MAX_DOUBLINGS: u32 = 3;

/// What a new connection waits for.
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
    /// Whether it was told that the next step is late.
    told: bool,
    /// The attempts in a row that ended by this clock.
    unanswered: u32,
}

impl Session {
    /// The server made a step, or begins.
    pub(super) fn restart_greeting(&mut self, now: Instant) {
        self.greeting.since = Some(now);
        self.greeting.told = false;
    }

    /// A part of a message came that is not complete: contents take their time.
    pub(crate) fn arriving(&mut self, now: Instant) {
        if self.greeting.since.is_some() {
            self.greeting.since = Some(now);
        }
    }

    /// Nobody listened to the server for `deaf`, until now: that was not its silence.
    pub(crate) fn listening(&mut self, now: Instant, deaf: Duration) {
        self.activity(now);
        self.greeting.since = self.greeting.since.and_then(|since| since.checked_add(deaf));
    }

    pub(super) fn end_greeting(&mut self) {
        self.greeting.since = None;
    }

    /// A server of use ends the round.
    pub(super) fn count_greeting(&mut self) {
        self.greeting.since = None;
        if self.ready {
            self.greeting.unanswered = 0;
        }
    }

    pub(super) fn greeting_timeout(&self) -> Option<Instant> {
        let since = self.greeting.since?;
        let (told, limit) = (self.notice_time().filter(|_| !self.greeting.told), self.greeting_limit());
        since.checked_add(told.or(limit)?)
    }

    pub(super) fn check_greeting(&mut self, now: Instant) -> Result<(), Hangup> {
        let Some(since) = self.greeting.since else { return Ok(()) };
        let waited = now.saturating_duration_since(since);
        let awaited = if self.state == State::Requested { Awaited::Contents } else { Awaited::Greeting };
        if !self.greeting.told && self.notice_time().is_some_and(|time| waited >= time) {
            self.greeting.told = true;
            self.events.push_back(SessionEvent::Waiting(awaited));
        }
        match self.greeting_limit() {
            Some(limit) if waited >= limit => {
                self.greeting.unanswered = self.greeting.unanswered.saturating_add(1);
                Err(Hangup::Unanswered { awaited, waited: limit })
            }
            _ => Ok(()),
        }
    }

    /// When it is told what is being waited for.
    fn notice_time(&self) -> Option<Duration> {
        let time = self.config.greeting_timeout;
        (!time.is_zero()).then_some(time / 2)
    }

    /// When the server is left for another one.
    fn greeting_limit(&self) -> Option<Duration> {
        let servers = u32::try_from(self.config.servers).unwrap_or(u32::MAX);
        let rounds = self.greeting.unanswered.checked_div(servers).unwrap_or(0);
        let time = self.config.greeting_timeout.saturating_mul(1 << rounds.min(MAX_DOUBLINGS));
        (servers > 1 && !time.is_zero()).then_some(time)
    }
}
