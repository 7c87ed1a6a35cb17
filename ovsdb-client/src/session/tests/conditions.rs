//! Conditions that change before, between and during connections.

use super::*;

#[test]
fn changes_of_conditions_go_one_at_a_time() {
    let mut peer = Peer::new(named("a"));
    peer.session.set_conditions(1, vec![named("b")]);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.fill(&monitor, "b", ID);
    assert_eq!(peer.generations(), [1], "what was wanted before is in force from the beginning");

    peer.session.set_conditions(2, vec![named("c")]);
    peer.session.set_conditions(3, vec![named("d")]);
    peer.session.set_conditions(4, vec![named("e")]);
    peer.collect();
    let first = peer.asked("monitor_cond_change");
    assert_eq!(first["params"], json!(["data", "data", { "Port": [{ "where": [["name", "==", "c"]] }] }]));
    assert!(peer.requests.is_empty());
    peer.answer(&first, json!({})).unwrap();
    let second = peer.asked("monitor_cond_change");
    assert_eq!(second["params"][2]["Port"][0]["where"], json!([["name", "==", "e"]]));
    peer.answer(&second, json!({})).unwrap();
    assert_eq!(peer.generations(), [1, 2, 4]);

    // There and back while nothing is on its way needs no request.
    peer.session.set_conditions(6, vec![named("e")]);
    peer.collect();
    assert!(peer.requests.is_empty());
    assert_eq!(peer.generations(), [1, 2, 4, 6]);
}

#[test]
fn a_change_of_conditions_half_done_is_not_resumed() {
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.fill(&monitor, "a", ID);
    peer.session.set_conditions(1, vec![named("b")]);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], NIL);
    peer.fill(&monitor, "b", LATER);
    assert_eq!(peer.generations(), [1]);

    // One that was not begun is: first from where the replica is, with what it was made of, then the change.
    peer.session.disconnected();
    peer.session.set_conditions(2, vec![named("c")]);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], LATER);
    assert_eq!(monitor["params"][2]["Port"][0]["where"], json!([["name", "==", "b"]]));
    peer.answer(&monitor, json!([true, LATER, {}])).unwrap();
    let change = peer.asked("monitor_cond_change");
    peer.answer(&change, json!({})).unwrap();
    assert_eq!(peer.generations(), [2]);
}

#[test]
fn refused_conditions_cost_neither_the_connection_nor_the_next_one() {
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.fill(&monitor, "a", ID);
    peer.session.set_conditions(1, vec![named("b")]);
    peer.collect();
    let change = peer.asked("monitor_cond_change");
    peer.refuse(&change, json!("syntax error")).unwrap();
    assert!(matches!(
        peer.events.last(),
        Some(SessionEvent::ConditionRefused { generation: 1, error }) if error == "syntax error"
    ));
    assert!(peer.requests.is_empty());

    // The next connection begins with what was in force, completely, and tries again.
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], NIL);
    peer.fill(&monitor, "a", ID);
    let change = peer.asked("monitor_cond_change");
    peer.refuse(&change, json!("syntax error")).unwrap();
    // Back to those before: the server may have taken a part of the others, so that they are sent.
    peer.session.set_conditions(2, vec![named("a")]);
    peer.collect();
    let change = peer.asked("monitor_cond_change");
    assert_eq!(change["params"][2]["Port"][0]["where"], json!([["name", "==", "a"]]));
    peer.answer(&change, json!({})).unwrap();
    assert_eq!(peer.generations(), [2]);
}

#[test]
fn a_clause_that_does_not_fit_is_left_out_and_told() {
    let mut peer = Peer::new(Conditions::any_of([Clause::equal("name", "a"), Clause::equal("name", 5)]));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    assert!(matches!(
        peer.events.last(),
        Some(SessionEvent::ClauseLeftOut { table: "Port", column, problem })
            if column == "name" && problem == "5 does not fit it, which is of type string"
    ));
    peer.fill(&monitor, "a", ID);
}
