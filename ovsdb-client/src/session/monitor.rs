//! Monitoring: which request a server understands, from where to resume, and which conditions it knows.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{DATA_MONITOR, Hangup, MAX_DEFERRED, Pending, Session, SessionEvent, State, TableSpec};
use crate::condition::Conditions;
use crate::message::Payload;
use crate::replica::{Composites, Dialect};
use crate::schema::{Schema, TableSchema};

/// What outlives a connection.
#[derive(Debug)]
pub(super) struct Resume {
    /// The transaction that the replica is at; nil if it cannot be named, as with standalone databases.
    transaction: Uuid,
    /// The columns requested, by table. The replica can only be resumed with the same ones.
    columns: Vec<Option<Vec<&'static str>>>,
    wanted: Vec<Conditions>,
    acknowledged: Vec<Conditions>,
    /// The latest generation of `wanted`.
    generation: u64,
    in_force: u64,
    /// Generation and conditions of the request without an answer.
    in_flight: Option<(u64, Vec<Conditions>)>,
    /// A generation that the server refused. It may have taken those of some tables before that.
    refused: Option<u64>,
}

impl Resume {
    pub(super) fn new(tables: &[TableSpec]) -> Self {
        let conditions: Vec<Conditions> = tables.iter().map(|table| table.conditions.clone()).collect();
        Self {
            transaction: Uuid::nil(),
            columns: Vec::new(),
            wanted: conditions.clone(),
            acknowledged: conditions,
            generation: 0,
            in_force: 0,
            in_flight: None,
            refused: None,
        }
    }

    /// Begins with the conditions wanted now; with those before if a server refused these, which are tried again later.
    fn begin_anew(&mut self) {
        if self.refused != Some(self.generation) {
            self.refused = None;
            self.acknowledged = self.wanted.clone();
            self.in_flight = Some((self.generation, self.wanted.clone()));
        }
    }

    /// With a change of conditions half done it is unknown which of them the rows of the replica meet: a row that the
    /// new conditions brought could be deleted meanwhile, and nobody would say so.
    pub(super) fn disconnected(&mut self) {
        if self.in_flight.take().is_some() || self.refused.is_some() {
            self.transaction = Uuid::nil();
        }
    }
}

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

    /// What to try on a server that does not know this one.
    fn older(self) -> Option<Self> {
        match self {
            Self::Monitor => None,
            Self::MonitorCond => Some(Self::Monitor),
            Self::MonitorCondSince => Some(Self::MonitorCond),
        }
    }
}

impl Session {
    /// Sets the conditions of all tables, which are of `generation`. [`SessionEvent::ConditionInForce`] tells when the
    /// server follows them.
    pub(crate) fn set_conditions(&mut self, generation: u64, conditions: Vec<Conditions>) {
        self.resume.generation = generation;
        self.resume.wanted = conditions;
        self.send_conditions();
    }

    /// Forgets the last transaction, so that the next connection begins with a complete dump.
    pub(crate) fn forget(&mut self) {
        self.resume.transaction = Uuid::nil();
    }

    pub(super) fn begin_monitoring(&mut self) -> Result<(), Hangup> {
        let Some(schema) = &self.schema else { return Ok(()) };
        let columns =
            self.config.tables.iter().map(|table| available(table, schema)).collect::<Result<Vec<_>, _>>()?;
        if columns != self.resume.columns {
            self.resume.transaction = Uuid::nil();
            self.resume.columns = columns;
        }
        if self.resume.transaction.is_nil() {
            self.resume.begin_anew();
        }
        self.request_monitor(Dialect::MonitorCondSince);
        self.state = State::Requested;
        Ok(())
    }

    fn request_monitor(&mut self, dialect: Dialect) {
        let mut requests = serde_json::Map::new();
        let specs = self.config.tables.iter().zip(&self.resume.columns).zip(&self.resume.acknowledged);
        for ((table, columns), conditions) in specs {
            let Some(columns) = columns else { continue };
            let mut request = json!({ "columns": columns });
            if dialect != Dialect::Monitor {
                request["where"] = conditions.json(self.table_schema(table.name));
            }
            requests.insert(table.name.to_owned(), json!([request]));
        }
        let left_out: Vec<SessionEvent> = (self.config.tables.iter().zip(&self.resume.acknowledged))
            .filter_map(|(table, conditions)| self.left_out(table.name, conditions))
            .collect();
        self.events.extend(left_out);
        let mut params = vec![json!(self.config.database), json!(DATA_MONITOR), json!(requests)];
        if dialect == Dialect::MonitorCondSince {
            params.push(json!(self.resume.transaction.to_string()));
        }
        self.send(dialect.method(), &params.into(), Pending::Monitor(dialect));
    }

    pub(super) fn monitor_answered(
        &mut self,
        dialect: Dialect,
        result: Result<Payload, String>,
    ) -> Result<(), Hangup> {
        let contents = match (result, dialect.older()) {
            (Ok(contents), _) => contents,
            (Err(error), Some(older)) if error.contains("unknown method") => {
                // The older methods cannot resume, and so begin with the conditions wanted now.
                self.resume.transaction = Uuid::nil();
                self.resume.begin_anew();
                self.request_monitor(older);
                return Ok(());
            }
            (Err(error), _) => return Err(Hangup::Refused { method: dialect.method(), error }),
        };
        let (updates, complete) = if dialect == Dialect::MonitorCondSince {
            let Since(found, transaction, updates) = serde_json::from_slice(contents.as_bytes())?;
            self.resume.transaction = transaction;
            let range = contents.subrange_of(updates);
            (contents.narrow(range), !found)
        } else {
            (contents, true)
        };
        if complete { &self.tally.complete_contents } else { &self.tally.resumes }.add(1);
        self.state = State::Monitoring(dialect);
        tracing::debug!(database = self.config.database, complete, "monitoring");
        let composites = Arc::new(self.composites());
        self.be_ready();
        self.events.push_back(SessionEvent::Contents {
            updates,
            complete,
            dialect,
            composites,
            schema: self.schema.clone(),
        });
        for (updates, dialect, transaction) in std::mem::take(&mut self.deferred) {
            self.updated(updates, dialect, transaction)?;
        }
        self.resume.refused = None;
        self.follow_pause();
        self.conditions_answered();
        Ok(())
    }

    fn has_room(&self, updates: &Payload) -> bool {
        let kept: usize = self.deferred.iter().map(|(updates, ..)| updates.weight()).sum();
        kept.saturating_add(updates.weight()) <= self.config.deferred_limit
    }

    fn table_schema(&self, table: &str) -> Option<&TableSchema> {
        self.schema.as_ref()?.tables.get(table)
    }

    /// Tells of a clause that the server's schema does not allow.
    fn left_out(&self, table: &'static str, conditions: &Conditions) -> Option<SessionEvent> {
        let (column, problem) = conditions.check(self.table_schema(table)).err()?;
        Some(SessionEvent::ClauseLeftOut { table, column, problem })
    }

    fn composites(&self) -> Composites {
        let Some(schema) = &self.schema else { return Composites::new() };
        let tables = self.config.tables.iter().zip(&self.resume.columns);
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
    ) -> Result<(), Hangup> {
        match self.state {
            State::Monitoring(_) | State::Canceling => {
                if let Some(transaction) = transaction {
                    self.resume.transaction = transaction;
                }
                self.events.push_back(SessionEvent::Update { updates, dialect });
            }
            // What the answer says comes before what overtook it.
            State::Requested if self.deferred.len() < MAX_DEFERRED && self.has_room(&updates) => {
                self.deferred.push((updates, dialect, transaction));
            }
            State::Requested => return Err(Hangup::Flooded),
            State::Disconnected | State::Greeting | State::Paused => {}
        }
        Ok(())
    }

    /// Sends the conditions that the server does not know yet. One request at a time, each with the latest ones: what
    /// changes in between is never sent.
    fn send_conditions(&mut self) {
        let State::Monitoring(dialect) = self.state else { return };
        if self.resume.in_flight.is_some()
            || self.resume.generation == self.resume.in_force
            || self.resume.refused == Some(self.resume.generation)
        {
            return;
        }
        let mut requests = serde_json::Map::new();
        let mut left_out = Vec::new();
        for (index, table) in self.config.tables.iter().enumerate() {
            let (wanted, acknowledged) = (&self.resume.wanted[index], &self.resume.acknowledged[index]);
            if self.resume.columns[index].is_some()
                && (wanted != acknowledged || self.resume.refused.is_some())
            {
                left_out.extend(self.left_out(table.name, wanted));
                requests.insert(
                    table.name.to_owned(),
                    json!([{ "where": wanted.json(self.table_schema(table.name)) }]),
                );
            }
        }
        self.events.extend(left_out);
        self.resume.in_flight = Some((self.resume.generation, self.resume.wanted.clone()));
        if requests.is_empty() || dialect == Dialect::Monitor {
            self.conditions_answered();
        } else {
            let params = json!([DATA_MONITOR, DATA_MONITOR, requests]);
            self.tally.condition_changes.add(1);
            self.send("monitor_cond_change", &params, Pending::ConditionChange);
        }
    }

    /// The rows that a change brings or takes were sent before the answer (ovsdb-server(7), section 4.1.13).
    pub(super) fn conditions_answered(&mut self) {
        if let Some((generation, conditions)) = self.resume.in_flight.take() {
            self.resume.acknowledged = conditions;
            self.resume.refused = None;
            if self.resume.in_force != generation {
                self.resume.in_force = generation;
                self.events.push_back(SessionEvent::ConditionInForce(generation));
            }
        }
        self.send_conditions();
    }

    /// A connection is not the worse for conditions that it does not take. The next ones are sent for all tables.
    pub(super) fn conditions_refused(&mut self, error: String) {
        if let Some((generation, _)) = self.resume.in_flight.take() {
            self.resume.refused = Some(generation);
            self.events.push_back(SessionEvent::ConditionRefused { generation, error });
        }
        self.send_conditions();
    }
}

/// The columns of `table` that the server has; `None` if it lacks the whole table and may do so.
fn available(table: &TableSpec, schema: &Schema) -> Result<Option<Vec<&'static str>>, Hangup> {
    let (database, version) = (&schema.name, &schema.version);
    let Some(found) = schema.tables.get(table.name) else {
        if table.optional {
            return Ok(None);
        }
        let (database, version) = (database.clone(), version.clone());
        return Err(Hangup::NoTable { database, version, table: table.name });
    };
    let mut columns = Vec::new();
    for column in table.columns {
        match found.columns.get(column.name) {
            Some(schema) if (column.accepts)(&schema.kind) => columns.push(column.name),
            Some(schema) => {
                return Err(Hangup::ColumnType {
                    version: version.clone(),
                    table: table.name,
                    column: column.name,
                    found: schema.kind,
                    expected: (column.describe)(),
                });
            }
            None if column.optional => {}
            None => {
                return Err(Hangup::NoColumn {
                    database: database.clone(),
                    version: version.clone(),
                    table: table.name,
                    column: column.name.to_owned(),
                });
            }
        }
    }
    Ok(Some(columns))
}
