//! A database with the state of its connection, and the log of that state's changes.
use std::collections::BTreeSet;

use ovsdb_client::{Client, Counters, Event, Generation};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::{explain::DatabaseSeen, health::Problem};

/// A connection and what is known of its state.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) client: Client,
    name: &'static str,
    /// The contents have been complete at least once.
    pub(super) synced: bool,
    /// The latest state of the conditions that is in force.
    in_force: Option<Generation>,
    /// Reason for which there is no connection.
    pub(super) down: Option<String>,
    /// Time since which there is one, or none.
    since: Instant,
    /// Messages logged about each remote since there was one.
    told: BTreeSet<String>,
}

/// A database as it is now, and what its client counted.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseStatus {
    /// Its name in the protocol.
    pub name: &'static str,
    /// True if there is a connection, and the rows are those of its server.
    pub connected: bool,
    /// The rows that are kept, of all tables.
    pub rows: usize,
    /// Counters of the client.
    pub counters: Counters,
}

impl Database {
    pub(super) fn new(client: Client, name: &'static str) -> Self {
        Self {
            client,
            name,
            synced: false,
            in_force: None,
            down: Some("not connected yet".to_owned()),
            since: Instant::now(),
            told: BTreeSet::new(),
        }
    }

    /// State for the metrics.
    pub(super) fn status(&self) -> DatabaseStatus {
        DatabaseStatus {
            name: self.name,
            connected: self.synced && self.down.is_none(),
            rows: self.client.rows(),
            counters: self.client.counters(),
        }
    }

    /// State for who explains.
    pub(super) fn seen(&self) -> DatabaseSeen {
        DatabaseSeen { down: self.down.clone(), since: self.since.elapsed() }
    }

    /// Notes an event; returns whether rows or the state of the connection changed.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::Connected { remote } => {
                info!(database = self.name, %remote, "connected");
                false
            }
            Event::Disconnected { remote, reason, retry } => {
                let text = format!("{remote}: {reason}");
                // Attempts go on for ever, with one remote after another; what is the same is told once.
                if self.told.insert(text.clone()) {
                    warn!(database = self.name, %remote, %reason, ?retry, "not connected");
                } else {
                    debug!(database = self.name, %remote, %reason, ?retry, "still not connected");
                }
                self.note_down(Some(text));
                true
            }
            Event::Synced => {
                self.synced = true;
                self.note_down(None);
                self.told.clear();
                true
            }
            Event::ConditionInForce(generation) => {
                self.in_force = Some(*generation);
                true
            }
            Event::Batch(_) => true,
            Event::Waiting { remote, awaited } => {
                info!(database = self.name, %remote, %awaited, "a server took the connection and says nothing yet");
                false
            }
            Event::ConditionRefused { error, .. } => {
                warn!(database = self.name, error, "the server refused which rows it was asked for");
                false
            }
            Event::ClauseLeftOut { table, column, problem } => {
                warn!(database = self.name, table, column, problem, "rows are not asked for by this column");
                false
            }
            Event::Closed => {
                self.note_down(Some(
                    "the task that keeps the connection is gone: restart the agent".to_owned(),
                ));
                error!(database = self.name, "the task that keeps the connection is gone: restart the agent");
                true
            }
            // The rest is not asked for.
            _ => false,
        }
    }

    fn note_down(&mut self, reason: Option<String>) {
        if self.down.is_some() != reason.is_some() {
            self.since = Instant::now();
        }
        self.down = reason;
    }

    /// True if the rows of that state of the conditions are here.
    pub(super) fn has(&self, generation: Option<Generation>) -> bool {
        self.synced && self.in_force >= generation
    }

    pub(super) fn pending(&self) -> Option<Problem> {
        self.down.as_ref().map(|reason| Problem::of(self.name, format!("{}: {reason}", self.name)))
    }
}
