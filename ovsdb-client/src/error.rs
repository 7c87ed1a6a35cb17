//! Errors of requests to a server.

use crate::message::Unsendable;
use crate::remote::RemoteError;

/// Reason for which a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No server is connected; the request was not sent.
    #[error("no database server is connected")]
    NotConnected,
    /// The connection was lost before the answer came: the request may have been executed or not.
    #[error("the connection was lost before the answer came: whether the request was executed is unknown")]
    Interrupted,
    /// The consumer takes no events, and more updates than the message limit allows came before the answer.
    #[error(
        "more updates came before the answer than may wait for the consumer: whether the request was executed is \
         unknown"
    )]
    Overrun,
    /// The client was dropped.
    #[error("the OVSDB client was closed")]
    Closed,
    /// The server refused the request.
    #[error("the server refused {method}: {error}")]
    Refused {
        /// The method.
        method: String,
        /// The server's words.
        error: String,
    },
    /// An operation of a transaction failed, and the transaction with it.
    #[error("operation {} ({operation}) failed: {error}{}{details}", index + 1, if details.is_empty() { "" } else { ": " })]
    Transaction {
        /// The operation's index; the number of operations if the transaction failed as a whole.
        index: usize,
        /// The operation's name; `commit` if the transaction failed as a whole.
        operation: &'static str,
        /// The kind of failure (RFC 7047, section 5.2).
        error: String,
        /// The server's explanation.
        details: String,
    },
    /// The server's answer is not what the protocol says.
    #[error("the server's answer cannot be read: {0}")]
    UnreadableReply(serde_json::Error),
    /// The server gave not as many results as there were operations, and no error.
    #[error(
        "the server gave {found} results for {expected} operations: whether they were executed is unknown"
    )]
    WrongNumberOfResults {
        /// The number of operations.
        expected: usize,
        /// The number of results.
        found: usize,
    },
    /// Something that servers do not take for JSON, which would cost the connection; it was not sent.
    #[error("not sent: {0}")]
    Unsendable(#[from] Unsendable),
    /// A clause that does not fit its column; the conditions stay as they were.
    #[error("a condition on table {table} cannot be: column {column}: {problem}")]
    Clause {
        /// The table.
        table: &'static str,
        /// The column.
        column: String,
        /// The mismatch of clause and column.
        problem: String,
    },
    /// The table is not among those monitored.
    #[error("table {0} is not monitored: add it before connecting")]
    NotMonitored(&'static str),
    /// A remote that cannot be parsed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// The chance of a transaction that failed to succeed when it is tried again, as Open vSwitch's IDL tells it from
/// failures for good (`ovsdb_idl_txn_process_reply` of lib/ovsdb-idl.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// It would fail again.
    Never,
    /// Nothing was done, since a `wait` did not find the rows as it should: to be tried again with the rows as they are,
    /// once the client's tables have them.
    WithNewRows,
    /// Nothing was done, since there was no server, or the database was being replaced: to be tried again when the client
    /// is synced.
    WhenSynced,
    /// It may have been executed: to be tried again if the rows say that it was not.
    Unknown,
}

impl Error {
    /// The retry that the error calls for.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotConnected => Retry::WhenSynced,
            Self::Refused { error, .. } if error == "canceled" => Retry::WhenSynced,
            Self::Transaction { error, .. } if error == "timed out" => Retry::WithNewRows,
            // A leader that lost its place does not know what its successor makes of what it has passed on.
            Self::Transaction { error, .. } if error == "cluster error" => Retry::Unknown,
            Self::Interrupted
            | Self::Overrun
            | Self::UnreadableReply(_)
            | Self::WrongNumberOfResults { .. } => Retry::Unknown,
            _ => Retry::Never,
        }
    }
}

/// The words of a JSON-RPC error, a string or an object with `error` and `details` (RFC 7047, section 3.1).
pub(crate) fn describe(error: &str) -> String {
    match serde_json::from_str(error) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(serde_json::Value::Object(fields)) => {
            let field = |name| fields.get(name).and_then(serde_json::Value::as_str);
            match (field("error"), field("details")) {
                (Some(error), Some(details)) => format!("{error}: {details}"),
                (Some(error), None) => error.to_owned(),
                _ => serde_json::Value::Object(fields).to_string(),
            }
        }
        _ => error.to_owned(),
    }
}
