//! Point to resume from, which outlives a connection: the transaction that the rows are at, and the conditions that
//! they meet.

use uuid::Uuid;

use super::TableSpec;
use crate::condition::Conditions;

/// Point to resume from on the next connection.
#[derive(Debug)]
pub(super) struct Resume {
    /// The transaction that the replica is at; nil if it cannot be named, as with standalone databases.
    pub(super) transaction: Uuid,
    /// The columns requested, by table. The replica can only be resumed with the same ones.
    pub(super) columns: Vec<Option<Vec<&'static str>>>,
    pub(super) wanted: Vec<Conditions>,
    pub(super) acknowledged: Vec<Conditions>,
    /// The latest generation of `wanted`.
    pub(super) generation: u64,
    pub(super) in_force: u64,
    /// Generation and conditions of the request without an answer.
    pub(super) in_flight: Option<(u64, Vec<Conditions>)>,
    /// A generation that the server refused. It may have taken those of some tables before that.
    pub(super) refused: Option<u64>,
}

impl Resume {
    pub(super) fn new(tables: &[TableSpec]) -> Self {
        let conditions: Vec<Conditions> = tables.iter().map(|table| table.conditions.clone()).collect();
        Self {
            transaction: Uuid::nil(),
            columns: Vec::new(),
            wanted: conditions.clone(),
            acknowledged: conditions,
            generation: 0,
            in_force: 0,
            in_flight: None,
            refused: None,
        }
    }

    /// Begins with the conditions wanted now; with those before if a server refused these, which are tried again later.
    pub(super) fn begin_anew(&mut self) {
        if self.refused != Some(self.generation) {
            self.refused = None;
            self.acknowledged = self.wanted.clone();
            self.in_flight = Some((self.generation, self.wanted.clone()));
        }
    }

    /// With a change of conditions half done it is unknown which of them the rows of the replica meet: a row that the
    /// new conditions brought could be deleted meanwhile, and nobody would say so.
    pub(super) fn disconnected(&mut self) {
        if self.in_flight.take().is_some() || self.refused.is_some() {
            self.transaction = Uuid::nil();
        }
    }
}
