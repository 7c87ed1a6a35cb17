//! The reasons to leave a server, in words for operators.

use std::time::Duration;

use super::{Awaited, MAX_DEFERRED};
use crate::schema::ColumnType;

/// Reason for which a connection is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Hangup {
    /// Something other than JSON-RPC.
    #[error("the server sent something that is not JSON-RPC: {0}")]
    NotJsonRpc(#[from] serde_json::Error),
    /// The server does not serve the database.
    #[error("the server does not serve database {database}: {error}")]
    NoDatabase {
        /// The database.
        database: String,
        /// The server's words.
        error: String,
    },
    /// A table that is not optional is missing.
    #[error("database {database} {version} of the server has no table {table}")]
    NoTable {
        /// The database.
        database: String,
        /// The version of its schema.
        version: String,
        /// The table.
        table: &'static str,
    },
    /// A column that is not optional is missing.
    #[error("table {table} of the server's database {database} {version} has no column {column}")]
    NoColumn {
        /// The database.
        database: String,
        /// The version of its schema.
        version: String,
        /// The table.
        table: &'static str,
        /// The column.
        column: String,
    },
    /// A column has a type that the row cannot hold.
    #[error(
        "column {column} of table {table} is of type {found} in the server's schema {version}, not {expected}"
    )]
    ColumnType {
        /// The version of the database's schema.
        version: String,
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The column's type.
        found: ColumnType,
        /// The type that the row has.
        expected: String,
    },
    /// The server is cut off from its cluster, or its source if it is a relay.
    #[error("the server has lost its connection to the {model} database")]
    CutOff {
        /// `clustered` or `relay`.
        model: String,
    },
    /// The server does not lead its cluster.
    #[error("the server is not the leader of its cluster")]
    NotLeader,
    /// The server's data is older than what was seen before.
    #[error("the server is behind: its log ends at {index}, {seen} was seen before")]
    Behind {
        /// The end of its log.
        index: u64,
        /// The end of the log of an earlier server.
        seen: u64,
    },
    /// The server did not answer a probe.
    #[error("the server has been silent for {} s and did not answer the inactivity probe", .0.as_secs_f32())]
    Silent(Duration),
    /// The server took the connection and did not say in time what one begins with, and there are others.
    #[error("the server took the connection and did not send {awaited} for {} s: another one is asked", .waited.as_secs_f32())]
    Unanswered {
        /// The message that was waited for.
        awaited: Awaited,
        /// The time waited.
        waited: Duration,
    },
    /// The server refused something that it must not refuse.
    #[error("the server refused {method}: {error}")]
    Refused {
        /// The method.
        method: &'static str,
        /// The server's words.
        error: String,
    },
    /// The server ended the monitoring: the database was removed or its schema changed.
    #[error("the server ended the monitoring: its database was removed or has a new schema")]
    Canceled,
    /// The replica does not agree with the server.
    #[error("starting over with a complete copy: {0}")]
    Inconsistent(String),
    /// A server that sends updates without having answered the monitor request.
    #[error(
        "the server sent more than {MAX_DEFERRED} updates, or more than the limit of bytes, before it answered the \
         monitor request"
    )]
    Flooded,
}
