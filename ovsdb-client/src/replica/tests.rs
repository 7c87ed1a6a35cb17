//! Updates in every wording, and what they make of the tables.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::message::Payload;

crate::row! {
    struct Port in "Port" {
        name: String,
        tag: Option<i64>,
        labels: BTreeSet<String>,
        ids: BTreeMap<String, i64>,
    }
}

crate::row! {
    struct Other in "Other" {
        number: i64,
    }
}

/// Applies an update as a client does that nothing else has to wait for.
pub(crate) fn apply_to(
    replica: &mut Replica,
    updates: &[u8],
    complete: bool,
    dialect: Dialect,
    composites: &Composites,
) -> (Batch, Result<(), ApplyError>) {
    let payload = Payload::new(updates.to_vec(), 0..updates.len());
    let mut applying = Applying::new(payload, complete, dialect, Arc::new(composites.clone()));
    loop {
        if let Some(applied) = applying.step(replica) {
            return applied;
        }
    }
}

const ONE: Uuid = Uuid::from_u128(1);
const TWO: Uuid = Uuid::from_u128(2);

fn replica() -> (Replica, Composites) {
    let mut replica = Replica::default();
    replica.add::<Port>();
    replica.add::<Other>();
    (replica, vec![HashSet::from(["labels", "ids"]), HashSet::new()])
}

fn port(name: &str, tag: Option<i64>, labels: &[&str], ids: &[(&str, i64)]) -> Port {
    Port {
        name: name.into(),
        tag,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ids: ids.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect(),
    }
}

type Told = (Uuid, Option<Port>, Option<Port>);

/// Applies an update of `Port` and gives the changes as (uuid, old, new).
fn apply(
    replica: &mut (Replica, Composites),
    rows: serde_json::Value,
    complete: bool,
    dialect: Dialect,
) -> Result<Vec<Told>, String> {
    let updates = json!({ "Port": rows, "Unknown": { ONE.to_string(): { "insert": {} } } }).to_string();
    let (batch, result) = apply_to(&mut replica.0, updates.as_bytes(), complete, dialect, &replica.1);
    result.map_err(|error| error.to_string())?;
    let row = |row: &Option<Arc<Port>>| row.as_deref().cloned();
    let mut changes: Vec<_> =
        batch.of::<Port>().iter().map(|change| (change.uuid, row(&change.old), row(&change.new))).collect();
    changes.sort_by_key(|change| change.0);
    Ok(changes)
}

#[test]
fn update2_carries_differences() {
    let mut replica = replica();
    let dialect = Dialect::MonitorCondSince;
    let first = port("a", Some(1), &["x", "y"], &[("k", 1), ("l", 2)]);
    let row =
        json!({ "name": "a", "tag": 1, "labels": ["set", ["x", "y"]], "ids": ["map", [["k", 1], ["l", 2]]] });
    let changes = apply(&mut replica, json!({ ONE.to_string(): { "initial": row } }), true, dialect);
    assert_eq!(changes.unwrap(), [(ONE, None, Some(first.clone()))]);

    let difference =
        json!({ "tag": ["set", []], "labels": "y", "ids": ["map", [["k", 1], ["l", 3], ["m", 4]]] });
    let second = port("a", None, &["x"], &[("l", 3), ("m", 4)]);
    let changes = apply(&mut replica, json!({ ONE.to_string(): { "modify": difference } }), false, dialect);
    assert_eq!(changes.unwrap(), [(ONE, Some(first), Some(second.clone()))]);

    // New rows leave out what has its default value; the unknown column is of a newer server.
    let new = json!({ "name": "b", "unknown": ["map", []] });
    let rows = json!({ ONE.to_string(): { "delete": null }, TWO.to_string(): { "insert": new } });
    let changes = apply(&mut replica, rows, false, dialect).unwrap();
    assert_eq!(changes, [(ONE, Some(second), None), (TWO, None, Some(port("b", None, &[], &[])))]);
    assert_eq!(replica.0.table::<Port>().unwrap().len(), 1);
}

#[test]
fn update_carries_whole_rows() {
    let mut replica = replica();
    let full = |name: &str, tag: serde_json::Value, labels: serde_json::Value| json!({ "name": name, "tag": tag, "labels": labels, "ids": ["map", []] });
    let first = json!({ ONE.to_string(): { "new": full("a", json!(5), json!(["set", ["x", "y"]])) } });
    apply(&mut replica, first, true, Dialect::Monitor).unwrap();
    let change = json!({ ONE.to_string(): {
        "old": { "tag": 5, "labels": ["set", ["x", "y"]] },
        "new": full("a", json!(["set", []]), json!("y")),
    } });
    let changes = apply(&mut replica, change, false, Dialect::Monitor).unwrap();
    let (old, new) = (port("a", Some(5), &["x", "y"], &[]), port("a", None, &["y"], &[]));
    assert_eq!(changes, [(ONE, Some(old), Some(new.clone()))]);
    let gone = json!({ ONE.to_string(): { "old": full("a", json!(["set", []]), json!("y")) } });
    assert_eq!(apply(&mut replica, gone, false, Dialect::Monitor).unwrap(), [(ONE, Some(new), None)]);
}

#[test]
fn a_complete_dump_is_told_as_differences() {
    let mut replica = replica();
    let dialect = Dialect::MonitorCond;
    let rows = json!({
        ONE.to_string(): { "initial": { "name": "a" } },
        TWO.to_string(): { "initial": { "name": "b" } },
    });
    apply(&mut replica, rows, true, dialect).unwrap();
    let rows = json!({ TWO.to_string(): { "initial": { "name": "b" } } });
    let changes = apply(&mut replica, rows.clone(), true, dialect).unwrap();
    assert_eq!(changes, [(ONE, Some(port("a", None, &[], &[])), None)]);
    assert!(apply(&mut replica, rows, true, dialect).unwrap().is_empty());

    // A table without rows is not in the dump at all.
    let (batch, result) = apply_to(&mut replica.0, b"{}", true, dialect, &replica.1);
    assert!(result.is_ok());
    assert_eq!((batch.of::<Port>().len(), batch.of::<Other>().len()), (1, 0));
}

#[test]
fn a_row_that_arrives_twice_is_told_once() {
    let mut replica = replica();
    let row = |name: &str| json!({ ONE.to_string(): { "insert": { "name": name } } });
    assert_eq!(apply(&mut replica, row("a"), false, Dialect::MonitorCond).unwrap().len(), 1);
    assert!(apply(&mut replica, row("a"), false, Dialect::MonitorCond).unwrap().is_empty());
    let changes = apply(&mut replica, row("b"), false, Dialect::MonitorCond).unwrap();
    assert_eq!(changes, [(ONE, Some(port("a", None, &[], &[])), Some(port("b", None, &[], &[])))]);
    assert!(
        apply(&mut replica, json!({ TWO.to_string(): { "delete": null } }), false, Dialect::MonitorCond)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn an_error_keeps_what_was_applied() {
    let (mut replica, composites) = replica();
    let updates =
        format!(r#"{{"Port":{{"{ONE}":{{"insert":{{"name":"a"}}}},"{TWO}":{{"modify":{{"tag":1}}}}}}}}"#);
    let (batch, result) =
        apply_to(&mut replica, updates.as_bytes(), false, Dialect::MonitorCond, &composites);
    assert_eq!(
        result.unwrap_err().to_string(),
        format!("the server changed row {TWO} of table Port, which it never sent")
    );
    assert_eq!(batch.of::<Port>().len(), 1);

    for (text, expected) in [
        (r#"{"Port":{"zz":{}}}"#, "table Port"),
        (r#"{"Port":{"00000000-0000-0000-0000-000000000003":{"insert":{"tag":"x"}}}}"#, "type integer"),
        (r#"{"Port":{"00000000-0000-0000-0000-000000000003":{"upsert":{}}}}"#, "upsert"),
        (r#"{"Port":[]}"#, "rows by UUID"),
        ("[]", "cannot be read"),
    ] {
        let (batch, result) =
            apply_to(&mut replica, text.as_bytes(), true, Dialect::MonitorCond, &composites);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected) && batch.is_empty(), "{text}: {error}");
    }
    assert_eq!(replica.table::<Port>().unwrap().len(), 1, "a dump that cannot be read deletes nothing");
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let word = prop_oneof![
        Just("set"),
        Just("map"),
        Just("uuid"),
        Just("insert"),
        Just("modify"),
        Just("name"),
        Just("x")
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        word.clone().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 40, 5, move |inner| {
        let key = prop_oneof![
            word.clone().prop_map(str::to_owned),
            Just(ONE.to_string()),
            Just("labels".to_owned())
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            (word.clone(), prop::collection::vec(inner.clone(), 0..3))
                .prop_map(|(tag, list)| json!([tag, list])),
            prop::collection::btree_map(key, inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn no_update_panics(rows in json_value(), complete: bool, dialect in 0..3) {
        let dialect = [Dialect::Monitor, Dialect::MonitorCond, Dialect::MonitorCondSince][dialect as usize];
        let mut replica = replica();
        let _ = apply(&mut replica, json!({ ONE.to_string(): { "insert": { "labels": rows.clone() } } }), complete, dialect);
        let _ = apply(&mut replica, json!({ ONE.to_string(): { "modify": rows.clone() } }), complete, dialect);
        let _ = apply(&mut replica, rows, complete, dialect);
    }

    #[test]
    fn differences_lead_from_any_set_to_any_other(old: BTreeSet<i64>, new: BTreeSet<i64>) {
        use crate::datum::Datum;
        let mut set = old.clone();
        set.apply_difference(old.symmetric_difference(&new).copied().collect());
        prop_assert_eq!(set, new);
    }
}
