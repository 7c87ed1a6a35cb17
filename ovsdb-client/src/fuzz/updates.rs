//! Updates in all three dialects, applied to a replica: what it tells is what it holds, whatever happens.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::replica::tests::apply_to;
use crate::replica::{Composites, Dialect, Replica};
use fuzz::{Random, fuzz};

crate::row! {
    struct Port in "Port" {
        name: String,
        tag: Option<i64>,
        peer: Option<Uuid>,
        labels: BTreeSet<String>,
        ids: BTreeMap<String, i64>,
    }
}

const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "null",
    "true",
    "\"set\"",
    "\"map\"",
    "\"uuid\"",
    "\"named-uuid\"",
    "\"insert\"",
    "\"modify\"",
    "\"delete\"",
    "\"initial\"",
    "\"old\"",
    "\"new\"",
    "\"Port\"",
    "\"name\"",
    "\"ids\"",
    "[\"set\",[]]",
    "[\"map\",[]]",
    "1e400",
    "-9223372036854775809",
    "18446744073709551616",
    "0.0",
    "\"\\u0000\\ud83d\"",
    "00000000-0000-0000-0000-000000000001",
];

#[test]
fn updates() {
    fuzz("updates::updates", |random| {
        let dialect = random.pick(&[Dialect::Monitor, Dialect::MonitorCond, Dialect::MonitorCondSince]);
        let mut replica = Replica::default();
        replica.add::<Port>();
        let composites: Composites = vec![HashSet::from(["labels", "ids"])];
        let mut told = BTreeMap::new();
        for _ in 0..1 + random.below(6) {
            let mut update = update(random, dialect).into_bytes();
            if random.once_in(2) {
                random.damage(&mut update, WORDS);
            }
            apply(&mut replica, &mut told, &update, random.once_in(4), dialect, &composites);
        }
        // Whatever was wrong, a complete dump puts it right.
        let dump =
            |kind| format!(r#"{{"Port":{{"{}":{{"{kind}":{{"name":"last"}}}}}}}}"#, Uuid::from_u128(1));
        let dump = dump(if dialect == Dialect::Monitor { "new" } else { "initial" });
        assert!(apply(&mut replica, &mut told, dump.as_bytes(), true, dialect, &composites));
        let last = Arc::new(Port { name: "last".to_owned(), ..Port::default() });
        assert_eq!(told, BTreeMap::from([(Uuid::from_u128(1), last)]));
    });
}

/// Applies an update to the replica, and the changes that it tells to `told`; both must come out the same.
fn apply(
    replica: &mut Replica,
    told: &mut BTreeMap<Uuid, Arc<Port>>,
    update: &[u8],
    complete: bool,
    dialect: Dialect,
    composites: &Composites,
) -> bool {
    let (batch, result) = apply_to(replica, update, complete, dialect, composites);
    for change in batch.of::<Port>() {
        let old = match &change.new {
            Some(new) => told.insert(change.uuid, Arc::clone(new)),
            None => told.remove(&change.uuid),
        };
        assert_eq!(old, change.old, "the old row is not the one that was told");
        assert_ne!(old, change.new, "a change of nothing");
    }
    let held = replica.table::<Port>().unwrap().iter();
    assert_eq!(*told, held.map(|(uuid, row)| (*uuid, Arc::clone(row))).collect());
    assert!(told.len() <= update.len() + 64, "more rows than were sent");
    if let Err(error) = &result {
        assert!(error.to_string().starts_with("the server "), "{error}");
    }
    result.is_ok()
}

fn update(random: &mut Random, dialect: Dialect) -> String {
    let mut rows = Vec::new();
    for _ in 0..random.below(4) {
        let change = match (dialect, random.below(4)) {
            (Dialect::Monitor, 0) => format!(r#"{{"old":{}}}"#, columns(random)),
            (Dialect::Monitor, 1) => format!(r#"{{"new":{}}}"#, columns(random)),
            (Dialect::Monitor, _) => format!(r#"{{"old":{},"new":{}}}"#, columns(random), columns(random)),
            (_, 0) => r#"{"delete":null}"#.to_owned(),
            (_, 1) => format!(r#"{{"insert":{}}}"#, columns(random)),
            (_, 2) => format!(r#"{{"initial":{}}}"#, columns(random)),
            _ => format!(r#"{{"modify":{}}}"#, columns(random)),
        };
        rows.push(format!(r#""{}":{change}"#, Uuid::from_u128(random.below(4) as u128)));
    }
    format!(r#"{{"Port":{{{}}},"Unknown":{{}}}}"#, rows.join(","))
}

fn columns(random: &mut Random) -> String {
    let mut columns = Vec::new();
    for _ in 0..random.below(5) {
        let (a, b) = (random.below(4), random.below(3));
        columns.push(match random.below(6) {
            0 => format!(r#""name":"n{a}""#),
            1 => format!(r#""tag":{}"#, random.pick(&["7", "[\"set\",[]]", "[\"set\",[-1]]"])),
            2 => format!(r#""peer":["uuid","{}"]"#, Uuid::from_u128(a as u128)),
            3 => format!(r#""labels":["set",["l{a}","l{b}"]]"#),
            4 => format!(r#""ids":["map",[["k{a}",{b}],["k{b}",1]]]"#),
            _ => format!(r#""later":{a}"#),
        });
    }
    format!("{{{}}}", columns.join(","))
}
