//! Events that a client tells its program.

use std::fmt;
use std::time::Duration;

use crate::connection::DisconnectReason;
use crate::remote::Remote;
use crate::replica::Batch;
use crate::session::Awaited;

/// Event of a client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A server took the connection, and has not said for a while what one begins with. It is left for another one, if
    /// there is one, when it has not after as long again.
    Waiting {
        /// The server.
        remote: Remote,
        /// The message being waited for.
        awaited: Awaited,
    },
    /// A server was found that serves the database: requests can be made.
    Connected {
        /// The server.
        remote: Remote,
    },
    /// There is no connection, or none yet. The tables stay as they are.
    Disconnected {
        /// The server.
        remote: Remote,
        /// The reason, for operators to read.
        reason: DisconnectReason,
        /// Delay before the next attempt.
        retry: Duration,
    },
    /// Rows changed, and the tables hold the new ones.
    Batch(Batch),
    /// The tables hold what the server holds. Comes once after each `Connected` and each `Paused` that is ended, behind
    /// the batch of differences.
    Synced,
    /// Nothing is monitored any more, and the tables stay as they are until [`Client::resume`](crate::Client::resume). Comes in the place of
    /// `Synced` after each `Connected` meanwhile. A pause that ends before anything was done about it brings no event.
    Paused,
    /// The tables hold what a transaction did: see [`Handle::commit`](crate::Handle::commit).
    Visible(Mark),
    /// A change of conditions is in force, and the tables hold the rows that it brought.
    ConditionInForce(Generation),
    /// The server refused conditions, and keeps those before. They are not sent again; other ones are.
    ConditionRefused {
        /// The conditions.
        generation: Generation,
        /// The server's words.
        error: String,
    },
    /// A clause does not fit the type that its column has in the server's schema. It was left out, as those on columns
    /// that the server lacks are: no row meets it.
    ClauseLeftOut {
        /// The table.
        table: &'static str,
        /// The clause's column.
        column: String,
        /// The mismatch of clause and column.
        problem: String,
    },
    /// The task that keeps the connection is gone, as with the runtime that it was made on. The tables stay as they are,
    /// requests fail, and nothing else is ever told: the next [`Client::recv`](crate::Client::recv) waits without end.
    Closed,
    /// A lock was obtained or lost.
    Lock {
        /// Its name.
        name: String,
        /// True if this client holds it now.
        held: bool,
    },
}

/// A place among the events of a client, behind what the server sent before an answer. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub(crate) u64);

/// A state of the conditions. Later ones are greater, and in force only when all before are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub(crate) u64);

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
