//! Operations of a transaction and their results (RFC 7047, section 5.2).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::condition::Clause;
use crate::error::Error;
use crate::message::Unsendable;
use crate::value::Value;

/// Columns and their values.
pub type Columns = BTreeMap<String, Value>;

/// Mutator: the change that a `mutate` makes to a column (RFC 7047, section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutator {
    /// `+=`
    Add,
    /// `-=`
    Subtract,
    /// `*=`
    Multiply,
    /// `/=`
    Divide,
    /// `%=`
    Modulo,
    /// Adds elements to a set, or pairs to a map whose keys it does not have yet.
    Insert,
    /// Removes elements from a set, or pairs (or, given a set, keys) from a map.
    Delete,
}

impl Mutator {
    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+=",
            Self::Subtract => "-=",
            Self::Multiply => "*=",
            Self::Divide => "/=",
            Self::Modulo => "%=",
            Self::Insert => "insert",
            Self::Delete => "delete",
        }
    }
}

/// One change of one column by a `mutate`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mutation {
    /// The column.
    pub column: String,
    /// The kind of change.
    pub mutator: Mutator,
    /// The operand.
    pub value: Value,
}

impl Mutation {
    /// A change of `column`.
    pub fn new(column: impl Into<String>, mutator: Mutator, value: impl Into<Value>) -> Self {
        Self { column: column.into(), mutator, value: value.into() }
    }
}

/// One operation of a transaction. All clauses of a `condition` must hold; an empty one means every row.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// Reads rows.
    Select {
        /// The table.
        table: String,
        /// The clauses that the rows meet.
        condition: Vec<Clause>,
        /// The columns; `None` for all of them.
        columns: Option<Vec<String>>,
    },
    /// Adds a row.
    Insert {
        /// The table.
        table: String,
        /// The columns that shall not have their default values.
        row: Columns,
        /// A name by which other operations of the transaction can refer to the row ([`Value::named_uuid`]).
        name: Option<String>,
    },
    /// Sets columns of rows.
    Update {
        /// The table.
        table: String,
        /// The clauses that the rows meet.
        condition: Vec<Clause>,
        /// The columns to set.
        row: Columns,
    },
    /// Changes columns of rows relative to what they hold.
    Mutate {
        /// The table.
        table: String,
        /// The clauses that the rows meet.
        condition: Vec<Clause>,
        /// The changes.
        mutations: Vec<Mutation>,
    },
    /// Removes rows.
    Delete {
        /// The table.
        table: String,
        /// The clauses that the rows meet.
        condition: Vec<Clause>,
    },
    /// Waits until rows are, or are not, as given; the transaction fails if they do not become so in time.
    Wait {
        /// Timeout in milliseconds; 0 fails at once, `None` waits without end.
        timeout: Option<u64>,
        /// The table.
        table: String,
        /// The clauses that the rows meet.
        condition: Vec<Clause>,
        /// The columns to compare.
        columns: Vec<String>,
        /// True to wait until the rows equal `rows`, false until they do not.
        until_equal: bool,
        /// The rows to compare with.
        rows: Vec<Columns>,
    },
    /// Requires that the transaction is on disk before it succeeds.
    Commit {
        /// True if it has to be.
        durable: bool,
    },
    /// A note in the server's log.
    Comment {
        /// The note.
        text: String,
    },
    /// Aborts the transaction unless this client owns the lock.
    Assert {
        /// The lock.
        lock: String,
    },
}

impl Operation {
    /// The operation's name in the protocol.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Select { .. } => "select",
            Self::Insert { .. } => "insert",
            Self::Update { .. } => "update",
            Self::Mutate { .. } => "mutate",
            Self::Delete { .. } => "delete",
            Self::Wait { .. } => "wait",
            Self::Commit { .. } => "commit",
            Self::Comment { .. } => "comment",
            Self::Assert { .. } => "assert",
        }
    }

    /// Finds what a server would not take for JSON among the values.
    pub(crate) fn check(&self) -> Result<(), Unsendable> {
        let clauses = |condition: &[Clause]| condition.iter().try_for_each(|clause| clause.value.check());
        let columns = |row: &Columns| row.values().try_for_each(Value::check);
        match self {
            Self::Select { condition, .. } | Self::Delete { condition, .. } => clauses(condition),
            Self::Insert { row, .. } => columns(row),
            Self::Update { condition, row, .. } => clauses(condition).and_then(|()| columns(row)),
            Self::Mutate { condition, mutations, .. } => clauses(condition)
                .and_then(|()| mutations.iter().try_for_each(|mutation| mutation.value.check())),
            Self::Wait { condition, rows, .. } => {
                clauses(condition).and_then(|()| rows.iter().try_for_each(columns))
            }
            Self::Commit { .. } | Self::Comment { .. } | Self::Assert { .. } => Ok(()),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let mut json = match self {
            Self::Select { table, condition, columns } => {
                let mut json = json!({ "table": table, "where": clauses(condition) });
                if let Some(columns) = columns {
                    json["columns"] = json!(columns);
                }
                json
            }
            Self::Insert { table, row, name } => {
                let mut json = json!({ "table": table, "row": columns(row) });
                if let Some(name) = name {
                    json["uuid-name"] = json!(name);
                }
                json
            }
            Self::Update { table, condition, row } => {
                json!({ "table": table, "where": clauses(condition), "row": columns(row) })
            }
            Self::Mutate { table, condition, mutations } => {
                let mutations: Vec<_> =
                    mutations.iter().map(|m| json!([m.column, m.mutator.as_str(), m.value.json()])).collect();
                json!({ "table": table, "where": clauses(condition), "mutations": mutations })
            }
            Self::Delete { table, condition } => json!({ "table": table, "where": clauses(condition) }),
            Self::Wait { timeout, table, condition, columns: names, until_equal, rows } => {
                let mut json = json!({
                    "table": table,
                    "where": clauses(condition),
                    "columns": names,
                    "until": if *until_equal { "==" } else { "!=" },
                    "rows": rows.iter().map(columns).collect::<Vec<_>>(),
                });
                if let Some(timeout) = timeout {
                    json["timeout"] = json!(timeout);
                }
                json
            }
            Self::Commit { durable } => json!({ "durable": durable }),
            Self::Comment { text } => json!({ "comment": text }),
            Self::Assert { lock } => json!({ "lock": lock }),
        };
        json["op"] = json!(self.name());
        json
    }
}

fn clauses(condition: &[Clause]) -> serde_json::Value {
    condition.iter().map(Clause::json).collect()
}

fn columns(row: &Columns) -> serde_json::Value {
    row.iter().map(|(column, value)| (column.clone(), value.json())).collect()
}

/// Result of one operation.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct OperationResult {
    /// The rows that a `select` found.
    #[serde(default)]
    pub rows: Vec<Columns>,
    /// The number of rows that an `update`, `mutate` or `delete` was about.
    #[serde(default)]
    pub count: u64,
    /// The identity of the row that an `insert` made.
    #[serde(default, deserialize_with = "tagged_uuid")]
    pub uuid: Option<Uuid>,
}

fn tagged_uuid<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let (_tag, uuid) = <(String, Uuid)>::deserialize(deserializer)?;
    Ok(Some(uuid))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireResult {
    Failure {
        error: String,
        #[serde(default)]
        details: String,
    },
    Success(OperationResult),
}

/// Reads the result of `transact`: one element for each operation up to the first that failed, and one more if the
/// transaction failed as a whole when it was committed (RFC 7047, section 4.1.3).
pub(crate) fn read_results(
    operations: &[&'static str],
    result: &[u8],
) -> Result<Vec<OperationResult>, Error> {
    let results: Vec<Option<WireResult>> = serde_json::from_slice(result).map_err(Error::UnreadableReply)?;
    let (expected, found) = (operations.len(), results.len());
    let mut successes = Vec::with_capacity(operations.len());
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Some(WireResult::Failure { error, details }) => {
                let operation = operations.get(index).copied().unwrap_or("commit");
                return Err(Error::Transaction { index, operation, error, details });
            }
            Some(WireResult::Success(result)) => successes.push(result),
            None => successes.push(OperationResult::default()),
        }
    }
    if found != expected {
        return Err(Error::WrongNumberOfResults { expected, found });
    }
    Ok(successes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_as_the_rfc_writes_them() {
        let row = Columns::from([("name".into(), "a".into())]);
        let condition = vec![Clause::equal("name", "b")];
        let cases = [
            (
                Operation::Select {
                    table: "T".into(),
                    condition: vec![],
                    columns: Some(vec!["name".into()]),
                },
                json!({"op": "select", "table": "T", "where": [], "columns": ["name"]}),
            ),
            (
                Operation::Insert { table: "T".into(), row: row.clone(), name: Some("new".into()) },
                json!({"op": "insert", "table": "T", "row": {"name": "a"}, "uuid-name": "new"}),
            ),
            (
                Operation::Mutate {
                    table: "T".into(),
                    condition: condition.clone(),
                    mutations: vec![Mutation::new("ids", Mutator::Insert, vec!["x"])],
                },
                json!({"op": "mutate", "table": "T", "where": [["name", "==", "b"]],
                       "mutations": [["ids", "insert", ["set", ["x"]]]]}),
            ),
            (
                Operation::Wait {
                    timeout: Some(0),
                    table: "T".into(),
                    condition,
                    columns: vec!["name".into()],
                    until_equal: false,
                    rows: vec![row],
                },
                json!({"op": "wait", "timeout": 0, "table": "T", "where": [["name", "==", "b"]],
                       "columns": ["name"], "until": "!=", "rows": [{"name": "a"}]}),
            ),
            (Operation::Assert { lock: "l".into() }, json!({"op": "assert", "lock": "l"})),
        ];
        for (operation, expected) in cases {
            assert_eq!(operation.json(), expected);
        }
    }

    #[test]
    fn results_tell_which_operation_failed() {
        let uuid = Uuid::from_u128(3);
        let good = format!(r#"[{{"uuid":["uuid","{uuid}"]}},{{"count":2}},{{"rows":[{{"a":1}}]}},{{}}]"#);
        let results = read_results(&["insert", "update", "select", "comment"], good.as_bytes()).unwrap();
        assert_eq!((results[0].uuid, results[1].count, results[2].rows.len()), (Some(uuid), 2, 1));

        let second = br#"[{},{"error":"timed out","details":"d"},null]"#;
        let error = read_results(&["comment", "wait", "insert"], second).unwrap_err().to_string();
        assert_eq!(error, "operation 2 (wait) failed: timed out: d");
        for (results, found) in [("[{}]", 1), ("[]", 0), ("[{},{},{}]", 3)] {
            let error = read_results(&["comment", "insert"], results.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::WrongNumberOfResults { expected: 2, found: f } if f == found));
        }
        let commit = br#"[{},{"error":"constraint violation","details":"index"}]"#;
        let error = read_results(&["insert"], commit).unwrap_err().to_string();
        assert_eq!(error, "operation 2 (commit) failed: constraint violation: index");
    }
}
