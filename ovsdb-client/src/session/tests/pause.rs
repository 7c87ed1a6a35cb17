//! Pauses: what is under way when they begin, what happens during them, and where they end.

use super::*;

/// A peer whose tables were filled at the transaction [`ID`].
fn monitoring(conditions: Conditions) -> Peer {
    let all = conditions == Conditions::All;
    let mut peer = Peer::new(conditions);
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    if all {
        peer.answer(&monitor, json!([false, ID, {}])).unwrap();
    } else {
        peer.fill(&monitor, "a", ID);
    }
    peer.events.clear();
    peer
}

fn pause(peer: &mut Peer, paused: bool) {
    peer.session.set_paused(paused);
    peer.collect();
}

#[test]
fn a_pause_begins_behind_what_was_under_way_and_ends_where_it_began() {
    let mut peer = monitoring(named("a"));
    pause(&mut peer, true);
    let cancel = peer.asked("monitor_cancel");
    assert_eq!(cancel["params"], json!(["data"]));
    let update = json!({ "id": null, "method": "update3", "params": ["data", LATER, { "Port": {} }] });
    peer.say(update.clone()).unwrap();
    peer.answer(&cancel, json!({})).unwrap();
    peer.say(update).unwrap();
    assert!(
        matches!(&peer.events[..], [SessionEvent::Update { .. }, SessionEvent::Paused]),
        "{:?}",
        peer.events
    );

    // Everything else goes on, and conditions wait.
    peer.session.request("transact", &json!(["DB"])).unwrap();
    peer.session.lock("l", false);
    peer.session.set_conditions(1, vec![named("b")]);
    pause(&mut peer, true);
    peer.asked("transact");
    peer.asked("lock");
    assert!(peer.requests.is_empty());

    peer.events.clear();
    pause(&mut peer, false);
    let get_schema = peer.asked("get_schema");
    peer.session.request("transact", &json!(["DB"])).unwrap();
    peer.answer(&get_schema, schema()).unwrap();
    peer.asked("transact");
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][2]["Port"][0]["where"], json!([["name", "==", "a"]]));
    assert_eq!(monitor["params"][3], LATER);
    peer.answer(&monitor, json!([true, LATER, {}])).unwrap();
    let change = peer.asked("monitor_cond_change");
    peer.answer(&change, json!({})).unwrap();
    assert!(matches!(
        &peer.events[..],
        [SessionEvent::Contents { complete: false, .. }, SessionEvent::ConditionInForce(1)]
    ));
}

#[test]
fn a_pause_outlives_connections() {
    let mut peer = Peer::new(named("a"));
    pause(&mut peer, true);
    for _ in 0..2 {
        peer.greet_well();
        assert!(peer.requests.is_empty());
        assert!(matches!(&peer.events[..], [SessionEvent::Ready, SessionEvent::Paused]));
    }
    peer.session.set_conditions(1, vec![named("b")]);
    pause(&mut peer, false);
    let get_schema = peer.asked("get_schema");
    peer.answer(&get_schema, schema()).unwrap();
    let monitor = peer.asked("monitor_cond_since");
    assert_eq!(monitor["params"][3], NIL);
    peer.fill(&monitor, "b", ID);
    assert_eq!(peer.generations(), [1]);

    // One that ends between connections was none.
    pause(&mut peer, true);
    peer.session.disconnected();
    pause(&mut peer, false);
    peer.greet_well();
    assert_eq!(peer.asked("monitor_cond_since")["params"][3], ID);
}

#[test]
fn a_pause_waits_for_answers() {
    // To the request for the contents.
    let mut peer = Peer::new(named("a"));
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    pause(&mut peer, true);
    assert!(peer.requests.is_empty());
    peer.fill(&monitor, "a", ID);
    let cancel = peer.asked("monitor_cancel");
    // To its own, when it is to end already.
    pause(&mut peer, false);
    assert!(peer.requests.is_empty());
    peer.answer(&cancel, json!({})).unwrap();
    let get_schema = peer.asked("get_schema");
    // And again before it has ended.
    pause(&mut peer, true);
    peer.answer(&get_schema, schema()).unwrap();
    assert!(peer.requests.is_empty());

    // A change of conditions before it is in force, and those after it are not asked for.
    let mut peer = monitoring(named("a"));
    peer.session.set_conditions(1, vec![named("b")]);
    peer.session.set_conditions(2, vec![named("c")]);
    pause(&mut peer, true);
    let change = peer.asked("monitor_cond_change");
    let cancel = peer.asked("monitor_cancel");
    peer.answer(&change, json!({})).unwrap();
    peer.answer(&cancel, json!({})).unwrap();
    assert!(peer.requests.is_empty());
    assert!(matches!(&peer.events[..], [SessionEvent::ConditionInForce(1), SessionEvent::Paused]));
}

#[test]
fn a_server_that_goes_on_is_left() {
    let mut peer = monitoring(Conditions::All);
    pause(&mut peer, true);
    let cancel = peer.asked("monitor_cancel");
    let error = peer.refuse(&cancel, json!("unknown monitor")).unwrap_err();
    assert_eq!(error.to_string(), "the server refused monitor_cancel: unknown monitor");
}
