//! The client's copy of the monitored tables: applies what a server sends, and tells what changed.
//!
//! Values are read straight into typed rows. Whatever arrives, an increment or a complete dump, comes out as
//! differences to the rows held before, and an error never hides a change that was applied already.

mod applying;
mod reader;

use std::any::Any;
use std::collections::HashSet;
use std::collections::hash_map::{DefaultHasher, HashMap};
use std::fmt;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use serde::de::DeserializeSeed;
use uuid::Uuid;

use crate::row::Row;
pub(crate) use applying::Applying;
use reader::TableReader;

/// The rows of one table, by identity.
#[derive(Debug)]
pub struct Table<R> {
    rows: Rows<R>,
    /// Rows read of an update that is not complete, in its order; deleted rows are `None`.
    staged: Vec<(Uuid, Option<Arc<R>>)>,
    /// A row that the update changes, and that is not here.
    unknown: Option<Uuid>,
}

type Rows<R> = HashMap<Uuid, Arc<R>, BuildHasherDefault<DefaultHasher>>;

impl<R: 'static> Table<R> {
    pub(crate) const EMPTY: &'static Self =
        &Self { rows: HashMap::with_hasher(BuildHasherDefault::new()), staged: Vec::new(), unknown: None };

    pub(crate) fn new() -> Self {
        Self { rows: HashMap::default(), staged: Vec::new(), unknown: None }
    }

    /// The row with this identity.
    pub fn get(&self, uuid: &Uuid) -> Option<&Arc<R>> {
        self.rows.get(uuid)
    }

    /// Every row with its identity, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&Uuid, &Arc<R>)> {
        self.rows.iter()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Puts `new` in the place of the row, and notes it if that is a change.
    fn replace(&mut self, uuid: Uuid, new: Option<Arc<R>>, changes: &mut Vec<Change<R>>)
    where
        R: PartialEq,
    {
        let old = match &new {
            Some(row) => self.rows.insert(uuid, Arc::clone(row)),
            None => self.rows.remove(&uuid),
        };
        if old != new {
            changes.push(Change { uuid, old, new });
        }
    }
}

/// Change of one row: an insert has no old row, a delete no new one.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<R> {
    /// The row's identity.
    pub uuid: Uuid,
    /// The row as it was.
    pub old: Option<Arc<R>>,
    /// The row as it is.
    pub new: Option<Arc<R>>,
}

/// The changes of one server transaction, of several that the server merged, or of one reconnection, pause or change of
/// conditions, in all monitored tables.
#[derive(Default)]
pub struct Batch {
    tables: Vec<Box<dyn AnyChanges>>,
}

impl Batch {
    /// Changes in the table of `R`.
    pub fn of<R: Row>(&self) -> &[Change<R>] {
        self.tables
            .iter()
            .find_map(|changes| changes.as_any().downcast_ref::<Vec<Change<R>>>())
            .map_or(&[], Vec::as_slice)
    }

    /// The number of changed rows in all tables.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|changes| changes.count()).sum()
    }

    /// True if nothing changed.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.tables).finish()
    }
}

trait AnyChanges: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn count(&self) -> usize;
}

impl<R: Row> AnyChanges for Vec<Change<R>> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn count(&self) -> usize {
        self.len()
    }
}

/// Encoding in which a server words the contents and changes of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// `monitor` and `update`: complete rows, old and new (RFC 7047, section 4.1.6).
    Monitor,
    /// `monitor_cond` and `update2`: new rows and differences (ovsdb-server(7), section 4.1.14).
    MonitorCond,
    /// `monitor_cond_since` and `update3`: the same with the transaction they lead to.
    MonitorCondSince,
}

/// The columns of each table, in the order of the tables, that the server has and whose changes it sends as differences.
pub(crate) type Composites = Vec<HashSet<&'static str>>;

/// Reason for which an update could not be applied. The replica has to be filled anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// A change of a row that the replica does not have.
    #[error("the server changed row {uuid} of table {table}, which it never sent")]
    UnknownRow {
        /// The table.
        table: &'static str,
        /// The row.
        uuid: Uuid,
    },
    /// A value that does not have the type that the schema says, or no table update at all.
    #[error("the server sent something for table {table} that cannot be read: {source}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// The error of the parser.
        source: serde_json::Error,
    },
    /// An update that is not a set of tables.
    #[error("the server sent an update that cannot be read: {0}")]
    NoUpdate(#[from] serde_json::Error),
}

/// The monitored tables.
#[derive(Default)]
pub(crate) struct Replica {
    tables: Vec<Box<dyn AnyTable>>,
}

impl Replica {
    /// Adds an empty table and gives its index, which its [`Composites`] have as well.
    pub(crate) fn add<R: Row>(&mut self) -> usize {
        self.tables.push(Box::new(Table::<R>::new()));
        self.tables.len() - 1
    }

    pub(crate) fn table<R: Row>(&self) -> Option<&Table<R>> {
        self.tables.iter().find_map(|table| table.as_any().downcast_ref())
    }

    pub(crate) fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.len()).sum()
    }

    pub(crate) fn index<R: Row>(&self) -> Option<usize> {
        self.tables.iter().position(|table| table.as_any().is::<Table<R>>())
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.tables.iter().map(|table| table.name())).finish()
    }
}

trait AnyTable: Send + Sync {
    fn name(&self) -> &'static str;
    fn len(&self) -> usize;
    fn as_any(&self) -> &dyn Any;
    /// Reads rows of an update, a JSON object, without changing the table.
    fn stage(
        &mut self,
        rows: &str,
        dialect: Dialect,
        composite: &HashSet<&'static str>,
    ) -> Result<(), ApplyError>;
    /// Changes the table by what was read; all other rows go if that was `complete`.
    fn commit(&mut self, complete: bool) -> (Option<Box<dyn AnyChanges>>, Result<(), ApplyError>);
}

impl<R: Row> AnyTable for Table<R> {
    fn name(&self) -> &'static str {
        R::TABLE
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stage(
        &mut self,
        rows: &str,
        dialect: Dialect,
        composite: &HashSet<&'static str>,
    ) -> Result<(), ApplyError> {
        let reader = TableReader {
            rows: &self.rows,
            staged: &mut self.staged,
            unknown: &mut self.unknown,
            dialect,
            composite,
        };
        reader
            .deserialize(&mut serde_json::Deserializer::from_str(rows))
            .map_err(|source| ApplyError::Unreadable { table: R::TABLE, source })
    }

    fn commit(&mut self, complete: bool) -> (Option<Box<dyn AnyChanges>>, Result<(), ApplyError>) {
        let mut changes = Vec::new();
        let mut seen = HashSet::new();
        for (uuid, row) in std::mem::take(&mut self.staged) {
            if complete && row.is_some() {
                seen.insert(uuid);
            }
            self.replace(uuid, row, &mut changes);
        }
        let result = match self.unknown.take() {
            Some(uuid) => Err(ApplyError::UnknownRow { table: R::TABLE, uuid }),
            None => Ok(()),
        };
        if complete && result.is_ok() {
            let gone: Vec<Uuid> = self.rows.keys().filter(|uuid| !seen.contains(uuid)).copied().collect();
            for uuid in gone {
                self.replace(uuid, None, &mut changes);
            }
        }
        let changes = (!changes.is_empty()).then(|| Box::new(changes) as Box<dyn AnyChanges>);
        (changes, result)
    }
}

#[cfg(test)]
pub(crate) mod tests;
