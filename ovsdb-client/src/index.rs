//! Rows by something other than their identity.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use uuid::Uuid;

use crate::replica::Batch;
use crate::row::Row;

/// The rows of a table by the value of a column, or by anything else that their contents say.
///
/// An index follows a table by the batches: give it each one.
///
/// ```
/// # use ovsdb_client::{Batch, Index};
/// # ovsdb_client::row! { pub struct PortBinding in "Port_Binding" { logical_port: String } }
/// let mut by_name = Index::new(|port: &PortBinding| port.logical_port.clone());
/// # let batch = Batch::default();
/// by_name.apply(&batch);
/// assert_eq!(by_name.get("lsp1").next(), None);
/// ```
#[derive(Debug, Clone)]
pub struct Index<R, K> {
    key: fn(&R) -> K,
    rows: HashMap<K, BTreeSet<Uuid>>,
}

impl<R: Row, K: Hash + Eq> Index<R, K> {
    /// An index of an empty table, by what `key` makes of a row.
    pub fn new(key: fn(&R) -> K) -> Self {
        Self { key, rows: HashMap::new() }
    }

    /// Follows the table through one batch.
    pub fn apply(&mut self, batch: &Batch) {
        for change in batch.of::<R>() {
            let old = change.old.as_deref().map(self.key);
            let new = change.new.as_deref().map(self.key);
            if old == new {
                continue;
            }
            if let Some(old) = old
                && let Some(uuids) = self.rows.get_mut(&old)
            {
                uuids.remove(&change.uuid);
                if uuids.is_empty() {
                    self.rows.remove(&old);
                }
            }
            if let Some(new) = new {
                self.rows.entry(new).or_default().insert(change.uuid);
            }
        }
    }

    /// The identities of the rows with this key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> impl Iterator<Item = &Uuid>
    where
        K: Borrow<Q>,
    {
        self.rows.get(key).into_iter().flatten()
    }
}
