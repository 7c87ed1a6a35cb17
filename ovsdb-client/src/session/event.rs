//! Output of a session: events for the program, and messages for the server.

use std::sync::Arc;

use super::Awaited;
use crate::error::Error;
use crate::message::Payload;
use crate::replica::{Composites, Dialect};
use crate::schema::Schema;

/// Event of a session.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// The server has not said for a while what a connection begins with.
    Waiting(Awaited),
    /// The server is acceptable. Requests can be made from now on.
    Ready,
    /// The answer to a monitor request.
    Contents {
        /// The tables.
        updates: Payload,
        /// True if these are all rows; otherwise they are the changes since the last connection.
        complete: bool,
        /// The encoding of the updates.
        dialect: Dialect,
        /// The columns that the server has and sends differences of.
        composites: Arc<Composites>,
        /// The server's schema.
        schema: Option<Arc<Schema>>,
    },
    /// Changes.
    Update {
        /// The tables.
        updates: Payload,
        /// The encoding of the updates.
        dialect: Dialect,
    },
    /// The conditions of this generation, and all before it, are in force.
    ConditionInForce(u64),
    /// The conditions of this generation were refused; those before stay in force.
    ConditionRefused {
        /// The generation.
        generation: u64,
        /// The server's words.
        error: String,
    },
    /// A clause that does not fit the server's schema was left out.
    ClauseLeftOut {
        /// The table.
        table: &'static str,
        /// The column.
        column: String,
        /// The mismatch of clause and column.
        problem: String,
    },
    /// Nothing is monitored, and no update comes until `Session::set_paused` ends that.
    Paused,
    /// A request was answered.
    Reply {
        /// The request's id, as `Session::request` gave it.
        id: u64,
        /// The result.
        result: Result<Payload, Error>,
    },
    /// A lock was obtained or lost.
    Lock {
        /// The lock's name.
        name: String,
        /// True if it is held now.
        held: bool,
    },
}

/// A message to send.
#[derive(Debug)]
pub(crate) struct Transmit {
    /// The JSON text.
    pub(crate) message: Vec<u8>,
    /// True if the server asked for the message, as it could do without end: all others are few, or wanted by the user.
    pub(crate) is_answer: bool,
}
