//! Tables to replicate, and what of them a server has.

use super::Hangup;
use crate::condition::Conditions;
use crate::row::Column;
use crate::schema::Schema;

/// A table to replicate.
#[derive(Debug, Clone)]
pub(crate) struct TableSpec {
    /// The table's name.
    pub(crate) name: &'static str,
    /// Its columns.
    pub(crate) columns: &'static [Column],
    /// True if databases may lack the table.
    pub(crate) optional: bool,
    /// The rows to begin with.
    pub(crate) conditions: Conditions,
}

impl TableSpec {
    /// The columns that the server has; `None` if it lacks the whole table and may do so.
    pub(super) fn available(&self, schema: &Schema) -> Result<Option<Vec<&'static str>>, Hangup> {
        let (database, version) = (&schema.name, &schema.version);
        let Some(found) = schema.tables.get(self.name) else {
            if self.optional {
                return Ok(None);
            }
            let (database, version) = (database.clone(), version.clone());
            return Err(Hangup::NoTable { database, version, table: self.name });
        };
        let mut columns = Vec::new();
        for column in self.columns {
            match found.columns.get(column.name) {
                Some(schema) if (column.accepts)(&schema.kind) => columns.push(column.name),
                Some(schema) => {
                    return Err(Hangup::ColumnType {
                        version: version.clone(),
                        table: self.name,
                        column: column.name,
                        found: schema.kind,
                        expected: (column.describe)(),
                    });
                }
                None if column.optional => {}
                None => {
                    return Err(Hangup::NoColumn {
                        database: database.clone(),
                        version: version.clone(),
                        table: self.name,
                        column: column.name.to_owned(),
                    });
                }
            }
        }
        Ok(Some(columns))
    }
}
