//! Servers of a cluster that are not as far as others were.

use super::*;

/// Longer than any election.
const LONG: Duration = Duration::from_secs(30);

/// The answer of a server of `cluster` whose log ends at `index`.
fn end(cluster: &str, index: u64) -> Value {
    json!([{ "rows": [{ "cid": ["uuid", cluster], "index": index }] }])
}

/// Connects to a server with that end of its log; it becomes of use unless it is behind.
fn connect(peer: &mut Peer, result: Value) -> Result<(), Hangup> {
    peer.session.connected(peer.now);
    peer.requests.clear();
    peer.collect();
    let requests: Vec<Value> = peer.requests.drain(..).collect();
    let request = |method: &str| requests.iter().find(|request| request["method"] == method).unwrap();
    peer.refuse(request("monitor_cond"), json!("unknown database"))?;
    peer.answer(request("get_schema"), schema())?;
    peer.answer(request("transact"), result)?;
    let monitor = peer.asked("monitor_cond_since");
    peer.answer(&monitor, json!([false, ID, {}]))
}

fn leave(peer: &mut Peer) {
    peer.session.disconnected();
    peer.collect();
}

fn is_behind(result: Result<(), Hangup>) -> bool {
    matches!(result, Err(Hangup::Behind { .. }))
}

#[test]
fn a_follower_that_is_behind_is_left() {
    let mut peer = Peer::new(Conditions::All);
    connect(&mut peer, end(ID, 10)).unwrap();
    connect(&mut peer, end(ID, 10)).unwrap();
    assert!(matches!(connect(&mut peer, end(ID, 9)), Err(Hangup::Behind { index: 9, seen: 10 })));
    connect(&mut peer, end(LATER, 1)).unwrap();
}

#[test]
fn the_index_is_read_every_minute_whatever_else_is_said() {
    for probe in [PROBE * 10, Duration::ZERO] {
        let mut peer = Peer::new(Conditions::All);
        peer.session.config.probe_interval = probe;
        connect(&mut peer, end(ID, 10)).unwrap();
        let due = peer.now + Duration::from_secs(60);
        peer.now += Duration::from_secs(59);
        peer.say(json!({ "id": null, "method": "update3", "params": ["data", LATER, {}] })).unwrap();
        assert_eq!(peer.session.timeout(), Some(due));
        peer.session.handle_timeout(peer.now).unwrap();
        peer.collect();
        assert!(peer.requests.is_empty());
        peer.now = due;
        peer.session.handle_timeout(due).unwrap();
        peer.collect();
        let select = peer.asked("transact");
        assert_ne!(peer.session.timeout(), Some(due), "it is asked for once");
        peer.answer(&select, end(ID, 20)).unwrap();
        assert_eq!(peer.session.timeout(), Some(due + Duration::from_secs(60)));
        leave(&mut peer);
        assert_eq!(peer.session.timeout(), None);
        assert!(is_behind(connect(&mut peer, end(ID, 19))));
    }
}

/// Connects to a server that has to be behind, and leaves it.
fn find_behind(peer: &mut Peer, index: u64) {
    assert!(is_behind(connect(peer, end(ID, index))));
    leave(peer);
}

#[test]
fn a_cluster_that_is_behind_as_a_whole_for_long_was_restored() {
    let mut peer = Peer::new(Conditions::All);
    connect(&mut peer, end(ID, 10)).unwrap();
    leave(&mut peer);
    // Those that were out of reach before the first is behind are not in its round.
    leave(&mut peer);
    leave(&mut peer);
    peer.now += LONG;
    find_behind(&mut peer, 5);
    peer.now += LONG;
    find_behind(&mut peer, 5);
    // One that is as far ends it.
    connect(&mut peer, end(ID, 10)).unwrap();
    leave(&mut peer);
    find_behind(&mut peer, 5);
    leave(&mut peer);
    peer.now += LONG;
    find_behind(&mut peer, 6);
    connect(&mut peer, end(ID, 5)).unwrap();
    leave(&mut peer);
    find_behind(&mut peer, 4);
    connect(&mut peer, end(ID, 5)).unwrap();
}

#[test]
fn followers_that_lag_for_a_while_are_not_taken_however_often_they_are_tried() {
    for servers in [1, 3] {
        let mut peer = Peer::new(Conditions::All);
        peer.session.config.servers = servers;
        connect(&mut peer, end(ID, 10)).unwrap();
        leave(&mut peer);
        for _ in 0..30 {
            find_behind(&mut peer, 5);
            peer.now += Duration::from_secs(1);
        }
        connect(&mut peer, end(ID, 5)).unwrap();
        leave(&mut peer);
        // What was taken is what counts from there on.
        connect(&mut peer, end(ID, 5)).unwrap();
        leave(&mut peer);
        find_behind(&mut peer, 4);
    }
}
