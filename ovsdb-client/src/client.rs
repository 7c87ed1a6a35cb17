//! Interface for users: a [`Client`] with typed tables and a stream of events, and [`Handle`]s for requests.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::builder::Builder;
use crate::condition::Conditions;
use crate::config::Config;
use crate::connection::{Charged, Command, Notice, Reply, Task, Wanted};
use crate::counters::{Counters, SharedTally};
use crate::error::Error;
use crate::event::{Event, Generation, Mark};
use crate::message::{self, Payload};
use crate::operation::{self, Operation, OperationResult};
use crate::remote::Remotes;
use crate::replica::{ApplyError, Applying, Batch, Composites, Dialect, Replica, Table};
use crate::row::Row;
use crate::schema::Schema;
use crate::session::SessionEvent;

/// A replica of some tables of a database, kept up to date by a task that ends when this is dropped.
#[derive(Debug)]
pub struct Client {
    replica: Replica,
    composites: Arc<Composites>,
    /// The schema of the last server.
    schema: Option<Arc<Schema>>,
    /// An update could not be applied: what follows is of no use until a complete dump.
    stale: bool,
    /// The conditions that came into force meanwhile.
    unannounced: Option<Generation>,
    /// The conditions that the last events left in force.
    in_force: Option<Generation>,
    /// True if the last of `Paused` and `Synced` was the former.
    paused: bool,
    /// An update that is being read.
    applying: Option<Work>,
    /// The last mark that was passed.
    passed: Option<Mark>,
    /// True if `Closed` was told.
    closed: bool,
    ready: VecDeque<Event>,
    notices: mpsc::Receiver<Charged>,
    wanted: watch::Sender<Wanted>,
    handle: Handle,
    _task: Task,
}

impl Client {
    pub(crate) fn new(
        replica: Replica,
        notices: mpsc::Receiver<Charged>,
        wanted: watch::Sender<Wanted>,
        handle: Handle,
        task: Task,
    ) -> Self {
        Self {
            replica,
            composites: Arc::default(),
            schema: None,
            stale: false,
            in_force: None,
            paused: false,
            unannounced: None,
            applying: None,
            passed: None,
            closed: false,
            ready: VecDeque::new(),
            notices,
            wanted,
            handle,
            _task: task,
        }
    }

    /// Begins to describe a client.
    pub fn builder(config: Config) -> Builder {
        Builder::new(config)
    }

    /// The next event. The tables change only in here, so that they always are as the last event left them.
    ///
    /// Can be dropped while waiting, as in `tokio::select!`, without losing anything. It has to be called again and
    /// again: once some dozen events wait, updates are left in the socket, and lost connections are not made again.
    pub async fn recv(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                match event {
                    Event::Synced => {
                        self.in_force = self.in_force.or(Some(Generation(0)));
                        self.paused = false;
                    }
                    Event::Paused => self.paused = true,
                    Event::ConditionInForce(generation) => self.in_force = Some(generation),
                    Event::Visible(mark) => self.passed = Some(mark),
                    _ => {}
                }
                return event;
            }
            if let Some(work) = &mut self.applying {
                match work.applying.step(&mut self.replica) {
                    Some((batch, result)) => self.applied(batch, result),
                    // The rows of a region take a second: others have to do something, too.
                    None => tokio::task::yield_now().await,
                }
                continue;
            }
            match self.notices.recv().await {
                Some(charged) => self.take(charged),
                None if self.closed => std::future::pending().await,
                None => {
                    self.closed = true;
                    return Event::Closed;
                }
            }
        }
    }

    /// The rows of a monitored table as of the last event. A type that is not monitored has none, which is an error in the
    /// log: [`Self::try_table`] gives it to the caller.
    pub fn table<R: Row>(&self) -> &Table<R> {
        self.try_table().unwrap_or_else(|error| {
            tracing::error!(row = std::any::type_name::<R>(), %error, "an empty table in its place");
            Table::EMPTY
        })
    }

    /// The same, or [`Error::NotMonitored`].
    pub fn try_table<R: Row>(&self) -> Result<&Table<R>, Error> {
        self.replica.table().ok_or(Error::NotMonitored(R::TABLE))
    }

    /// The number of rows in all tables.
    pub fn rows(&self) -> usize {
        self.replica.rows()
    }

    /// Replicates from now on those rows of the table of `R` that meet `conditions`.
    ///
    /// Rows that come in or go out by this arrive as inserts and deletes. [`Event::ConditionInForce`] with the
    /// generation given here, or a later one, tells when they all have arrived. If these conditions were the last that
    /// were set, it may have come already: [`Self::in_force`] tells.
    ///
    /// A clause that does not fit its column in the schema of the last server is an error, and the conditions stay as they
    /// were. Before there was a server it is left out when there is one: see [`Event::ClauseLeftOut`].
    pub fn set_condition<R: Row>(&mut self, conditions: Conditions) -> Result<Generation, Error> {
        let index = self.replica.index::<R>().ok_or(Error::NotMonitored(R::TABLE))?;
        let table = self.schema.as_ref().and_then(|schema| schema.tables.get(R::TABLE));
        conditions.check(table).map_err(|(column, problem)| Error::Clause {
            table: R::TABLE,
            column,
            problem,
        })?;
        let mut generation = 0;
        self.wanted.send_if_modified(|wanted| {
            let change = wanted.conditions[index] != conditions;
            if change {
                wanted.conditions[index] = conditions;
                wanted.generation += 1;
            }
            generation = wanted.generation;
            change
        });
        Ok(Generation(generation))
    }

    /// The latest state of the conditions that was in force at the last event; `None` before the first
    /// [`Event::Synced`]. It stays so while there is no server.
    ///
    /// The rows of conditions with a `generation` have all arrived if `client.in_force() >= Some(generation)`.
    pub fn in_force(&self) -> Option<Generation> {
        self.in_force
    }

    /// Ends the monitoring (`monitor_cancel`), and does not begin it again on any connection until [`Self::resume`].
    ///
    /// [`Event::Paused`] tells when no server sends anything more of the database; what was under way arrives before it.
    /// From then on the tables stay as they are. Requests and locks go on, and the server is left, as always, when it is
    /// of no use.
    ///
    /// Only the last of several calls of this and of [`Self::resume`] counts if they follow each other at once, and there
    /// is no event if it asks for what is so already: [`Self::is_paused`] tells.
    pub fn pause(&mut self) {
        self.set_paused(true);
    }

    /// Monitors again, after [`Self::pause`]. All that happened meanwhile arrives as differences, and then
    /// [`Event::Synced`]; conditions that were set meanwhile come into force. If the pause had not begun, there may be
    /// neither [`Event::Paused`] nor [`Event::Synced`]: the tables go on as if nothing had been said.
    pub fn resume(&mut self) {
        self.set_paused(false);
    }

    /// True if the last events left the monitoring ended, so that the tables stay as they are. It stays so while there is
    /// no server. What [`Self::pause`] or [`Self::resume`] asked for since may be under way.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    fn set_paused(&mut self, paused: bool) {
        self.wanted.send_if_modified(|wanted| std::mem::replace(&mut wanted.paused, paused) != paused);
    }

    /// Uses other servers from now on. One that is in use and among them stays; any other is left at once
    /// ([`DisconnectReason::NotListed`](crate::DisconnectReason::NotListed)). The rows stay, and only differences are told, also if these are the
    /// servers of another cluster.
    pub fn set_remotes(&mut self, remotes: Remotes) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.remotes != remotes;
            wanted.remotes = remotes;
            changed
        });
    }

    /// Leaves the server, if there is one, and connects to the next one at once, without waiting for a delay between
    /// attempts to end. Renewed certificates are used from then on.
    pub fn reconnect(&mut self) {
        self.wanted.send_modify(|wanted| wanted.reconnections += 1);
    }

    /// True if the tables hold what a transaction did, and so [`Event::Visible`] came for it or for a later one.
    pub fn shows(&self, mark: Mark) -> bool {
        self.passed >= Some(mark)
    }

    /// Counts since the client was made.
    pub fn counters(&self) -> Counters {
        self.handle.counters()
    }

    /// A handle for requests, which can be used while [`Self::recv`] waits.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// See [`Handle::transact`].
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<Vec<OperationResult>, Error> {
        self.handle.transact(operations).await
    }

    fn take(&mut self, Charged { notice, room }: Charged) {
        match notice {
            Notice::Waiting(remote, awaited) => self.ready.push_back(Event::Waiting { remote, awaited }),
            Notice::Mark(mark) => self.ready.push_back(Event::Visible(mark)),
            Notice::Connected(remote) => self.ready.push_back(Event::Connected { remote }),
            Notice::Disconnected { remote, reason, retry } => {
                self.ready.push_back(Event::Disconnected { remote, reason, retry });
            }
            Notice::Session(SessionEvent::Contents { updates, complete, dialect, composites, schema }) => {
                (self.composites, self.schema) = (composites, schema);
                self.stale &= !complete;
                self.apply(updates, complete, dialect, true, room);
            }
            Notice::Session(SessionEvent::Update { updates, dialect }) => {
                self.apply(updates, false, dialect, false, room);
            }
            Notice::Session(SessionEvent::ConditionInForce(generation)) if self.stale => {
                self.unannounced = Some(Generation(generation));
            }
            Notice::Session(SessionEvent::ConditionInForce(generation)) => {
                self.ready.push_back(Event::ConditionInForce(Generation(generation)));
            }
            Notice::Session(SessionEvent::ConditionRefused { generation, error }) => {
                let generation = Generation(generation);
                self.ready.push_back(Event::ConditionRefused { generation, error });
            }
            Notice::Session(SessionEvent::ClauseLeftOut { table, column, problem }) => {
                self.ready.push_back(Event::ClauseLeftOut { table, column, problem });
            }
            Notice::Session(SessionEvent::Paused) => self.ready.push_back(Event::Paused),
            Notice::Session(SessionEvent::Lock { name, held }) => {
                self.ready.push_back(Event::Lock { name, held })
            }
            Notice::Session(SessionEvent::Ready | SessionEvent::Waiting(_) | SessionEvent::Reply { .. }) => {}
        }
    }

    fn apply(
        &mut self,
        updates: Payload,
        complete: bool,
        dialect: Dialect,
        is_contents: bool,
        room: Option<OwnedSemaphorePermit>,
    ) {
        if !self.stale {
            let applying = Applying::new(updates, complete, dialect, Arc::clone(&self.composites));
            self.applying = Some(Work { applying, is_contents, _room: room });
        }
    }

    fn applied(&mut self, batch: Batch, result: Result<(), ApplyError>) {
        let is_contents = self.applying.take().is_some_and(|work| work.is_contents);
        if !batch.is_empty() {
            self.handle.tally.rows_changed.add(batch.len());
            self.ready.push_back(Event::Batch(batch));
        }
        if let Err(error) = result {
            self.start_over(&error);
        } else if is_contents {
            self.ready.push_back(Event::Synced);
            self.ready.extend(self.unannounced.take().map(Event::ConditionInForce));
        }
    }

    fn start_over(&mut self, error: &ApplyError) {
        self.stale = true;
        self.wanted.send_modify(|wanted| {
            wanted.resyncs += 1;
            wanted.reason = error.to_string();
        });
    }
}

/// An update that is being read, with its place among those that wait.
#[derive(Debug)]
struct Work {
    applying: Applying,
    is_contents: bool,
    _room: Option<OwnedSemaphorePermit>,
}

/// A transaction that was executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// The result of each operation.
    pub results: Vec<OperationResult>,
    /// The place among the client's events behind all that it changed.
    pub mark: Mark,
}

/// Makes requests over a client's connection.
///
/// A future that is dropped early does not take its request back: the server may still execute it. Who takes the events
/// of the client may wait for answers between two of them: see [`Error::Overrun`] for when that ends.
#[derive(Debug, Clone)]
pub struct Handle {
    database: Arc<str>,
    commands: mpsc::Sender<Command>,
    tally: SharedTally,
}

impl Handle {
    pub(crate) fn new(database: &str, commands: mpsc::Sender<Command>, tally: SharedTally) -> Self {
        Self { database: database.into(), commands, tally }
    }

    /// Counts since the client was made.
    pub fn counters(&self) -> Counters {
        self.tally.counters()
    }

    /// Executes operations as one transaction (RFC 7047, section 4.1.3), and gives the result of each.
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<Vec<OperationResult>, Error> {
        let (names, params) = self.transaction(&operations)?;
        let result = self.request("transact", params).await?;
        operation::read_results(&names, result.as_bytes())
    }

    /// The same, with a mark for when the client's tables hold what the transaction did: [`Event::Visible`] comes with
    /// it, or has come already if [`Client::shows`] it. A transaction that changes no row that is monitored has one as
    /// well. The mark of a connection that breaks is passed all the same: rows may lack then what the next server
    /// does not have yet.
    pub async fn commit(&self, operations: Vec<Operation>) -> Result<Commit, Error> {
        let (names, params) = self.transaction(&operations)?;
        let (reply, result) = oneshot::channel();
        let reply = Reply::Marked(reply);
        self.command(Command::Request { method: "transact".to_owned(), params, reply }).await?;
        let (payload, mark) = result.await.map_err(|_| Error::Closed)??;
        Ok(Commit { results: operation::read_results(&names, payload.as_bytes())?, mark })
    }

    fn transaction(&self, operations: &[Operation]) -> Result<(Vec<&'static str>, serde_json::Value), Error> {
        operations.iter().try_for_each(Operation::check)?;
        let mut params = vec![json!(&*self.database)];
        params.extend(operations.iter().map(Operation::json));
        Ok((operations.iter().map(Operation::name).collect(), params.into()))
    }

    /// The names of the server's databases.
    pub async fn list_dbs(&self) -> Result<Vec<String>, Error> {
        let result = self.request("list_dbs", json!([])).await?;
        serde_json::from_slice(result.as_bytes()).map_err(Error::UnreadableReply)
    }

    /// The schema of the database.
    pub async fn get_schema(&self) -> Result<Schema, Error> {
        let result = self.request("get_schema", json!([&*self.database])).await?;
        serde_json::from_slice(result.as_bytes()).map_err(Error::UnreadableReply)
    }

    /// Wants a lock from now on, across reconnections; [`Event::Lock`] tells when it is held.
    ///
    /// If it is stolen, a client that had it by this waits on, next after the thief. One that had stolen it itself has to
    /// ask again to get it before the next connection. To ask again while another holds it is to wait behind all others.
    /// A server that gives no locks, as a read-only one, is not asked again before the next call.
    pub async fn lock(&self, name: impl Into<String>) -> Result<(), Error> {
        self.command(Command::Lock { name: sendable(name)?, steal: false }).await
    }

    /// Wants a lock likewise, and takes it from whoever holds it: once, on the next connection if there is none. After a
    /// later reconnection it is waited for.
    pub async fn steal(&self, name: impl Into<String>) -> Result<(), Error> {
        self.command(Command::Lock { name: sendable(name)?, steal: true }).await
    }

    /// Gives a lock up, or stops waiting for it.
    pub async fn unlock(&self, name: impl Into<String>) -> Result<(), Error> {
        self.command(Command::Unlock { name: sendable(name)? }).await
    }

    /// Makes any request of the protocol; the result is JSON text.
    pub async fn request(
        &self,
        method: impl Into<String>,
        params: serde_json::Value,
    ) -> Result<Payload, Error> {
        let method = method.into();
        message::check_text(&method)?;
        message::check(&params)?;
        let (reply, result) = oneshot::channel();
        self.command(Command::Request { method, params, reply: Reply::Plain(reply) }).await?;
        result.await.map_err(|_| Error::Closed)?
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Closed)
    }
}

fn sendable(name: impl Into<String>) -> Result<String, Error> {
    let name = name.into();
    message::check_text(&name)?;
    Ok(name)
}
