//! The protocol without I/O: what to send, what a message means, and when a peer is dead.
//!
//! A [`Session`] outlives connections: it remembers the last transaction and the conditions that the server knew, to
//! resume from there. It is given messages and the time, and asked for messages and events.

mod config;
mod event;
mod filling;
mod greeting;
mod hangup;
mod lock;
mod log;
mod mailbox;
mod monitor;
mod pending;
mod receiving;
mod resume;
mod server;
mod silence;
mod table;
mod turn;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::condition::Conditions;
use crate::counters::SharedTally;
use crate::error::Error;

pub(crate) use config::SessionConfig;
pub(crate) use event::{SessionEvent, Transmit};
pub use greeting::Awaited;
pub use hangup::Hangup;
use pending::Pending;
pub(crate) use table::TableSpec;
pub(crate) use turn::TurnConfig;

/// Updates kept while a monitor request is unanswered. A server sends none before its answer unless it is broken.
const MAX_DEFERRED: usize = 1024;

/// The names by which updates say which monitor they belong to (RFC 7047, section 4.1.5).
const SERVER_MONITOR: &str = "server";
const DATA_MONITOR: &str = "data";

/// Context for a part of a session: the settings, when the server was last heard of, and the way out.
#[derive(Debug)]
struct Context<'a> {
    config: &'a SessionConfig,
    /// Nothing without a connection.
    now: Option<Instant>,
    mailbox: &'a mut mailbox::Mailbox,
}

/// The state machine of one client: parts that each own what they know, and what goes between them.
#[derive(Debug)]
pub(crate) struct Session {
    config: SessionConfig,
    mailbox: mailbox::Mailbox,
    server: server::Server,
    greeting: greeting::Greeting,
    silence: silence::Silence,
    log_end: log::LogEnd,
    monitor: monitor::Monitor,
    locks: lock::Locks,
    /// True if the server was found good since the connection was made.
    ready: bool,
    tally: SharedTally,
}

/// The context of a part of `$session`, which can be borrowed beside it.
macro_rules! context {
    ($session:expr) => {
        &mut Context {
            config: &$session.config,
            now: $session.silence.last_received(),
            mailbox: &mut $session.mailbox,
        }
    };
}

use context;

impl Session {
    /// A session that was never connected.
    pub(crate) fn new(config: SessionConfig, tally: SharedTally) -> Self {
        Self {
            monitor: monitor::Monitor::new(&config.tables, Arc::clone(&tally)),
            config,
            mailbox: mailbox::Mailbox::default(),
            server: server::Server::default(),
            greeting: greeting::Greeting::default(),
            silence: silence::Silence::default(),
            log_end: log::LogEnd::default(),
            locks: lock::Locks::default(),
            ready: false,
            tally,
        }
    }

    /// There are so many servers from now on.
    pub(crate) fn set_servers(&mut self, servers: usize) {
        self.config.servers = servers;
    }

    /// A connection was made.
    pub(crate) fn connected(&mut self, now: Instant) {
        if self.monitor.is_connected() {
            self.disconnected();
        }
        self.activity(now);
        self.greeting.restart(now);
        server::Server::ask(&self.config, &mut self.mailbox);
        self.log_end.ask(&self.config, &mut self.mailbox);
        self.monitor.connected(context!(self));
        self.locks.connected(&mut self.mailbox);
    }

    /// The connection is gone, or none was made. Requests without an answer fail.
    pub(crate) fn disconnected(&mut self) {
        self.log_end.attempt_ended(self.ready);
        self.greeting.attempt_ended(self.ready);
        self.ready = false;
        self.monitor.disconnected();
        self.server.disconnected();
        self.silence.disconnected();
        self.mailbox.disconnected();
        self.locks.disconnected(&mut self.mailbox);
    }

    /// True if requests can be made.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The next message to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.mailbox.next_transmit()
    }

    /// The next thing that happened.
    pub(crate) fn poll_event(&mut self) -> Option<SessionEvent> {
        self.mailbox.next_event()
    }

    /// Makes a request of the user's; the answer comes as [`SessionEvent::Reply`].
    pub(crate) fn request(&mut self, method: &str, params: &serde_json::Value) -> Result<u64, Error> {
        if !self.ready {
            return Err(Error::NotConnected);
        }
        Ok(self.mailbox.ask(method, params, Pending::User(method.to_owned())))
    }

    /// Sets the conditions of all tables, which are of `generation`. [`SessionEvent::ConditionInForce`] tells when the
    /// server follows them.
    pub(crate) fn set_conditions(&mut self, generation: u64, conditions: Vec<Conditions>) {
        self.monitor.set_conditions(generation, conditions, context!(self));
    }

    /// Forgets the last transaction, so that the next connection begins with a complete dump.
    pub(crate) fn forget(&mut self) {
        self.monitor.forget();
    }

    /// Wants nothing of the database monitored, on this connection and all later ones, or wants it again from where it
    /// was. [`SessionEvent::Paused`] tells when the first is so, [`SessionEvent::Contents`] when the second is.
    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.monitor.set_paused(paused, context!(self));
    }

    /// Wants a lock, now and after every reconnection, by force if `steal`.
    pub(crate) fn lock(&mut self, name: &str, steal: bool) {
        self.locks.want(name, steal, &mut self.mailbox);
    }

    /// Gives a lock up.
    pub(crate) fn unlock(&mut self, name: &str) {
        self.locks.give_up(name, &mut self.mailbox);
    }

    /// Something was received, a complete message or not: the peer lives.
    pub(crate) fn activity(&mut self, now: Instant) {
        self.silence.heard(now);
    }

    /// A part of a message came that is not complete.
    pub(crate) fn arriving(&mut self, now: Instant) {
        self.greeting.arriving(now);
    }

    /// Nobody listened to the server for `deaf`, until now.
    pub(crate) fn listening(&mut self, now: Instant, deaf: Duration) {
        self.activity(now);
        self.greeting.excuse(deaf);
    }

    /// Time at which [`Self::handle_timeout`] wants to be called.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let silence = self.silence.due(self.config.probe_interval);
        let (greeting, turn) =
            (self.greeting.due(&self.config, self.monitor.awaited()), self.monitor.turn_due(&self.config));
        [silence, self.log_end.due(), greeting, turn].into_iter().flatten().min()
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), Hangup> {
        if self.log_end.due().is_some_and(|due| due <= now) {
            self.log_end.ask(&self.config, &mut self.mailbox);
        }
        self.greeting.check(&self.config, now, self.monitor.awaited(), &mut self.mailbox)?;
        let beginning = self.monitor.check_turn(now, context!(self))?;
        self.begin_after_turn(beginning);
        if self.silence.check(now, self.config.probe_interval)? {
            self.probe();
        }
        Ok(())
    }

    /// Sends an `echo`, so that the server hears from a client that does not read at the moment.
    pub(crate) fn probe(&mut self) {
        self.mailbox.ask("echo", &json!([]), Pending::Probe);
    }

    /// The contents are here: the server is of use.
    fn publish(&mut self, contents: monitor::Contents) -> Result<(), Hangup> {
        self.be_ready();
        self.monitor.publish(contents, context!(self))
    }

    /// Begins to monitor, or to pause, once everything about the server is known.
    fn greeted(&mut self) -> Result<(), Hangup> {
        let is_of_greeting =
            |pending: &Pending| matches!(pending, Pending::Server | Pending::LogEnd | Pending::Schema);
        if self.mailbox.awaits(is_of_greeting) {
            return Ok(());
        }
        let beginning = self.monitor.begin(context!(self))?;
        self.begun(beginning);
        Ok(())
    }

    /// Goes on as the connection has begun.
    fn begun(&mut self, beginning: Option<monitor::Beginning>) {
        match beginning {
            Some(monitor::Beginning::Paused) => {
                self.be_ready();
                self.mailbox.tell(SessionEvent::Paused);
            }
            // Others have their turn meanwhile: that is not the server's silence.
            Some(monitor::Beginning::Queued) => self.greeting.end(),
            Some(monitor::Beginning::Requested) | None => {}
        }
    }

    /// It is this client's turn to ask for contents or conditions.
    fn turn_came(&mut self) -> Result<(), Hangup> {
        let beginning = self.monitor.turn_came(context!(self))?;
        self.begin_after_turn(beginning);
        Ok(())
    }

    /// The server has its time from the turn on.
    fn begin_after_turn(&mut self, beginning: Option<monitor::Beginning>) {
        if let (Some(monitor::Beginning::Requested), Some(now)) = (beginning, self.silence.last_received()) {
            self.greeting.restart(now);
        }
        self.begun(beginning);
    }

    /// Tells that requests can be made, once on each connection.
    fn be_ready(&mut self) {
        self.greeting.end();
        if !std::mem::replace(&mut self.ready, true) {
            self.tally.connections.add(1);
            self.mailbox.tell(SessionEvent::Ready);
        }
    }
}

#[cfg(test)]
mod tests;
