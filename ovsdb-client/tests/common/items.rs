//! The database that tests fill: its schema, its rows, and what is done to them.
use std::collections::{BTreeMap, BTreeSet};

use ovsdb_client::{Atom, Clause, Columns, Error, Handle, Operation, Uuid, Value};

/// A database for tests: every kind of column, and two that a "newer" schema would have.
pub const SCHEMA: &str = r#"{
  "name": "Inventory", "version": "1.0.0",
  "tables": {
    "Item": { "isRoot": true, "indexes": [["name"]], "columns": {
      "name": {"type": "string"},
      "count": {"type": "integer"},
      "price": {"type": "real"},
      "up": {"type": {"key": "boolean", "min": 0, "max": 1}},
      "tag": {"type": {"key": "integer", "min": 0, "max": 1}},
      "peer": {"type": {"key": {"type": "uuid", "refTable": "Item", "refType": "weak"}, "min": 0, "max": 1}},
      "labels": {"type": {"key": "string", "min": 0, "max": "unlimited"}},
      "peers": {"type": {"key": {"type": "uuid", "refTable": "Item", "refType": "weak"}, "min": 0, "max": "unlimited"}},
      "ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}}
    } },
    "Global": { "isRoot": true, "maxRows": 1, "columns": { "number": {"type": "integer"} } }
  }
}"#;

ovsdb_client::row! {
    pub struct Item in "Item" {
        name: String,
        count: i64,
        price: f64,
        up: Option<bool>,
        tag: Option<i64>,
        peer: Option<Uuid>,
        labels: BTreeSet<String>,
        peers: BTreeSet<Uuid>,
        ids: BTreeMap<String, String>,
        later: Option<String> as optional,
    }
}

ovsdb_client::row! {
    pub struct Global in "Global" {
        number: i64,
    }
}

pub fn insert(name: &str) -> Operation {
    insert_row(Columns::from([("name".into(), name.into())]))
}

pub fn insert_row(row: Columns) -> Operation {
    Operation::Insert { table: "Item".into(), row, name: None }
}

pub fn delete(name: &str) -> Operation {
    Operation::Delete { table: "Item".into(), condition: named(name) }
}

pub fn update(name: &str, column: &str, value: impl Into<Value>) -> Operation {
    Operation::Update {
        table: "Item".into(),
        condition: named(name),
        row: Columns::from([(column.into(), value.into())]),
    }
}

pub fn named(name: &str) -> Vec<Clause> {
    vec![Clause::equal("name", name)]
}

/// The rows of `Item` as the server of `handle` holds them, read without any monitor.
pub async fn select_items(handle: &Handle) -> BTreeMap<Uuid, Item> {
    select_items_if(handle, vec![]).await.unwrap()
}

/// The same in one transaction with `conditions` that have to hold.
pub async fn select_items_if(
    handle: &Handle,
    conditions: Vec<Operation>,
) -> Result<BTreeMap<Uuid, Item>, Error> {
    let select = Operation::Select { table: "Item".into(), condition: vec![], columns: None };
    let results = handle.transact([conditions, vec![select]].concat()).await?;
    Ok(results.last().unwrap().rows.iter().map(item_of).collect())
}

fn item_of(row: &Columns) -> (Uuid, Item) {
    let atoms = |column: &str| match &row[column] {
        Value::Atom(atom) => vec![atom.clone()],
        Value::Set(atoms) => atoms.clone(),
        Value::Map(_) => panic!("{column} is a map"),
    };
    let uuids = |column: &str| -> BTreeSet<Uuid> {
        let uuid = |atom| if let Atom::Uuid(uuid) = atom { uuid } else { panic!("{atom:?}") };
        atoms(column).into_iter().map(uuid).collect()
    };
    let strings = |column: &str| -> BTreeSet<String> {
        let text = |atom| if let Atom::String(text) = atom { text } else { panic!("{atom:?}") };
        atoms(column).into_iter().map(text).collect()
    };
    let integer = |atom: &Atom| if let Atom::Integer(value) = atom { *value } else { panic!("{atom:?}") };
    let price = match atoms("price")[0] {
        Atom::Real(value) => value,
        Atom::Integer(value) => value as f64,
        ref other => panic!("{other:?}"),
    };
    let ids = match &row["ids"] {
        Value::Map(pairs) => pairs.iter().map(|pair| match pair {
            (Atom::String(key), Atom::String(value)) => (key.clone(), value.clone()),
            other => panic!("{other:?}"),
        }),
        other => panic!("{other:?}"),
    };
    let item = Item {
        name: strings("name").into_iter().next().unwrap(),
        count: integer(&atoms("count")[0]),
        price,
        up: atoms("up").first().map(|atom| *atom == Atom::Boolean(true)),
        tag: atoms("tag").first().map(integer),
        peer: uuids("peer").into_iter().next(),
        labels: strings("labels"),
        peers: uuids("peers"),
        ids: ids.collect(),
        later: None,
    };
    (uuids("_uuid").into_iter().next().unwrap(), item)
}
