//! Conditions: which rows to replicate, and which rows an operation is about (RFC 7047, section 5.1).

use std::sync::Arc;

use serde_json::json;

use crate::value::Value;

/// How a clause compares a column with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// What the column is compared with.
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

    pub(crate) fn json(&self) -> serde_json::Value {
        json!([self.column, self.function.as_str(), self.value.json()])
    }
}

/// Which rows of a table to replicate. Cheap to clone.
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

    /// For a server whose table has those columns. A clause on a column that it lacks holds for no row, and would be an
    /// error to the server; OVS' own clients leave it out as well (ovsdb_idl_condition_add_clause).
    ///
    /// An empty list would mean "all rows" to the server (ovsdb-server(7), section 4.1.12), hence the plain booleans.
    pub(crate) fn json(&self, has_column: impl Fn(&str) -> bool) -> serde_json::Value {
        match self {
            Self::All => json!([true]),
            Self::None => json!([false]),
            Self::AnyOf(clauses) => {
                let known =
                    clauses.iter().filter(|clause| clause.column == "_uuid" || has_column(&clause.column));
                let known: Vec<_> = known.map(Clause::json).collect();
                if known.is_empty() { json!([false]) } else { known.into() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clause_is_no_row() {
        let json = |conditions: &Conditions| conditions.json(|column| column != "newer");
        assert_eq!(json(&Conditions::any_of([])), json!([false]));
        assert_eq!(json(&Conditions::All), json!([true]));
        let two = Conditions::any_of([Clause::equal("name", "a"), Clause::new("tag", Function::Greater, 5)]);
        assert_eq!(json(&two), json!([["name", "==", "a"], ["tag", ">", 5]]));
        let newer = [Clause::equal("newer", 1), Clause::equal("name", "a")];
        assert_eq!(json(&Conditions::any_of(newer.clone())), json!([["name", "==", "a"]]));
        assert_eq!(json(&Conditions::any_of(newer.into_iter().take(1))), json!([false]));
    }
}
