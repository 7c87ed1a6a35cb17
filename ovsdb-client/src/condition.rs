//! Conditions: which rows to replicate, and which rows an operation is about (RFC 7047, section 5.1).

use std::sync::Arc;

use serde_json::json;

use crate::message;
use crate::schema::{AtomicType, ColumnType, TableSchema};
use crate::value::{Atom, Value};

/// Comparison of a column with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Function {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`, numbers only.
    Less,
    /// `<=`, numbers only.
    LessOrEqual,
    /// `>`, numbers only.
    Greater,
    /// `>=`, numbers only.
    GreaterOrEqual,
    /// The set or map contains all of the value.
    Includes,
    /// The set or map contains nothing of the value.
    Excludes,
}

impl Function {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Includes => "includes",
            Self::Excludes => "excludes",
        }
    }
}

/// One comparison: column, function, value.
#[derive(Debug, Clone, PartialEq)]
pub struct Clause {
    /// The column, which need not be among the replicated ones.
    pub column: String,
    /// The comparison.
    pub function: Function,
    /// The value that the column is compared with.
    pub value: Value,
}

impl Clause {
    /// A comparison of `column` with `value`.
    pub fn new(column: impl Into<String>, function: Function, value: impl Into<Value>) -> Self {
        Self { column: column.into(), function, value: value.into() }
    }

    /// `column == value`. A server looks up thousands of these over one column by hash.
    pub fn equal(column: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(column, Function::Equal, value)
    }

    /// Tells what of this does not fit a column of type `kind` (ovsdb_clause_from_json() in Open vSwitch's condition.c).
    fn check(&self, kind: &ColumnType) -> Result<(), String> {
        let is_number = matches!(kind.key, AtomicType::Integer | AtomicType::Real);
        let at_most_one = kind.value.is_none() && kind.max == Some(1);
        let (min, max) = match self.function {
            Function::Less | Function::LessOrEqual | Function::Greater | Function::GreaterOrEqual
                if !(at_most_one && is_number) =>
            {
                return Err(format!("{} compares numbers, and it is of type {kind}", self.function.as_str()));
            }
            Function::Includes if !kind.is_scalar() => (0, kind.max),
            Function::Excludes if !kind.is_scalar() => (0, None),
            _ => (kind.min, kind.max),
        };
        let is_of = |atom: &Atom, kind: AtomicType| match (atom, kind) {
            (Atom::Real(value), AtomicType::Integer) => value.fract() == 0.0,
            (Atom::Integer(_), AtomicType::Integer | AtomicType::Real)
            | (Atom::Real(_), AtomicType::Real)
            | (Atom::Boolean(_), AtomicType::Boolean)
            | (Atom::String(_), AtomicType::String)
            | (Atom::Uuid(_), AtomicType::Uuid)
            | (_, AtomicType::Unknown) => true,
            _ => false,
        };
        let (fits, count) = match (&self.value, kind.value) {
            (Value::Atom(atom), None) => (is_of(atom, kind.key), 1),
            (Value::Set(atoms), None) => (atoms.iter().all(|atom| is_of(atom, kind.key)), atoms.len()),
            (Value::Map(pairs), Some(value)) => {
                let fits = |(k, v): &(Atom, Atom)| is_of(k, kind.key) && is_of(v, value);
                (pairs.iter().all(fits), pairs.len())
            }
            _ => (false, 0),
        };
        let count = count as u64;
        if fits && count >= min && max.is_none_or(|max| count <= max) {
            return Ok(());
        }
        Err(format!("{} does not fit it, which is of type {kind}", self.value.json()))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        json!([self.column, self.function.as_str(), self.value.json()])
    }
}

/// Rows of a table that are replicated. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Conditions {
    /// Every row.
    All,
    /// No row.
    None,
    /// The rows for which at least one of the clauses holds.
    AnyOf(Arc<[Clause]>),
}

impl Conditions {
    /// The rows for which at least one of `clauses` holds: none if there is no clause.
    pub fn any_of(clauses: impl IntoIterator<Item = Clause>) -> Self {
        let clauses: Arc<[Clause]> = clauses.into_iter().collect();
        if clauses.is_empty() { Self::None } else { Self::AnyOf(clauses) }
    }

    /// The first clause that does not fit `table`, and why: no column that the table lacks is one.
    pub(crate) fn check(&self, table: Option<&TableSchema>) -> Result<(), (String, String)> {
        let Self::AnyOf(clauses) = self else { return Ok(()) };
        clauses.iter().try_for_each(|clause| {
            let usable = message::check_text(&clause.column).and_then(|()| clause.value.check());
            let fits = usable.map_err(|error| error.to_string()).and_then(|()| {
                table.and_then(|table| table.kind(&clause.column)).map_or(Ok(()), |kind| clause.check(&kind))
            });
            fits.map_err(|problem| (clause.column.clone(), problem))
        })
    }

    /// The clauses that a server with `table` takes, and those that do not fit it. A clause on a column that it lacks holds
    /// for no row, and would be an error to the server; OVS' own clients leave it out as well (ovsdb_idl_condition_add_clause).
    ///
    /// An empty list would mean "all rows" to the server (ovsdb-server(7), section 4.1.12), hence the plain booleans.
    pub(crate) fn json(&self, table: Option<&TableSchema>) -> serde_json::Value {
        match self {
            Self::All => json!([true]),
            Self::None => json!([false]),
            Self::AnyOf(clauses) => {
                let known = clauses.iter().filter(|clause| {
                    let kind = table.and_then(|table| table.kind(&clause.column));
                    kind.is_some_and(|kind| clause.check(&kind).is_ok()) && clause.value.check().is_ok()
                });
                let known: Vec<_> = known.map(Clause::json).collect();
                if known.is_empty() { json!([false]) } else { known.into() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TableSchema {
        serde_json::from_value(json!({ "columns": {
            "name": { "type": "string" },
            "tag": { "type": { "key": "integer", "min": 0 } },
            "price": { "type": "real" },
            "labels": { "type": { "key": "string", "min": 0, "max": "unlimited" } },
            "ids": { "type": { "key": "string", "value": "integer", "min": 0, "max": "unlimited" } },
        } }))
        .unwrap()
    }

    #[test]
    fn clauses_fit_columns_as_servers_see_it() {
        let cases: [(&str, Function, Value, bool); 22] = [
            ("name", Function::Equal, "a".into(), true),
            ("name", Function::Equal, 1.into(), false),
            ("name", Function::Equal, vec!["a"].into(), true),
            ("name", Function::Includes, Value::EMPTY, false),
            ("name", Function::Less, "a".into(), false),
            ("name", Function::Equal, "a\0".into(), false),
            ("tag", Function::Greater, 1.into(), true),
            ("tag", Function::Equal, Value::EMPTY, true),
            ("tag", Function::Equal, 1.5.into(), false),
            ("tag", Function::Equal, 2.0.into(), true),
            ("tag", Function::Equal, vec![1, 2].into(), false),
            ("tag", Function::Excludes, vec![1, 2].into(), true),
            ("price", Function::Less, 1.into(), true),
            ("price", Function::Equal, f64::NAN.into(), false),
            ("labels", Function::Includes, "a".into(), true),
            ("labels", Function::Greater, "a".into(), false),
            ("labels", Function::Equal, true.into(), false),
            ("ids", Function::Includes, std::collections::BTreeMap::from([("a", 1)]).into(), true),
            ("ids", Function::Includes, std::collections::BTreeMap::from([("a", "1")]).into(), false),
            ("ids", Function::Includes, "a".into(), false),
            ("_uuid", Function::Equal, uuid::Uuid::nil().into(), true),
            ("_uuid", Function::Equal, "a".into(), false),
        ];
        for (column, function, value, fits) in cases {
            let conditions = Conditions::any_of([Clause::new(column, function, value)]);
            let checked = conditions.check(Some(&table()));
            assert_eq!(checked.is_ok(), fits, "{conditions:?}: {checked:?}");
            assert_eq!(conditions.json(Some(&table())) == json!([false]), !fits, "{conditions:?}");
        }
    }

    #[test]
    fn no_clause_is_no_row() {
        let table = table();
        let json = |conditions: &Conditions| conditions.json(Some(&table));
        assert_eq!(json(&Conditions::any_of([])), json!([false]));
        assert_eq!(json(&Conditions::All), json!([true]));
        let two = Conditions::any_of([Clause::equal("name", "a"), Clause::new("tag", Function::Greater, 5)]);
        assert_eq!(json(&two), json!([["name", "==", "a"], ["tag", ">", 5]]));
        let newer = [Clause::equal("newer", 1), Clause::equal("name", "a")];
        assert_eq!(json(&Conditions::any_of(newer.clone())), json!([["name", "==", "a"]]));
        assert_eq!(json(&Conditions::any_of(newer.into_iter().take(1))), json!([false]));
    }
}
