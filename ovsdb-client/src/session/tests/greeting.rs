//! Servers that take a connection and say nothing of use.

use super::*;

/// Lets a new connection be silent; the time after which it is given up, and what was told before.
fn silence(peer: &mut Peer) -> (Duration, Awaited, String) {
    let start = peer.now;
    peer.events.clear();
    peer.session.connected(start);
    loop {
        peer.now = peer.session.timeout().unwrap();
        let outcome = peer.session.handle_timeout(peer.now);
        peer.collect();
        if let Err(error) = outcome {
            let told = peer.events.iter().find_map(|event| match event {
                SessionEvent::Waiting(awaited) => Some(*awaited),
                _ => None,
            });
            return (peer.now - start, told.unwrap(), error.to_string());
        }
    }
}

#[test]
fn a_silent_server_is_left_and_has_more_time_when_all_are_silent() {
    let mut peer = Peer::new(Conditions::All);
    let waited = |peer: &mut Peer| silence(peer).0.as_secs();
    assert_eq!(
        silence(&mut peer),
        (
            GREETING,
            Awaited::Greeting,
            "the server took the connection and did not send the schema and the state of the server for 10 s: another \
             one is asked"
                .to_owned()
        )
    );
    let rounds: Vec<u64> = (0..11).map(|_| waited(&mut peer)).collect();
    assert_eq!(rounds, [10, 10, 20, 20, 20, 40, 40, 40, 80, 80, 80]);
    assert_eq!(waited(&mut peer), 80);
    // A server of use ends that.
    peer.greet_well();
    let monitor = peer.asked("monitor_cond_since");
    peer.answer(&monitor, json!([false, ID, {}])).unwrap();
    assert_eq!(peer.session.timeout(), Some(peer.now + PROBE));
    assert_eq!(waited(&mut peer), 10);
}

#[test]
fn every_step_has_its_time_and_echoes_are_none() {
    let mut peer = Peer::new(Conditions::All);
    peer.greet_well();
    let start = peer.now;
    for second in 1..10 {
        peer.now = start + Duration::from_secs(second);
        peer.say(json!({ "id": "echo", "method": "echo", "params": [] })).unwrap();
        peer.session.handle_timeout(peer.now).unwrap();
    }
    // The contents begin in time, and take long.
    for second in 10..100 {
        peer.session.arriving(peer.now);
        peer.now = start + Duration::from_secs(second);
        peer.session.handle_timeout(peer.now).unwrap();
    }
    peer.session.handle_timeout(peer.now + Duration::from_secs(8)).unwrap();
    let error = peer.session.handle_timeout(peer.now + 6 * GREETING).unwrap_err();
    assert!(error.to_string().contains("did not send the first contents of the tables for 60 s"), "{error}");
}

#[test]
fn a_single_server_is_waited_for() {
    let mut peer = Peer::new(Conditions::All);
    peer.session.config.servers = 1;
    let (waited, told, reason) = silence(&mut peer);
    assert_eq!((waited, told), (2 * PROBE, Awaited::Greeting));
    assert!(reason.contains("did not answer the inactivity probe"), "{reason}");
}
