//! Settings of a session.

use std::time::Duration;

use super::{TableSpec, TurnConfig};

/// Settings of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionConfig {
    /// The database's name.
    pub(crate) database: String,
    /// The tables to replicate.
    pub(crate) tables: Vec<TableSpec>,
    /// Time that a server may be silent before it is asked for a sign of life, and then before it is given up;
    /// zero never asks.
    pub(crate) probe_interval: Duration,
    /// Time that each step of a new connection may take, up to the first contents, if there are other servers.
    pub(crate) greeting_timeout: Duration,
    /// Limit in bytes of the updates that are kept although they come before the answer to the monitor request.
    pub(crate) deferred_limit: usize,
    /// Number of servers, each of which is tried in turn.
    pub(crate) servers: usize,
    /// True if to refuse servers of a cluster that are not its leader.
    pub(crate) leader_only: bool,
    /// Turns in which clients ask for contents; `None` where they take none.
    pub(crate) turns: Option<TurnConfig>,
}
