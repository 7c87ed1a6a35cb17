//! The protocol without I/O: what to send, what a message means, and when a peer is dead.
//!
//! A [`Session`] outlives connections: it remembers the last transaction and the conditions that the server knew, to
//! resume from there. It is given messages and the time, and asked for messages and events.

mod greeting;
mod hangup;
mod lock;
mod log;
mod monitor;
mod pause;
mod probe;
mod server;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::condition::Conditions;
use crate::counters::SharedTally;
use crate::error::{Error, describe};
use crate::message::{self, Envelope, Payload};
use crate::replica::{Composites, Dialect};
use crate::row::Column;
use crate::schema::Schema;

pub use greeting::Awaited;
pub use hangup::Hangup;

/// Updates kept while a monitor request is unanswered. A server sends none before its answer unless it is broken.
const MAX_DEFERRED: usize = 1024;

/// The names by which updates say which monitor they belong to (RFC 7047, section 4.1.5).
const SERVER_MONITOR: &str = "server";
const DATA_MONITOR: &str = "data";

/// What a session is about.
#[derive(Debug, Clone)]
pub(crate) struct SessionConfig {
    /// The database's name.
    pub(crate) database: String,
    /// The tables to replicate.
    pub(crate) tables: Vec<TableSpec>,
    /// How long a server may be silent before it is asked for a sign of life, and then before it is given up;
    /// zero never asks.
    pub(crate) probe_interval: Duration,
    /// How long each step of a new connection may take, up to the first contents, if there are other servers.
    pub(crate) greeting_timeout: Duration,
    /// How many bytes of updates are kept that come before the answer to the monitor request.
    pub(crate) deferred_limit: usize,
    /// How many servers there are, each of which is tried in turn.
    pub(crate) servers: usize,
    /// Whether to refuse servers of a cluster that are not its leader.
    pub(crate) leader_only: bool,
}

/// A table to replicate.
#[derive(Debug, Clone)]
pub(crate) struct TableSpec {
    /// The table's name.
    pub(crate) name: &'static str,
    /// Its columns.
    pub(crate) columns: &'static [Column],
    /// Whether databases may lack the table.
    pub(crate) optional: bool,
    /// The rows to begin with.
    pub(crate) conditions: Conditions,
}

/// What a session has to tell.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// The server has not said for a while what a connection begins with.
    Waiting(Awaited),
    /// The server is acceptable. Requests can be made from now on.
    Ready,
    /// The answer to a monitor request.
    Contents {
        /// The tables.
        updates: Payload,
        /// Whether these are all rows; otherwise they are the changes since the last connection.
        complete: bool,
        /// How they are worded.
        dialect: Dialect,
        /// The columns that the server has and sends differences of.
        composites: Arc<Composites>,
        /// The server's schema.
        schema: Option<Arc<Schema>>,
    },
    /// Changes.
    Update {
        /// The tables.
        updates: Payload,
        /// How they are worded.
        dialect: Dialect,
    },
    /// The conditions of this generation, and all before it, are in force.
    ConditionInForce(u64),
    /// The conditions of this generation were refused; those before stay in force.
    ConditionRefused {
        /// The generation.
        generation: u64,
        /// The server's words.
        error: String,
    },
    /// A clause that does not fit the server's schema was left out.
    ClauseLeftOut {
        /// The table.
        table: &'static str,
        /// The column.
        column: String,
        /// What does not fit.
        problem: String,
    },
    /// Nothing is monitored, and no update comes until [`Session::set_paused`] ends that.
    Paused,
    /// A request was answered.
    Reply {
        /// The request's id, as [`Session::request`] gave it.
        id: u64,
        /// The result.
        result: Result<Payload, Error>,
    },
    /// A lock was obtained or lost.
    Lock {
        /// The lock's name.
        name: String,
        /// Whether it is held now.
        held: bool,
    },
}

/// A message to send.
#[derive(Debug)]
pub(crate) struct Transmit {
    /// The JSON text.
    pub(crate) message: Vec<u8>,
    /// Whether the server asked for it, as it could do without end: all others are few, or wanted by the user.
    pub(crate) is_answer: bool,
}

/// The state machine of one client.
#[derive(Debug)]
pub(crate) struct Session {
    config: SessionConfig,
    tally: SharedTally,
    resume: monitor::Resume,
    locks: BTreeMap<String, lock::Lock>,
    next_id: u64,
    log_end: log::LogEnd,
    greeting: greeting::Greeting,

    paused: bool,

    state: State,
    /// Whether the server was found good since the connection was made.
    ready: bool,
    pending: HashMap<u64, Pending>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<SessionEvent>,
    deferred: Vec<(Payload, Dialect, Option<Uuid>)>,
    server: Option<server::ServerStatus>,
    schema: Option<Arc<Schema>>,
    last_received: Option<Instant>,
    probed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Disconnected,
    /// Waiting for the schema and the server's own state.
    Greeting,
    /// Waiting for the contents of the tables.
    Requested,
    Monitoring(Dialect),
    /// Waiting for the end of the updates.
    Canceling,
    Paused,
}

#[derive(Debug)]
enum Pending {
    Probe,
    ChangeAware,
    Server,
    LogEnd,
    Schema,
    Monitor(Dialect),
    ConditionChange,
    Cancel,
    Lock(String),
    Unlock,
    User(String),
}

impl Pending {
    /// Whether the answer brings a new connection forward.
    fn is_step(&self) -> bool {
        matches!(self, Self::Server | Self::LogEnd | Self::Schema | Self::Monitor(_))
    }
}

impl Session {
    /// A session that was never connected.
    pub(crate) fn new(config: SessionConfig, tally: SharedTally) -> Self {
        Self {
            resume: monitor::Resume::new(&config.tables),
            config,
            tally,
            locks: BTreeMap::new(),
            next_id: 0,
            log_end: log::LogEnd::default(),
            greeting: greeting::Greeting::default(),
            paused: false,
            state: State::Disconnected,
            ready: false,
            pending: HashMap::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            deferred: Vec::new(),
            server: None,
            schema: None,
            last_received: None,
            probed: false,
        }
    }

    /// There are so many servers from now on.
    pub(crate) fn set_servers(&mut self, servers: usize) {
        self.config.servers = servers;
    }

    /// A connection was made.
    pub(crate) fn connected(&mut self, now: Instant) {
        if self.state != State::Disconnected {
            self.disconnected();
        }
        self.state = State::Greeting;
        self.activity(now);
        self.restart_greeting(now);
        self.greet();
        self.want_locks();
    }

    /// The connection is gone, or none was made. Requests without an answer fail.
    pub(crate) fn disconnected(&mut self) {
        self.count_attempt();
        self.count_greeting();
        self.state = State::Disconnected;
        self.ready = false;
        self.resume.disconnected();
        self.transmits.clear();
        self.deferred.clear();
        self.server = None;
        self.schema = None;
        self.last_received = None;
        self.probed = false;
        for (id, pending) in std::mem::take(&mut self.pending) {
            if let Pending::User(_) = pending {
                self.events.push_back(SessionEvent::Reply { id, result: Err(Error::Interrupted) });
            }
        }
        self.lose_locks();
    }

    /// Whether requests can be made.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The next message to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing that happened.
    pub(crate) fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// Makes a request of the user's; the answer comes as [`SessionEvent::Reply`].
    pub(crate) fn request(&mut self, method: &str, params: &serde_json::Value) -> Result<u64, Error> {
        if !self.ready {
            return Err(Error::NotConnected);
        }
        Ok(self.send(method, params, Pending::User(method.to_owned())))
    }

    fn send(&mut self, method: &str, params: &serde_json::Value, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.transmits
            .push_back(Transmit { message: message::request(id, method, params), is_answer: false });
        self.pending.insert(id, pending);
        id
    }

    /// Takes a complete message. After an error the connection has to be closed.
    pub(crate) fn receive(&mut self, now: Instant, message: Vec<u8>) -> Result<(), Hangup> {
        self.activity(now);
        let envelope: Envelope<'_> = serde_json::from_slice(&message)?;
        let Some(method) = &envelope.method else {
            let Some(id) = envelope.id.and_then(|id| id.get().parse().ok()) else { return Ok(()) };
            let Some(pending) = self.pending.remove(&id) else { return Ok(()) };
            let result = match (envelope.error, envelope.result) {
                (Some(error), _) => Err(describe(error.get())),
                (None, Some(result)) => Ok(Payload::range_of(&message, result)),
                (None, None) => Ok(0..0),
            };
            let result = result.map(|range| Payload::new(message, range));
            return self.answered(id, pending, result);
        };
        if let Some(id) = envelope.id {
            // RFC 7047, section 4.1.11: the answer to an echo is what came with it.
            let message = match method.as_ref() {
                "echo" => message::reply(id, envelope.params),
                _ => message::unknown_method(id),
            };
            self.transmits.push_back(Transmit { message, is_answer: true });
            return Ok(());
        }
        let Some(params) = envelope.params else { return Ok(()) };
        match method.as_ref() {
            "update" | "update2" | "update3" => {
                let update = monitor::Notification::read(method, params.get())?;
                if update.monitor == SERVER_MONITOR {
                    return self.server_changed(update.updates.get());
                }
                if update.monitor != DATA_MONITOR {
                    return Ok(());
                }
                let range = Payload::range_of(&message, update.updates);
                let (dialect, transaction) = (update.dialect, update.transaction);
                self.updated(Payload::new(message, range), dialect, transaction)
            }
            "monitor_canceled" => {
                let (monitor,): (serde_json::Value,) = serde_json::from_str(params.get())?;
                if monitor == DATA_MONITOR { Err(Hangup::Canceled) } else { Ok(()) }
            }
            // RFC 7047, sections 4.1.9 and 4.1.10.
            "locked" | "stolen" => {
                let (name,): (String,) = serde_json::from_str(params.get())?;
                self.lock_changed(name, method == "locked");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn answered(&mut self, id: u64, pending: Pending, result: Result<Payload, String>) -> Result<(), Hangup> {
        if pending.is_step()
            && let (Some(now), false) = (self.last_received, self.ready)
        {
            self.restart_greeting(now);
        }
        match (pending, result) {
            // Servers before Open vSwitch 2.9 know neither change awareness nor the database _Server.
            (Pending::Probe | Pending::ChangeAware | Pending::Unlock, _) => Ok(()),
            (Pending::Server, Ok(contents)) => {
                self.server_changed(&String::from_utf8_lossy(contents.as_bytes()))?;
                if self.server.is_none() {
                    let database = self.config.database.clone();
                    return Err(Hangup::NoDatabase {
                        database,
                        error: "not in the list of its databases".into(),
                    });
                }
                self.greeted()
            }
            (Pending::LogEnd, Ok(result)) => {
                self.check_log_end(result.as_bytes())?;
                self.greeted()
            }
            (Pending::Server | Pending::LogEnd, Err(_)) => self.greeted(),
            (Pending::Schema, Ok(schema)) => {
                self.schema = Some(Arc::new(serde_json::from_slice(schema.as_bytes())?));
                self.greeted()
            }
            (Pending::Schema, Err(error)) => {
                Err(Hangup::NoDatabase { database: self.config.database.clone(), error })
            }
            (Pending::Monitor(dialect), result) => self.monitor_answered(dialect, result),
            (Pending::ConditionChange, Ok(_)) => {
                self.conditions_answered();
                Ok(())
            }
            (Pending::ConditionChange, Err(error)) => {
                self.conditions_refused(error);
                Ok(())
            }
            (Pending::Cancel, result) => self.cancel_answered(result),
            (Pending::Lock(name), Ok(result)) => Ok(self.lock_answered(id, name, &result)?),
            (Pending::Lock(name), Err(error)) => {
                self.lock_refused(id, &name, &error);
                Ok(())
            }
            (Pending::User(method), result) => {
                let result = result.map_err(|error| Error::Refused { method, error });
                self.events.push_back(SessionEvent::Reply { id, result });
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
