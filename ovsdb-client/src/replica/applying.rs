//! An update on its way into the replica: read slice by slice, so that no one has to wait for a large one, and then
//! applied at once, so that no one sees a half of it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::{ApplyError, Batch, Composites, Dialect, Replica};
use crate::datum::Name;
use crate::message::Payload;

/// The text that is read in one go, in bytes: a millisecond's worth.
const SLICE: usize = 64 * 1024;

/// An update, and how much of it was read.
#[derive(Debug)]
pub(crate) struct Applying {
    updates: Payload,
    complete: bool,
    dialect: Dialect,
    composites: Arc<Composites>,
    /// Ranges of each table's rows in the update; `None` for tables that the update says nothing of.
    tables: Option<Vec<Option<Range<usize>>>>,
    /// The table that is being read.
    table: usize,
    /// Bytes of the table that were read.
    at: usize,
}

impl Applying {
    /// `updates` go on top of the rows, or are the complete contents.
    pub(crate) fn new(
        updates: Payload,
        complete: bool,
        dialect: Dialect,
        composites: Arc<Composites>,
    ) -> Self {
        Self { updates, complete, dialect, composites, tables: None, table: 0, at: 0 }
    }

    /// Reads on. At the end the changes are given, which are those applied, error or not.
    pub(crate) fn step(&mut self, replica: &mut Replica) -> Option<(Batch, Result<(), ApplyError>)> {
        let read = self.read(replica);
        if let Ok(false) = read {
            return None;
        }
        let mut batch = Batch::default();
        let Some(tables) = &self.tables else { return Some((batch, read.map(drop))) };
        let mut result = read.map(drop);
        for (index, table) in replica.tables.iter_mut().enumerate().take(self.table + 1) {
            let is_part = tables.get(index).is_some_and(|range| self.complete || range.is_some());
            if !is_part {
                continue;
            }
            // The table where reading ended is not complete.
            let complete = self.complete && (result.is_ok() || index < self.table);
            let (changes, outcome) = table.commit(complete);
            batch.tables.extend(changes);
            if outcome.is_err() {
                result = outcome;
                break;
            }
        }
        Some((batch, result))
    }

    /// Reads the next part of the update; true if everything was read.
    fn read(&mut self, replica: &mut Replica) -> Result<bool, ApplyError> {
        let Some(tables) = &self.tables else {
            let updates: HashMap<Name<'_>, &RawValue> = serde_json::from_slice(self.updates.as_bytes())?;
            let range = |update: &&RawValue| self.updates.subrange_of(update);
            let names = replica.tables.iter().map(|table| table.name()).zip(self.composites.iter());
            self.tables = Some(names.map(|(name, _)| updates.get(name).map(range)).collect());
            return self.read(replica);
        };
        let mut budget = SLICE;
        while let (Some(range), Some(table)) = (tables.get(self.table), replica.tables.get_mut(self.table)) {
            let rows = range.clone().map_or("", |range| self.updates.part(range));
            let composite = self.composites.get(self.table);
            let Some((composite, (slice, next))) = composite.zip(slice(rows, self.at)) else {
                (self.table, self.at) = (self.table + 1, 0);
                continue;
            };
            if budget == 0 {
                return Ok(false);
            }
            if slice.len() == rows.len() {
                table.stage(slice, self.dialect, composite)?;
            } else {
                table.stage(&format!("{{{slice}}}"), self.dialect, composite)?;
            }
            self.at = next;
            budget = budget.saturating_sub(slice.len());
        }
        Ok(true)
    }
}

/// The members of the JSON object `text` from `at` on, whole ones and a `SLICE` of them, and where the next begin. What is
/// small, or no object, is given as it is.
fn slice(text: &str, at: usize) -> Option<(&str, usize)> {
    let is_whole = text.len() <= SLICE || !text.starts_with('{');
    if at >= text.len() {
        return None;
    }
    if is_whole {
        return Some((text, text.len()));
    }
    let start = at.max(1);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (length, byte) in text.as_bytes().iter().skip(start).enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b',' if depth == 0 && length >= SLICE => {
                return Some((&text[start..start + length], start + length + 1));
            }
            b'}' | b']' if depth == 0 => return Some((&text[start..start + length], text.len())),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_whole_members() {
        let value = r#"{"insert":{"a":"x,}\\\"{[","b":["set",[1,2,{"c":","}]]}}"#;
        for count in [0, 1, 3000, 20_000] {
            let members: Vec<String> = (0..count).map(|number| format!(r#""{number}":{value}"#)).collect();
            let text = format!("{{{}}}", members.join(","));
            let (mut at, mut found, mut slices) = (0, Vec::new(), 0);
            while let Some((slice, next)) = slice(&text, at) {
                assert!(slice.len() <= SLICE + value.len() + 20);
                let whole = if slice.len() == text.len() { slice.to_owned() } else { format!("{{{slice}}}") };
                let object: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&whole).unwrap();
                found.extend(object.into_iter().map(|(name, _)| name));
                (at, slices) = (next, slices + 1);
            }
            found.sort_by_key(|name| name.parse::<u32>().unwrap());
            assert!(found.iter().enumerate().all(|(number, name)| *name == number.to_string()));
            assert_eq!((found.len(), slices), (count, text.len() / SLICE + 1));
        }
        assert_eq!(slice("null", 0), Some(("null", 4)));
    }
}
