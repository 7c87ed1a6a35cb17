//! Locks that are obtained, lost, given up and wanted again, faster than the server answers.

use super::*;

fn told(peer: &mut Peer) -> Vec<bool> {
    let held = |event: SessionEvent| match event {
        SessionEvent::Lock { held, .. } => Some(held),
        _ => None,
    };
    std::mem::take(&mut peer.events).into_iter().filter_map(held).collect()
}

fn ready() -> Peer {
    let mut peer = Peer::new(Conditions::All);
    peer.greet_well();
    peer.requests.clear();
    peer
}

fn note(method: &str) -> Value {
    json!({ "id": null, "method": method, "params": ["l"] })
}

#[test]
fn locks_are_wanted_again_on_the_next_connection() {
    let mut peer = ready();
    peer.session.lock("l", false);
    peer.collect();
    let lock = peer.asked("lock");
    peer.answer(&lock, json!({ "locked": false })).unwrap();
    assert!(peer.events.is_empty());
    peer.say(json!({ "id": null, "method": "locked", "params": ["l"] })).unwrap();
    peer.say(json!({ "id": null, "method": "stolen", "params": ["l"] })).unwrap();
    assert!(matches!(
        &peer.events[..],
        [SessionEvent::Lock { held: true, .. }, SessionEvent::Lock { held: false, .. }]
    ));
    peer.session.connected(peer.now);
    peer.collect();
    assert!(
        peer.requests.iter().any(|request| request["method"] == "lock" && request["params"] == json!(["l"]))
    );
}

#[test]
fn answers_to_what_was_given_up_are_not_taken_for_others() {
    let mut peer = ready();
    peer.session.lock("l", false);
    peer.session.unlock("l");
    peer.session.lock("l", false);
    peer.collect();
    let (first, unlock, second) = (peer.asked("lock"), peer.asked("unlock"), peer.asked("lock"));
    peer.answer(&first, json!({ "locked": true })).unwrap();
    peer.answer(&unlock, json!({})).unwrap();
    assert!(told(&mut peer).is_empty());
    peer.answer(&second, json!({ "locked": false })).unwrap();
    assert!(told(&mut peer).is_empty());
    peer.say(note("locked")).unwrap();
    assert_eq!(told(&mut peer), [true]);

    // Nor what the server tells of it.
    peer.session.unlock("l");
    peer.session.lock("l", false);
    peer.collect();
    peer.say(note("stolen")).unwrap();
    peer.say(note("locked")).unwrap();
    assert_eq!(told(&mut peer), [false]);
    peer.asked("unlock");
    let third = peer.asked("lock");
    peer.answer(&third, json!({ "locked": true })).unwrap();
    assert_eq!(told(&mut peer), [true]);
}

#[test]
fn what_is_not_held_is_given_up_before_it_is_asked_for_again() {
    let mut peer = ready();
    peer.session.lock("l", false);
    peer.collect();
    let lock = peer.asked("lock");
    peer.answer(&lock, json!({ "locked": false })).unwrap();
    peer.session.lock("l", true);
    peer.collect();
    peer.asked("unlock");
    let steal = peer.asked("steal");
    peer.answer(&steal, json!({ "locked": true })).unwrap();
    peer.session.lock("l", true);
    peer.session.lock("l", false);
    peer.collect();
    assert!(peer.requests.is_empty());
    assert_eq!(told(&mut peer), [true]);
}

/// Connects, and gives the method by which the lock is asked for.
fn asked_on_connection(peer: &mut Peer) -> Value {
    peer.session.connected(peer.now);
    peer.requests.clear();
    peer.collect();
    let is_for_lock = |request: &&Value| request["params"] == json!(["l"]);
    peer.requests.iter().find(is_for_lock).unwrap().clone()
}

#[test]
fn force_is_used_until_it_was_once() {
    let mut peer = Peer::new(Conditions::All);
    peer.session.lock("l", true);
    // Neither a connection that breaks before the answer nor a server that refuses has used it.
    let first = asked_on_connection(&mut peer);
    assert_eq!(first["method"], "steal");
    let second = asked_on_connection(&mut peer);
    assert_eq!(second["method"], "steal");
    peer.refuse(&second, json!("not allowed")).unwrap();
    let third = asked_on_connection(&mut peer);
    assert_eq!(third["method"], "steal");
    peer.answer(&third, json!({ "locked": true })).unwrap();
    assert_eq!(told(&mut peer), [true]);
    assert_eq!(asked_on_connection(&mut peer)["method"], "lock");
    assert_eq!(told(&mut peer), [false]);

    // The last call counts.
    peer.session.disconnected();
    peer.session.lock("l", true);
    peer.session.lock("l", false);
    assert_eq!(asked_on_connection(&mut peer)["method"], "lock");
}

#[test]
fn a_server_that_gives_no_locks_is_of_use_otherwise() {
    let mut peer = ready();
    peer.session.lock("l", false);
    peer.collect();
    let lock = peer.asked("lock");
    peer.refuse(&lock, json!({ "error": "not allowed", "details": "read-only" })).unwrap();
    assert!(peer.requests.is_empty() && told(&mut peer).is_empty());

    // It is asked again by the next call, and so is the next server.
    peer.session.lock("l", false);
    peer.collect();
    peer.asked("unlock");
    let lock = peer.asked("lock");
    peer.refuse(&lock, json!("not allowed")).unwrap();
    let lock = asked_on_connection(&mut peer);
    peer.answer(&lock, json!({ "locked": true })).unwrap();
    assert_eq!(told(&mut peer), [true]);
}
