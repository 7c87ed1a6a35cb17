//! Reads updates from JSON straight into the rows of a table, without a tree of values in between.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use uuid::Uuid;

use super::{Dialect, Rows};
use crate::datum::Name;
use crate::row::Row;

/// Reads `{<uuid>: <row-update>, ...}` for a table.
pub(super) struct TableReader<'a, R> {
    pub(super) rows: &'a Rows<R>,
    pub(super) staged: &'a mut Vec<(Uuid, Option<Arc<R>>)>,
    pub(super) unknown: &'a mut Option<Uuid>,
    pub(super) dialect: Dialect,
    pub(super) composite: &'a HashSet<&'static str>,
}

impl<'de, R: Row> DeserializeSeed<'de> for TableReader<'_, R> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, R: Row> Visitor<'de> for TableReader<'_, R> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("rows by UUID")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut rows: M) -> Result<(), M::Error> {
        while let Some(uuid) = rows.next_key::<Uuid>()? {
            let old = self.rows.get(&uuid).map(Arc::as_ref);
            let outcome = rows.next_value_seed(RowUpdateReader {
                old,
                dialect: self.dialect,
                composite: self.composite,
            })?;
            match outcome {
                RowUpdate::New(row) => self.staged.push((uuid, Some(Arc::new(row)))),
                RowUpdate::Gone => self.staged.push((uuid, None)),
                RowUpdate::Unknown => *self.unknown = Some(uuid),
            }
        }
        Ok(())
    }
}

enum RowUpdate<R> {
    New(R),
    Gone,
    Unknown,
}

/// Reads one row's `{"insert": {...}}`, `{"modify": {...}}`, `{"old": {...}, "new": {...}}` and so on.
struct RowUpdateReader<'a, R> {
    old: Option<&'a R>,
    dialect: Dialect,
    composite: &'a HashSet<&'static str>,
}

impl<'de, R: Row> DeserializeSeed<'de> for RowUpdateReader<'_, R> {
    type Value = RowUpdate<R>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RowUpdate<R>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, R: Row> Visitor<'de> for RowUpdateReader<'_, R> {
    type Value = RowUpdate<R>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a row update")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut update: M) -> Result<RowUpdate<R>, M::Error> {
        // An update without a new row, with an old one or a `delete`, is the end of the row.
        let mut outcome = RowUpdate::Gone;
        while let Some(kind) = update.next_key::<Name<'de>>()? {
            match (kind.0.as_ref(), self.dialect) {
                ("new", Dialect::Monitor)
                | ("initial" | "insert", Dialect::MonitorCond | Dialect::MonitorCondSince) => {
                    let mut row = R::default();
                    update.next_value_seed(RowReader { row: &mut row, composite: None })?;
                    outcome = RowUpdate::New(row);
                }
                ("modify", Dialect::MonitorCond | Dialect::MonitorCondSince) => match self.old {
                    Some(old) => {
                        let mut row = old.clone();
                        update
                            .next_value_seed(RowReader { row: &mut row, composite: Some(self.composite) })?;
                        outcome = RowUpdate::New(row);
                    }
                    None => {
                        update.next_value::<IgnoredAny>()?;
                        outcome = RowUpdate::Unknown;
                    }
                },
                ("old", Dialect::Monitor) | ("delete", Dialect::MonitorCond | Dialect::MonitorCondSince) => {
                    update.next_value::<IgnoredAny>()?;
                }
                (other, _) => {
                    return Err(de::Error::custom(format_args!("unknown kind of row update {other:?}")));
                }
            }
        }
        Ok(outcome)
    }
}

/// Reads columns into a row, those in `composite` as differences.
struct RowReader<'a, R> {
    row: &'a mut R,
    composite: Option<&'a HashSet<&'static str>>,
}

impl<'de, R: Row> DeserializeSeed<'de> for RowReader<'_, R> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, R: Row> Visitor<'de> for RowReader<'_, R> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("columns by name")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut columns: M) -> Result<(), M::Error> {
        while let Some(Name(column)) = columns.next_key()? {
            let difference = self.composite.is_some_and(|composite| composite.contains(column.as_ref()));
            columns.next_value_seed(ColumnReader { row: &mut *self.row, column: &column, difference })?;
        }
        Ok(())
    }
}

struct ColumnReader<'a, R> {
    row: &'a mut R,
    column: &'a str,
    difference: bool,
}

impl<'de, R: Row> DeserializeSeed<'de> for ColumnReader<'_, R> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.row.read(self.column, deserializer, self.difference)
    }
}
