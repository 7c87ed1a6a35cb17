//! Conversations with a server, message by message.

mod conditions;
mod filling;
mod greeting;
mod lock;
mod log;
mod pause;
mod probe;
mod turn;

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::*;
use crate::condition::Clause;
use crate::replica::Dialect;
use crate::row::Row;

crate::row! {
    struct Port in "Port" {
        name: String,
        tags: std::collections::BTreeSet<i64>,
        up: Option<bool> as optional,
    }
}

const PROBE: Duration = Duration::from_secs(60);
const GREETING: Duration = Duration::from_secs(10);

/// A session and the server's side of its conversation.
struct Peer {
    session: Session,
    now: Instant,
    requests: VecDeque<Value>,
    events: Vec<SessionEvent>,
}

impl Peer {
    fn new(conditions: Conditions) -> Self {
        let tables =
            vec![TableSpec { name: Port::TABLE, columns: Port::COLUMNS, optional: false, conditions }];
        let config = SessionConfig {
            database: "DB".into(),
            tables,
            probe_interval: PROBE,
            greeting_timeout: GREETING,
            deferred_limit: 1000,
            servers: 3,
            leader_only: false,
            turns: None,
        };
        Self {
            session: Session::new(config, SharedTally::default()),
            now: Instant::now(),
            requests: VecDeque::new(),
            events: Vec::new(),
        }
    }

    fn collect(&mut self) {
        while let Some(transmit) = self.session.poll_transmit() {
            let message: Value = serde_json::from_slice(&transmit.message).unwrap();
            assert_eq!(transmit.is_answer, message.get("method").is_none());
            self.requests.push_back(message);
        }
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
    }

    fn say(&mut self, message: Value) -> Result<(), Hangup> {
        let result = self.session.receive(self.now, message.to_string().into_bytes());
        self.collect();
        result
    }

    /// The next request, which has to be for `method`.
    fn asked(&mut self, method: &str) -> Value {
        let request = self.requests.pop_front().unwrap_or_else(|| panic!("nothing was asked, not {method}"));
        assert_eq!(request["method"], method, "{request}");
        request
    }

    fn answer(&mut self, request: &Value, result: Value) -> Result<(), Hangup> {
        self.say(json!({ "id": request["id"], "error": null, "result": result }))
    }

    fn refuse(&mut self, request: &Value, error: Value) -> Result<(), Hangup> {
        self.say(json!({ "id": request["id"], "error": error, "result": null }))
    }

    /// Connects and answers everything before the monitor request.
    fn greet(&mut self, status: Value, schema: Value) -> Result<(), Hangup> {
        self.session.connected(self.now);
        self.requests.clear();
        self.events.clear();
        self.collect();
        let aware = self.asked("set_db_change_aware");
        self.answer(&aware, json!({}))?;
        let monitor = self.asked("monitor_cond");
        assert_eq!(monitor["params"][2]["Database"][0]["where"], json!([["name", "==", "DB"]]));
        self.answer(
            &monitor,
            json!({ "Database": { "9d7a6d23-0000-0000-0000-000000000001": { "initial": status } } }),
        )?;
        let log_end = self.asked("transact");
        self.answer(&log_end, json!([{ "rows": [{ "cid": ["set", []], "index": ["set", []] }] }]))?;
        let get_schema = self.asked("get_schema");
        self.answer(&get_schema, schema)
    }

    fn greet_well(&mut self) {
        self.greet(healthy(), schema()).unwrap();
    }

    /// Answers the request for contents without rows, and the conditions that bring those named `name`.
    fn fill(&mut self, monitor: &Value, name: &str, transaction: &str) {
        let table = &monitor["params"][2]["Port"][0];
        assert_eq!((&table["where"], &table["select"]), (&json!([false]), &json!({ "initial": false })));
        self.answer(monitor, json!([false, transaction, {}])).unwrap();
        let change = self.asked("monitor_cond_change");
        let conditions = json!({ "Port": [{ "where": [["name", "==", name]] }] });
        assert_eq!(change["params"], json!(["data", "data", conditions]));
        self.answer(&change, json!({})).unwrap();
    }

    fn generations(&self) -> Vec<u64> {
        let generation = |event: &SessionEvent| match event {
            SessionEvent::ConditionInForce(generation) => Some(*generation),
            _ => None,
        };
        self.events.iter().filter_map(generation).collect()
    }
}

fn healthy() -> Value {
    json!({ "name": "DB", "model": "clustered", "connected": true, "leader": false })
}

fn schema() -> Value {
    let columns = json!({
        "name": { "type": "string" },
        "tags": { "type": { "key": "integer", "min": 0, "max": "unlimited" } },
    });
    json!({ "name": "DB", "version": "1.2.3", "tables": { "Port": { "columns": columns } } })
}

fn named(name: &str) -> Conditions {
    Conditions::any_of([Clause::equal("name", name)])
}

const ID: &str = "00000000-0000-0000-0000-0000000000aa";
const LATER: &str = "00000000-0000-0000-0000-0000000000bb";
const NIL: &str = "00000000-0000-0000-0000-000000000000";

#[test]
fn monitoring_resumes_at_the_last_transaction() {
    let mut peer = Peer::new(Conditions::All);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(
        monitor["params"],
        json!(["DB", "data", {"Port": [{"columns": ["name", "tags"], "where": [true]}]}, NIL])
    );
    peer.answer(&monitor, json!([false, ID, {}])).unwrap();
    assert!(matches!(
        &peer.events[..],
        [SessionEvent::Ready, SessionEvent::Contents { complete: true, composites, .. }]
            if composites[0].contains("tags") && !composites[0].contains("name")
    ));
    peer.say(json!({ "id": null, "method": "update3", "params": ["data", LATER, { "Port": {} }] })).unwrap();
    assert!(
        matches!(peer.events.last(), Some(SessionEvent::Update { updates, .. }) if updates.as_bytes() == br#"{"Port":{}}"#)
    );

    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], LATER);
    peer.answer(&monitor, json!([true, LATER, {}])).unwrap();
    assert!(matches!(peer.events[1], SessionEvent::Contents { complete: false, .. }));

    peer.session.forget();
    peer.greet_well();
    assert_eq!(peer.asked("monitor_cond_since")["params"][3], NIL);
}

#[test]
fn older_servers_are_asked_in_their_own_words() {
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let since = peer.asked("monitor_cond_since");
    peer.refuse(&since, json!("unknown method")).unwrap();
    let cond = peer.asked("monitor_cond");
    assert_eq!(cond["params"][2]["Port"][0]["where"], json!([["name", "==", "a"]]));
    peer.refuse(&cond, json!({ "error": "unknown method", "details": "monitor_cond" })).unwrap();
    let monitor = peer.asked("monitor");
    assert_eq!(monitor["params"], json!(["DB", "data", { "Port": [{ "columns": ["name", "tags"] }] }]));
    peer.answer(&monitor, json!({ "Port": {} })).unwrap();
    assert!(matches!(
        peer.events[1],
        SessionEvent::Contents { complete: true, dialect: Dialect::Monitor, .. }
    ));

    // There are no conditions to change: what is wanted is there.
    peer.session.set_conditions(1, vec![named("b")]);
    peer.collect();
    assert!(peer.requests.is_empty());
    assert_eq!(peer.generations(), [1]);
}

#[test]
fn a_refusal_is_not_a_missing_method() {
    let mut peer = Peer::new(Conditions::All);
    peer.greet_well();
    let since = peer.asked("monitor_cond_since");
    let error =
        peer.refuse(&since, json!({ "error": "syntax error", "details": "no column x" })).unwrap_err();
    assert_eq!(error.to_string(), "the server refused monitor_cond_since: syntax error: no column x");
}

#[test]
fn servers_without_a_server_database_will_do() {
    let mut peer = Peer::new(Conditions::All);
    peer.session.connected(peer.now);
    peer.collect();
    for method in ["set_db_change_aware", "monitor_cond", "transact"] {
        let request = peer.asked(method);
        peer.refuse(&request, json!("unknown database")).unwrap();
    }
    let get_schema = peer.asked("get_schema");
    peer.answer(&get_schema, schema()).unwrap();
    peer.asked("monitor_cond_since");
}

#[test]
fn updates_that_overtake_the_answer_come_after_it() {
    let mut peer = Peer::new(Conditions::All);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.say(json!({ "id": null, "method": "update3", "params": ["data", LATER, { "Port": { "x": 1 } }] }))
        .unwrap();
    assert!(peer.events.is_empty());
    peer.answer(&monitor, json!([false, ID, {}])).unwrap();
    assert!(matches!(
        &peer.events[..],
        [SessionEvent::Ready, SessionEvent::Contents { .. }, SessionEvent::Update { .. }]
    ));
    peer.greet_well();
    assert_eq!(peer.asked("monitor_cond_since")["params"][3], LATER);
}

#[test]
fn useless_servers_are_left() {
    let missing = json!({ "name": "DB", "version": "1", "tables": {} });
    let mut no_column = schema();
    no_column["tables"]["Port"]["columns"].as_object_mut().unwrap().remove("tags");
    let mut wrong_type = schema();
    wrong_type["tables"]["Port"]["columns"]["name"]["type"] =
        json!({ "key": "string", "min": 0, "max": "unlimited" });
    let cut_off = json!({ "model": "clustered", "connected": false });
    let cases = [
        (cut_off, schema(), "the server has lost its connection to the clustered database"),
        (healthy(), missing, "database DB 1 of the server has no table Port"),
        (healthy(), no_column, "table Port of the server's database DB 1.2.3 has no column tags"),
        (
            healthy(),
            wrong_type,
            "column name of table Port is of type set of string in the server's schema 1.2.3, not string",
        ),
    ];
    for (status, schema, expected) in cases {
        let mut peer = Peer::new(Conditions::All);
        assert_eq!(peer.greet(status, schema).unwrap_err().to_string(), expected);
    }
    let mut peer = Peer::new(Conditions::All);
    peer.session.config.leader_only = true;
    assert!(matches!(peer.greet(healthy(), schema()), Err(Hangup::NotLeader)));
}

#[test]
fn an_unknown_type_matters_to_those_that_monitor_it() {
    let mut newer = schema();
    newer["tables"]["Price"] = json!({ "columns": { "price": { "type": { "key": "decimal", "min": 0 } } } });
    newer["tables"]["Port"]["columns"]["price"] = json!({ "type": "decimal" });
    let mut peer = Peer::new(Conditions::All);
    peer.greet(healthy(), newer.clone()).unwrap();
    peer.asked("monitor_cond_since");
    newer["tables"]["Port"]["columns"]["name"]["type"] = json!("decimal");
    assert_eq!(
        peer.greet(healthy(), newer).unwrap_err().to_string(),
        "column name of table Port is of type unknown in the server's schema 1.2.3, not string"
    );
}

#[test]
fn a_server_that_falls_out_of_use_is_left() {
    let mut peer = Peer::new(Conditions::All);
    peer.greet_well();
    let change = |row: Value| json!({ "id": null, "method": "update2", "params": ["server", { "Database": { ID: row } }] });
    peer.say(change(json!({ "modify": { "leader": true } }))).unwrap();
    assert!(matches!(
        peer.say(change(json!({ "modify": { "connected": false } }))),
        Err(Hangup::CutOff { .. })
    ));
    peer.greet_well();
    assert!(matches!(peer.say(change(json!({ "delete": null }))), Err(Hangup::Canceled)));
    peer.greet_well();
    assert!(matches!(
        peer.say(json!({ "id": null, "method": "monitor_canceled", "params": ["data"] })),
        Err(Hangup::Canceled)
    ));
}

#[test]
fn a_schema_with_new_columns_begins_anew() {
    let mut peer = Peer::new(Conditions::All);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.answer(&monitor, json!([false, ID, {}])).unwrap();
    let mut newer = schema();
    newer["tables"]["Port"]["columns"]["up"] = json!({ "type": { "key": "boolean", "min": 0, "max": 1 } });
    peer.greet(healthy(), newer).unwrap();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][2]["Port"][0]["columns"], json!(["name", "tags", "up"]));
    assert_eq!(monitor["params"][3], NIL);
}

#[test]
fn requests_without_an_answer_fail_with_the_connection() {
    let mut peer = Peer::new(Conditions::All);
    assert!(matches!(peer.session.request("transact", &json!([])), Err(Error::NotConnected)));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.answer(&monitor, json!([false, ID, {}])).unwrap();
    let id = peer.session.request("transact", &json!(["DB"])).unwrap();
    peer.events.clear();
    peer.session.disconnected();
    peer.collect();
    assert!(matches!(
        &peer.events[..],
        [SessionEvent::Reply { id: answered, result: Err(Error::Interrupted) }] if *answered == id
    ));
}

#[test]
fn what_is_not_json_rpc_ends_the_connection() {
    let mut peer = Peer::new(Conditions::All);
    for text in ["{\"id\":}", "{\"method\":5}", "{\"method\":\"update3\",\"params\":[1]}"] {
        assert!(peer.session.receive(peer.now, text.into()).is_err(), "{text}");
    }
    for text in ["{}", "{\"id\":99,\"result\":1}", "{\"method\":\"update2\",\"params\":[\"other\",{}]}"] {
        assert!(peer.session.receive(peer.now, text.into()).is_ok(), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_message_panics(
        method in "(update[23]?|monitor_canceled|locked|echo|x)",
        params in "\\[(\"data\"|\"server\"|1|\\[\\]|\\{\\}|null|,){0,5}\\]|\\{\\}|.{0,5}",
        result in "(null|1|\\[(true|false|,|\\{\\}|\"00000000-0000-0000-0000-000000000000\"){0,5}\\]|\\{\\}|.{0,5})",
        order in proptest::collection::vec(0..12u64, 0..12),
    ) {
        let mut peer = Peer::new(Conditions::All);
        peer.session.connected(peer.now);
        for id in order {
            let reply = format!(r#"{{"id":{id},"result":{result},"error":null}}"#);
            let call = format!(r#"{{"id":null,"method":"{method}","params":{params}}}"#);
            peer.session.set_paused(id % 3 == 0);
            for message in [reply, call] {
                if peer.session.receive(peer.now, message.into_bytes()).is_err() {
                    peer.session.connected(peer.now);
                }
            }
            peer.collect();
        }
    }
}
