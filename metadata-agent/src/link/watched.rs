//! Requests as they end, on their way to an operator who watches: a guest's word until they were checked.
use serde::{Deserialize, Serialize};

use crate::directory::Record;

/// Most requests in one message.
pub const MOST_SEEN: usize = 64;

/// Requests that have ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// The requests, the first one first.
    pub requests: Vec<Watched>,
    /// Number of those that were not told of before them.
    pub lost: u64,
}

/// A request of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// The port's id.
    pub port: String,
    /// Its tap.
    pub tap: String,
    /// Its record.
    pub record: Record,
}
