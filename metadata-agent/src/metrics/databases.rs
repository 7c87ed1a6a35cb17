//! The numbers of the databases' clients, which count for themselves.
#![forbid(unsafe_code)]
use std::sync::atomic::Ordering;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::inventory::DatabaseStatus;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    database: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Traffic {
    database: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Contents {
    database: &'static str,
    kind: &'static str,
}

/// Copies of what the clients count.
#[derive(Debug, Default)]
pub(super) struct Databases {
    connected: Family<Name, Gauge>,
    rows: Family<Name, Gauge>,
    attempts: Family<Name, Counter>,
    connections: Family<Name, Counter>,
    messages: Family<Traffic, Counter>,
    bytes: Family<Traffic, Counter>,
    contents: Family<Contents, Counter>,
    condition_changes: Family<Name, Counter>,
    rows_changed: Family<Name, Counter>,
}

impl Databases {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let databases = Self::default();
        let registry = registry.sub_registry_with_prefix("ovsdb");
        registry.register(
            "connected",
            "Whether the rows are those of a server that is there",
            databases.connected.clone(),
        );
        registry.register("rows", "Rows that are kept", databases.rows.clone());
        registry.register("attempts", "Attempts to connect", databases.attempts.clone());
        registry.register("connections", "Connections to servers of use", databases.connections.clone());
        registry.register("messages", "Messages, by direction", databases.messages.clone());
        registry.register("bytes", "Bytes, by direction", databases.bytes.clone());
        registry.register(
            "contents",
            "Beginnings of a connection, by whether the server went on from where the rows were or sent all of them",
            databases.contents.clone(),
        );
        registry.register(
            "condition_changes",
            "Changes of the rows asked for, for each of which the server goes through the table",
            databases.condition_changes.clone(),
        );
        registry.register(
            "rows_changed",
            "Rows that were new, changed or gone",
            databases.rows_changed.clone(),
        );
        databases
    }

    pub(super) fn set(&self, DatabaseStatus { name, connected, rows, counters }: DatabaseStatus) {
        let database = name;
        let set = |counter: &Counter, value| counter.inner().store(value, Ordering::Relaxed);
        let traffic = |direction| Traffic { database, direction };
        let contents = |kind| Contents { database, kind };
        let name = Name { database };
        self.connected.get_or_create(&name).set(connected.into());
        self.rows.get_or_create(&name).set(rows as i64);
        set(&self.attempts.get_or_create(&name), counters.attempts);
        set(&self.connections.get_or_create(&name), counters.connections);
        set(&self.messages.get_or_create(&traffic("sent")), counters.messages_sent);
        set(&self.messages.get_or_create(&traffic("received")), counters.messages_received);
        set(&self.bytes.get_or_create(&traffic("sent")), counters.bytes_sent);
        set(&self.bytes.get_or_create(&traffic("received")), counters.bytes_received);
        set(&self.contents.get_or_create(&contents("resumed")), counters.resumes);
        set(&self.contents.get_or_create(&contents("complete")), counters.complete_contents);
        set(&self.condition_changes.get_or_create(&name), counters.condition_changes);
        set(&self.rows_changed.get_or_create(&name), counters.rows_changed);
    }
}
