//! Turns: what waits for them, and when they end.

use super::*;

const PATIENCE: Duration = Duration::from_secs(100);

fn peer() -> Peer {
    let mut peer = Peer::new(named("a"));
    peer.session.config.turns = Some(TurnConfig { lock: "turn".into(), patience: PATIENCE });
    peer.greet_well();
    peer
}

fn after(peer: &mut Peer, time: Duration) {
    peer.now += time;
    peer.session.handle_timeout(peer.now).unwrap();
    peer.collect();
}

/// Asks for a lock, and answers.
fn locked(peer: &mut Peer, locked: bool) {
    let lock = peer.asked("lock");
    assert_eq!(lock["params"], json!(["turn"]));
    peer.answer(&lock, json!({ "locked": locked })).unwrap();
}

#[test]
fn contents_wait_for_their_turn_and_leave_as_much_time_to_others() {
    let mut peer = peer();
    locked(&mut peer, false);
    assert!(peer.requests.is_empty());
    // Others take their time: no server is left for that.
    after(&mut peer, 3 * GREETING);
    assert!(peer.requests.is_empty());
    peer.say(json!({ "id": null, "method": "locked", "params": ["turn"] })).unwrap();
    let monitor = peer.asked("monitor_cond_since");
    peer.now += Duration::from_secs(2);
    peer.fill(&monitor, "a", ID);
    assert!(peer.requests.is_empty());
    after(&mut peer, Duration::from_millis(1999));
    assert!(peer.requests.is_empty());
    after(&mut peer, Duration::from_millis(1));
    assert_eq!(peer.asked("unlock")["params"], json!(["turn"]));
    assert!(!peer.events.iter().any(|event| matches!(event, SessionEvent::Lock { .. })), "{:?}", peer.events);
}

#[test]
fn changes_of_conditions_wait_too() {
    let mut peer = peer();
    locked(&mut peer, true);
    let monitor = peer.asked("monitor_cond_since");
    peer.now += Duration::from_secs(2);
    peer.fill(&monitor, "a", ID);
    // As long as the turn is not given up, it is still there.
    peer.session.set_conditions(1, vec![named("b")]);
    peer.collect();
    let change = peer.asked("monitor_cond_change");
    peer.answer(&change, json!({})).unwrap();
    after(&mut peer, Duration::from_millis(1));
    peer.asked("unlock");

    peer.session.set_conditions(2, vec![named("c")]);
    peer.collect();
    locked(&mut peer, false);
    assert!(peer.requests.is_empty());
    peer.say(json!({ "id": null, "method": "locked", "params": ["turn"] })).unwrap();
    let change = peer.asked("monitor_cond_change");
    peer.answer(&change, json!({})).unwrap();
    assert_eq!(peer.generations(), [1, 2]);

    // What is not wanted any more needs no turn.
    after(&mut peer, Duration::from_millis(1));
    peer.asked("unlock");
    peer.session.set_conditions(3, vec![named("d")]);
    peer.session.set_conditions(4, vec![named("c")]);
    peer.collect();
    locked(&mut peer, true);
    peer.asked("unlock");
    assert_eq!(peer.generations(), [1, 2, 4]);
}

#[test]
fn a_turn_that_does_not_come_is_not_waited_for() {
    let mut peer = peer();
    locked(&mut peer, false);
    after(&mut peer, PATIENCE - Duration::from_millis(1));
    assert!(!peer.requests.iter().any(|request| request["method"] == "monitor_cond_since"));
    after(&mut peer, Duration::from_millis(1));
    let asked = peer.requests.iter().any(|request| request["method"] == "monitor_cond_since");
    assert!(asked, "{:?}", peer.requests);
}

#[test]
fn a_server_without_locks_is_asked_at_once() {
    let mut peer = peer();
    let lock = peer.asked("lock");
    peer.refuse(&lock, json!("lock and unlock methods not allowed, DB server is read only.")).unwrap();
    peer.asked("monitor_cond_since");
}
