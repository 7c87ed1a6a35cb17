//! Builder of a client: the tables to replicate, decided before the first connection.

use std::sync::Arc;

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::client::{Client, Handle};
use crate::condition::Conditions;
use crate::config::Config;
use crate::connection::{Driver, Task, Wanted, random};
use crate::counters::SharedTally;
use crate::replica::Replica;
use crate::row::Row;
use crate::session::{Session, SessionConfig, TableSpec, TurnConfig};

/// Messages between the connection and the consumer. When they are used up the socket is not read any more.
const BACKLOG: usize = 64;

/// Time that a turn may take to come: hundreds of clients of a large database take a minute.
const TURN_PATIENCE: Duration = Duration::from_secs(180);

/// Collects the tables to replicate, before the first connection.
#[derive(Debug)]
pub struct Builder {
    config: Config,
    tables: Vec<TableSpec>,
    replica: Replica,
}

impl Builder {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, tables: Vec::new(), replica: Replica::default() }
    }

    /// Replicates those rows of the table of `R` that meet `conditions`.
    ///
    /// # Panics
    /// If another row type was added for the same table. A server tells the changes of a table once, with all columns
    /// that are of interest: these belong into one row type.
    #[must_use]
    pub fn monitor<R: Row>(self, conditions: Conditions) -> Self {
        self.add::<R>(conditions, false)
    }

    /// The same for a table that older or newer schemas do not have; it is empty there.
    ///
    /// # Panics
    /// As [`Self::monitor`].
    #[must_use]
    pub fn monitor_optional<R: Row>(self, conditions: Conditions) -> Self {
        self.add::<R>(conditions, true)
    }

    fn add<R: Row>(mut self, conditions: Conditions, optional: bool) -> Self {
        let spec = TableSpec { name: R::TABLE, columns: R::COLUMNS, optional, conditions };
        match self.replica.index::<R>() {
            Some(index) => self.tables[index] = spec,
            None => {
                assert!(
                    self.tables.iter().all(|table| table.name != R::TABLE),
                    "two row types for table {}: put the columns of both into one",
                    R::TABLE
                );
                self.replica.add::<R>();
                self.tables.push(spec);
            }
        }
        self
    }

    /// Begins to connect, on a task of its own on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time and I/O enabled.
    pub fn connect(self) -> Client {
        let Self { config, tables, replica } = self;
        let conditions = tables.iter().map(|table| table.conditions.clone()).collect();
        let session = SessionConfig {
            database: config.database.clone(),
            tables,
            probe_interval: config.probe_interval,
            greeting_timeout: config.greeting_timeout,
            deferred_limit: config.backlog_limit,
            servers: config.remotes.as_slice().len(),
            leader_only: config.leader_only,
            turns: config.turn_lock.as_ref().map(|lock| TurnConfig {
                lock: lock.clone(),
                // Not all at once, if somebody keeps it.
                patience: TURN_PATIENCE.mul_f64(0.75 + random() / 2.0),
            }),
        };
        let tally = SharedTally::default();
        let session = Session::new(session, Arc::clone(&tally));
        let (commands, command_receiver) = mpsc::channel(BACKLOG);
        let (notice_sender, notices) = mpsc::channel(BACKLOG);
        let (wanted, wanted_receiver) = watch::channel(Wanted {
            generation: 0,
            conditions,
            paused: false,
            remotes: config.remotes.clone(),
            reconnections: 0,
            resyncs: 0,
            reason: String::new(),
        });
        let database = config.database.clone();
        let driver = Driver::new(
            config,
            session,
            command_receiver,
            wanted_receiver,
            notice_sender,
            Arc::clone(&tally),
        );
        let handle = Handle::new(&database, commands, tally);
        Client::new(replica, notices, wanted, handle, Task::spawn(driver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::row! {
        struct Name in "Port" {
            name: String,
        }
    }

    crate::row! {
        struct Tag in "Port" {
            tag: i64,
        }
    }

    fn builder() -> Builder {
        Client::builder(Config::new("unix:/nowhere".parse().unwrap(), "DB"))
    }

    #[test]
    fn the_last_conditions_of_a_row_type_count() {
        let builder = builder().monitor::<Name>(Conditions::All).monitor_optional::<Name>(Conditions::None);
        assert_eq!(builder.tables.len(), 1);
        assert!(builder.tables[0].optional && builder.tables[0].conditions == Conditions::None);
    }

    #[test]
    #[should_panic(expected = "two row types for table Port")]
    fn a_table_has_one_row_type() {
        drop(builder().monitor::<Name>(Conditions::All).monitor::<Tag>(Conditions::All));
    }
}
