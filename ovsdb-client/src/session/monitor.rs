//! Monitoring: which request a server understands, from where to resume, which conditions it knows, and pauses, in which
//! nothing is monitored (RFC 7047, section 4.1.7, `monitor_cancel`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::filling::Filling;
use super::greeting::Awaited;
use super::resume::Resume;
use super::turn::Turn;
use super::{Context, DATA_MONITOR, Hangup, MAX_DEFERRED, Pending, SessionConfig, SessionEvent, TableSpec};
use crate::condition::Conditions;
use crate::counters::SharedTally;
use crate::message::Payload;
use crate::replica::{Composites, Dialect};
use crate::schema::{Schema, TableSchema};

/// An `update`, `update2` or `update3`.
pub(super) struct Notification<'a> {
    pub(super) monitor: serde_json::Value,
    pub(super) dialect: Dialect,
    pub(super) transaction: Option<Uuid>,
    pub(super) updates: &'a RawValue,
}

impl<'a> Notification<'a> {
    pub(super) fn read(method: &str, params: &'a str) -> Result<Self, serde_json::Error> {
        if method == "update3" {
            let (monitor, transaction, updates) = serde_json::from_str(params)?;
            return Ok(Self {
                monitor,
                dialect: Dialect::MonitorCondSince,
                transaction: Some(transaction),
                updates,
            });
        }
        let (monitor, updates) = serde_json::from_str(params)?;
        let dialect = if method == "update" { Dialect::Monitor } else { Dialect::MonitorCond };
        Ok(Self { monitor, dialect, transaction: None, updates })
    }
}

/// The answer to `monitor_cond_since`.
#[derive(Deserialize)]
struct Since<'a>(bool, Uuid, #[serde(borrow)] &'a RawValue);

impl Dialect {
    fn method(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::MonitorCond => "monitor_cond",
            Self::MonitorCondSince => "monitor_cond_since",
        }
    }

    /// The older method, for a server that does not know this one.
    fn older(self) -> Option<Self> {
        match self {
            Self::Monitor => None,
            Self::MonitorCond => Some(Self::Monitor),
            Self::MonitorCondSince => Some(Self::MonitorCond),
        }
    }
}

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Disconnected,
    /// Waiting for the schema and the server's own state.
    Greeting,
    /// Waiting for the turn to ask for contents.
    Queued,
    /// Waiting for the contents of the tables.
    Requested,
    Monitoring(Dialect),
    /// Waiting for the end of the updates.
    Canceling,
    Paused,
}

/// First step of a connection whose server is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Nothing: a pause is wanted.
    Paused,
    /// The wait for the turn to ask for contents.
    Queued,
    /// The request for the contents.
    Requested,
}

/// The contents of the tables, as a server answered with them.
#[derive(Debug)]
pub(super) struct Contents {
    updates: Payload,
    complete: bool,
    dialect: Dialect,
}

/// The monitor of the tables.
#[derive(Debug)]
pub(super) struct Monitor {
    state: State,
    pub(super) resume: Resume,
    /// True if a pause is wanted.
    paused: bool,
    schema: Option<Arc<Schema>>,
    /// Updates that overtook the answer to the request.
    pub(super) deferred: Vec<(Payload, Dialect, Option<Uuid>)>,
    /// Contents of which a part is missing.
    pub(super) filling: Option<Filling>,
    turn: Turn,
    pub(super) tally: SharedTally,
}

impl Monitor {
    pub(super) fn new(tables: &[TableSpec], tally: SharedTally) -> Self {
        let resume = Resume::new(tables);
        Self {
            state: State::Disconnected,
            resume,
            paused: false,
            schema: None,
            deferred: Vec::new(),
            filling: None,
            turn: Turn::None,
            tally,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state != State::Disconnected
    }

    /// Message that a connection which does not get on is waiting for.
    pub(super) fn awaited(&self) -> Awaited {
        if self.state == State::Requested { Awaited::Contents } else { Awaited::Greeting }
    }

    pub(super) fn connected(&mut self, context: &mut Context<'_>) {
        self.state = State::Greeting;
        context.mailbox.ask("get_schema", &json!([context.config.database]), Pending::Schema);
    }

    pub(super) fn disconnected(&mut self) {
        self.state = State::Disconnected;
        self.resume.disconnected();
        self.schema = None;
        self.deferred.clear();
        self.filling = None;
        self.turn = Turn::None;
    }

    pub(super) fn set_schema(&mut self, schema: Schema) {
        self.schema = Some(Arc::new(schema));
    }

    /// Sets the conditions of all tables, which are of `generation`.
    pub(super) fn set_conditions(
        &mut self,
        generation: u64,
        conditions: Vec<Conditions>,
        context: &mut Context<'_>,
    ) {
        self.resume.generation = generation;
        self.resume.wanted = conditions;
        self.send_conditions(context);
    }

    /// Forgets the last transaction, so that the next connection begins with a complete dump.
    pub(super) fn forget(&mut self) {
        self.resume.transaction = Uuid::nil();
    }

    /// Begins to monitor, or to pause, now that everything about the server is known; nothing if that is not so, or was
    /// done.
    pub(super) fn begin(&mut self, context: &mut Context<'_>) -> Result<Option<Beginning>, Hangup> {
        if self.state != State::Greeting {
            return Ok(None);
        }
        if self.paused {
            self.state = State::Paused;
            return Ok(Some(Beginning::Paused));
        }
        if !self.turn.take(context) {
            self.state = State::Queued;
            return Ok(Some(Beginning::Queued));
        }
        let Some(schema) = &self.schema else { return Ok(None) };
        let tables = context.config.tables.iter();
        let columns = tables.map(|table| table.available(schema)).collect::<Result<Vec<_>, _>>()?;
        if columns != self.resume.columns {
            self.resume.transaction = Uuid::nil();
            self.resume.columns = columns;
        }
        if self.resume.transaction.is_nil() {
            self.resume.begin_anew();
        }
        self.request(Dialect::MonitorCondSince, context);
        self.state = State::Requested;
        Ok(Some(Beginning::Requested))
    }

    /// The turn has come, or is not to be waited for any more. Gives what a connection that waited for it begins with.
    pub(super) fn turn_came(&mut self, context: &mut Context<'_>) -> Result<Option<Beginning>, Hangup> {
        if !self.turn.came(context) {
            return Ok(None);
        }
        let mut beginning = None;
        if self.state == State::Queued {
            self.state = State::Greeting;
            beginning = self.begin(context)?;
        } else {
            self.send_conditions(context);
        }
        // What it was wanted for may not be wanted any more.
        let is_of_use = |pending: &Pending| matches!(pending, Pending::ConditionChange);
        if beginning != Some(Beginning::Requested) && !context.mailbox.awaits(is_of_use) {
            self.turn.give_up(context);
        }
        Ok(beginning)
    }

    pub(super) fn turn_due(&self, config: &SessionConfig) -> Option<Instant> {
        self.turn.due(config)
    }

    /// Time has passed: goes on without a turn that does not come, or gives up one that is over.
    pub(super) fn check_turn(
        &mut self,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Result<Option<Beginning>, Hangup> {
        if self.turn.due(context.config).is_none_or(|due| due > now) {
            return Ok(None);
        }
        if self.turn.is_awaited() {
            tracing::warn!(
                database = context.config.database,
                lock = context.config.turns.as_ref().map(|turns| &*turns.lock),
                "somebody has this lock of the server's for minutes: not waiting for it"
            );
            return self.turn_came(context);
        }
        self.turn.give_up(context);
        Ok(None)
    }

    pub(super) fn request(&mut self, dialect: Dialect, context: &mut Context<'_>) {
        let mut requests = serde_json::Map::new();
        let specs = context.config.tables.iter().zip(&self.resume.columns).zip(&self.resume.acknowledged);
        for ((table, columns), conditions) in specs {
            let Some(columns) = columns else { continue };
            let mut request = json!({ "columns": columns });
            if dialect != Dialect::Monitor {
                request["where"] = conditions.json(self.table_schema(table.name));
            }
            // Rows of such tables come with their conditions (`filling.rs`).
            if dialect == Dialect::MonitorCondSince && *conditions != Conditions::All {
                request["select"] = json!({ "initial": false });
                if self.resume.transaction.is_nil() {
                    request["where"] = json!([false]);
                }
            }
            requests.insert(table.name.to_owned(), json!([request]));
        }
        for (table, conditions) in context.config.tables.iter().zip(&self.resume.acknowledged) {
            self.tell_left_out(table.name, conditions, context);
        }
        let mut params = vec![json!(context.config.database), json!(DATA_MONITOR), json!(requests)];
        if dialect == Dialect::MonitorCondSince {
            params.push(json!(self.resume.transaction.to_string()));
        }
        context.mailbox.ask(dialect.method(), &params.into(), Pending::Monitor(dialect));
    }

    /// Takes the answer to a request; gives the contents, unless the server has to be asked in older words.
    pub(super) fn answered(
        &mut self,
        dialect: Dialect,
        result: Result<Payload, String>,
        context: &mut Context<'_>,
    ) -> Result<Option<Contents>, Hangup> {
        let contents = match (result, dialect.older()) {
            (Ok(contents), _) => contents,
            (Err(error), Some(older)) if error.contains("unknown method") => {
                // The older methods cannot resume, and so begin with the conditions wanted now.
                self.resume.transaction = Uuid::nil();
                self.resume.begin_anew();
                self.request(older, context);
                return Ok(None);
            }
            (Err(error), _) => return Err(Hangup::Refused { method: dialect.method(), error }),
        };
        let (updates, complete) = if dialect == Dialect::MonitorCondSince {
            let Since(found, transaction, updates) = serde_json::from_slice(contents.as_bytes())?;
            let range = contents.subrange_of(updates);
            let contents = contents.narrow(range);
            if found {
                self.resume.transaction = transaction;
                (contents, false)
            } else {
                let Some(contents) = self.fill(contents, transaction, context) else { return Ok(None) };
                (contents, true)
            }
        } else {
            (contents, true)
        };
        Ok(Some(self.arrived(updates, complete, dialect, context)))
    }

    /// The contents are here, or the changes of them.
    pub(super) fn arrived(
        &mut self,
        updates: Payload,
        complete: bool,
        dialect: Dialect,
        context: &Context<'_>,
    ) -> Contents {
        if complete { &self.tally.complete_contents } else { &self.tally.resumes }.add(1);
        self.state = State::Monitoring(dialect);
        tracing::debug!(database = context.config.database, complete, "monitoring");
        Contents { updates, complete, dialect }
    }

    /// Tells of contents, and of all that came before them and belongs behind them.
    pub(super) fn publish(&mut self, contents: Contents, context: &mut Context<'_>) -> Result<(), Hangup> {
        let Contents { updates, complete, dialect } = contents;
        context.mailbox.tell(SessionEvent::Contents {
            updates,
            complete,
            dialect,
            composites: Arc::new(self.composites(context.config)),
            schema: self.schema.clone(),
        });
        for (updates, dialect, transaction) in std::mem::take(&mut self.deferred) {
            self.updated(updates, dialect, transaction, context)?;
        }
        self.resume.refused = None;
        self.follow_pause(context);
        self.conditions_answered(context);
        Ok(())
    }

    /// True if `updates` may be kept: what conditions bring may be a long message, and nothing need follow it.
    fn has_room(&self, config: &SessionConfig, updates: &Payload) -> bool {
        let kept: usize = self.deferred.iter().map(|(updates, ..)| updates.weight()).sum();
        let added = if self.filling.is_some() { 0 } else { updates.weight() };
        kept.saturating_add(added) <= config.deferred_limit
    }

    pub(super) fn table_schema(&self, table: &str) -> Option<&TableSchema> {
        self.schema.as_ref()?.tables.get(table)
    }

    /// Tells of a clause that the server's schema does not allow.
    fn tell_left_out(&self, table: &'static str, conditions: &Conditions, context: &mut Context<'_>) {
        if let Err((column, problem)) = conditions.check(self.table_schema(table)) {
            context.mailbox.tell(SessionEvent::ClauseLeftOut { table, column, problem });
        }
    }

    fn composites(&self, config: &SessionConfig) -> Composites {
        let Some(schema) = &self.schema else { return Composites::new() };
        let tables = config.tables.iter().zip(&self.resume.columns);
        tables
            .map(|(table, columns)| {
                let composite = |name: &&'static str| {
                    let column = schema.tables.get(table.name).and_then(|table| table.columns.get(*name));
                    column.is_some_and(|column| column.kind.is_composite())
                };
                columns.iter().flatten().copied().filter(composite).collect::<HashSet<_>>()
            })
            .collect()
    }

    pub(super) fn updated(
        &mut self,
        updates: Payload,
        dialect: Dialect,
        transaction: Option<Uuid>,
        context: &mut Context<'_>,
    ) -> Result<(), Hangup> {
        match self.state {
            State::Monitoring(_) | State::Canceling => {
                if let Some(transaction) = transaction {
                    self.resume.transaction = transaction;
                }
                context.mailbox.tell(SessionEvent::Update { updates, dialect });
            }
            // What the answer says comes before what overtook it.
            State::Requested
                if self.deferred.len() < MAX_DEFERRED && self.has_room(context.config, &updates) =>
            {
                self.deferred.push((updates, dialect, transaction));
            }
            State::Requested => return Err(Hangup::Flooded),
            State::Disconnected | State::Greeting | State::Queued | State::Paused => {}
        }
        Ok(())
    }

    /// Sends the conditions that the server does not know yet. One request at a time, each with the latest ones: what
    /// changes in between is never sent.
    fn send_conditions(&mut self, context: &mut Context<'_>) {
        let State::Monitoring(dialect) = self.state else { return };
        if self.resume.in_flight.is_some()
            || self.resume.generation == self.resume.in_force
            || self.resume.refused == Some(self.resume.generation)
        {
            return;
        }
        let mut requests = serde_json::Map::new();
        let mut changed = Vec::new();
        for (index, table) in context.config.tables.iter().enumerate() {
            let (wanted, acknowledged) = (&self.resume.wanted[index], &self.resume.acknowledged[index]);
            if self.resume.columns[index].is_some()
                && (wanted != acknowledged || self.resume.refused.is_some())
            {
                changed.push((table.name, wanted));
                requests.insert(
                    table.name.to_owned(),
                    json!([{ "where": wanted.json(self.table_schema(table.name)) }]),
                );
            }
        }
        let is_work = !requests.is_empty() && dialect != Dialect::Monitor;
        if is_work && !self.turn.take(context) {
            return;
        }
        for (table, wanted) in changed {
            self.tell_left_out(table, wanted, context);
        }
        self.resume.in_flight = Some((self.resume.generation, self.resume.wanted.clone()));
        if is_work {
            let params = json!([DATA_MONITOR, DATA_MONITOR, requests]);
            self.tally.condition_changes.add(1);
            context.mailbox.ask("monitor_cond_change", &params, Pending::ConditionChange);
        } else {
            self.conditions_answered(context);
        }
    }

    /// The rows that a change brings or takes were sent before the answer (ovsdb-server(7), section 4.1.13).
    pub(super) fn conditions_answered(&mut self, context: &mut Context<'_>) {
        self.turn.end(context);
        if let Some((generation, conditions)) = self.resume.in_flight.take() {
            self.resume.acknowledged = conditions;
            self.resume.refused = None;
            if self.resume.in_force != generation {
                self.resume.in_force = generation;
                context.mailbox.tell(SessionEvent::ConditionInForce(generation));
            }
        }
        self.send_conditions(context);
    }

    /// A connection is not the worse for conditions that it does not take. The next ones are sent for all tables.
    pub(super) fn conditions_refused(&mut self, error: String, context: &mut Context<'_>) {
        self.turn.end(context);
        if let Some((generation, _)) = self.resume.in_flight.take() {
            self.resume.refused = Some(generation);
            context.mailbox.tell(SessionEvent::ConditionRefused { generation, error });
        }
        self.send_conditions(context);
    }

    /// Wants nothing of the database monitored, on this connection and all later ones, or wants it again from where it
    /// was.
    pub(super) fn set_paused(&mut self, paused: bool, context: &mut Context<'_>) {
        self.paused = paused;
        self.follow_pause(context);
    }

    /// Does what is wanted if the state allows it; the answer that is waited for otherwise leads here again.
    fn follow_pause(&mut self, context: &mut Context<'_>) {
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
    pub(super) fn cancel_answered(
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
