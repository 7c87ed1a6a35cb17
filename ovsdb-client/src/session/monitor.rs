//! Monitoring: which request a server understands, from where to resume, and what its answers bring.

mod conditions;
mod notification;
mod pause;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use uuid::Uuid;

pub(super) use notification::Notification;
use notification::Since;

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
}
