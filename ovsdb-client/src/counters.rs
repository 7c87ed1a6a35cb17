//! The counters of a client: what it moved, and how it came by its rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one client since it was made. They only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Messages that were sent, requests and answers.
    pub messages_sent: u64,
    /// Messages that were received whole.
    pub messages_received: u64,
    /// Bytes that were sent, without those of TLS.
    pub bytes_sent: u64,
    /// Bytes that were received, without those of TLS.
    pub bytes_received: u64,
    /// Attempts to connect.
    pub attempts: u64,
    /// Connections to servers of use. The first one is no reconnection.
    pub connections: u64,
    /// Times that a server went on from the transaction that the rows were at.
    pub resumes: u64,
    /// Times that a server sent all rows.
    pub complete_contents: u64,
    /// Changes of the conditions that were sent: a server goes through the whole table for each.
    pub condition_changes: u64,
    /// Rows that were new, changed or gone, also as differences after a reconnection.
    pub rows_changed: u64,
}

/// A counter of [`Counters`], shared by the task that keeps the connection and the owner of the rows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, amount: usize) {
        self.0.fetch_add(amount as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of a client, shared by its parts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) messages_sent: Count,
    pub(crate) messages_received: Count,
    pub(crate) bytes_sent: Count,
    pub(crate) bytes_received: Count,
    pub(crate) attempts: Count,
    pub(crate) connections: Count,
    pub(crate) resumes: Count,
    pub(crate) complete_contents: Count,
    pub(crate) condition_changes: Count,
    pub(crate) rows_changed: Count,
}

/// A tally with several owners.
pub(crate) type SharedTally = Arc<Tally>;

impl Tally {
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            messages_sent: self.messages_sent.get(),
            messages_received: self.messages_received.get(),
            bytes_sent: self.bytes_sent.get(),
            bytes_received: self.bytes_received.get(),
            attempts: self.attempts.get(),
            connections: self.connections.get(),
            resumes: self.resumes.get(),
            complete_contents: self.complete_contents.get(),
            condition_changes: self.condition_changes.get(),
            rows_changed: self.rows_changed.get(),
        }
    }
}
