//! Servers that are silent, and those that ask.

use super::*;

#[test]
fn silence_is_probed_and_then_ended() {
    let mut peer = Peer::new(Conditions::All);
    peer.session.config.greeting_timeout = Duration::ZERO;
    peer.greet_well();
    peer.requests.clear();
    let start = peer.now;
    assert_eq!(peer.session.timeout(), Some(start + PROBE));
    peer.session.handle_timeout(start + PROBE / 2).unwrap();
    peer.collect();
    assert!(peer.requests.is_empty());
    peer.session.handle_timeout(start + PROBE).unwrap();
    peer.collect();
    let echo = peer.asked("echo");
    peer.now = start + PROBE + PROBE / 2;
    peer.answer(&echo, json!([])).unwrap();
    assert_eq!(peer.session.timeout(), Some(peer.now + PROBE));

    peer.session.handle_timeout(peer.now + PROBE).unwrap();
    let error = peer.session.handle_timeout(peer.now + PROBE * 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server has been silent for 120 s and did not answer the inactivity probe"
    );
}

#[test]
fn an_interval_of_nothing_or_without_end_never_probes() {
    for never in [Duration::ZERO, Duration::MAX] {
        let mut peer = Peer::new(Conditions::All);
        peer.session.config.probe_interval = never;
        peer.session.config.greeting_timeout = Duration::ZERO;
        peer.greet_well();
        peer.requests.clear();
        assert_eq!(peer.session.timeout(), None);
        peer.session.handle_timeout(peer.now + PROBE).unwrap();
        peer.collect();
        assert!(peer.requests.is_empty());
    }
}

#[test]
fn echo_is_answered_with_what_came() {
    let mut peer = Peer::new(Conditions::All);
    peer.say(json!({ "id": "echo", "method": "echo", "params": [1, { "a": 2 }] })).unwrap();
    assert_eq!(
        peer.requests.pop_front().unwrap(),
        json!({ "id": "echo", "result": [1, { "a": 2 }], "error": null })
    );
    peer.say(json!({ "id": 7, "method": "what", "params": [] })).unwrap();
    assert_eq!(peer.requests.pop_front().unwrap()["error"], "unknown method");
}
