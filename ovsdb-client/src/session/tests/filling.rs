//! Contents in two parts: what every client gets, and what conditions bring.

use super::*;

const ROW: &str = "00000000-0000-0000-0000-000000000011";
const OTHER: &str = "00000000-0000-0000-0000-000000000022";

fn update(transaction: &str, tables: Value) -> Value {
    json!({ "id": null, "method": "update3", "params": ["data", transaction, tables] })
}

/// The contents, as JSON, and whether they are complete.
fn contents(peer: &Peer) -> Vec<(Value, bool)> {
    let contents = |event: &SessionEvent| match event {
        SessionEvent::Contents { updates, complete, .. } => {
            Some((serde_json::from_slice(updates.as_bytes()).unwrap(), *complete))
        }
        _ => None,
    };
    peer.events.iter().filter_map(contents).collect()
}

#[test]
fn rows_that_conditions_bring_are_part_of_the_contents() {
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.answer(&monitor, json!([false, ID, { "Other": { OTHER: { "initial": {} } } }])).unwrap();
    let change = peer.asked("monitor_cond_change");
    // What is no part of it follows.
    peer.say(update(ID, json!({ "Other": { OTHER: { "delete": null } } }))).unwrap();
    let rows = json!({ ROW: { "insert": { "name": "a" } } });
    peer.say(update(LATER, json!({ "Port": rows }))).unwrap();
    assert!(!peer.session.is_ready() && peer.events.is_empty(), "{:?}", peer.events);
    peer.answer(&change, json!({})).unwrap();
    let both = json!({ "Port": rows, "Other": { OTHER: { "initial": {} } } });
    assert_eq!(contents(&peer), [(both, true)]);
    assert!(matches!(peer.events.last(), Some(SessionEvent::Update { .. })), "{:?}", peer.events);

    // The next connection resumes behind them.
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], LATER);
    assert_eq!(monitor["params"][2]["Port"][0]["where"], json!([["name", "==", "a"]]));
}

#[test]
fn a_server_that_cannot_resume_is_asked_anew() {
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.fill(&monitor, "a", ID);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], ID);
    peer.answer(&monitor, json!([false, LATER, {}])).unwrap();
    let cancel = peer.asked("monitor_cancel");
    // That monitor has the conditions, and what it says is about rows that never came.
    peer.say(update(LATER, json!({ "Port": { ROW: { "modify": { "name": "b" } } } }))).unwrap();
    peer.answer(&cancel, json!({})).unwrap();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], NIL);
    peer.fill(&monitor, "a", LATER);
    assert_eq!(contents(&peer), [(json!({}), true)]);
    assert!(!peer.events.iter().any(|event| matches!(event, SessionEvent::Update { .. })));
}

#[test]
fn what_breaks_off_half_way_is_begun_anew() {
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.answer(&monitor, json!([false, ID, {}])).unwrap();
    peer.asked("monitor_cond_change");
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], NIL);
    peer.fill(&monitor, "a", ID);
    assert_eq!(contents(&peer), [(json!({}), true)]);
}

#[test]
fn older_servers_send_everything_in_one_answer() {
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.refuse(&monitor, json!("unknown method")).unwrap();
    let monitor = peer.asked("monitor_cond");
    assert_eq!(
        monitor["params"][2]["Port"][0],
        json!({ "columns": ["name", "tags"], "where": [["name", "==", "a"]] })
    );
    peer.answer(&monitor, json!({})).unwrap();
    assert_eq!(contents(&peer), [(json!({}), true)]);
}
