//! Limits of a guest: connections, requests, time and bytes; and what it is told beyond them.

use std::{
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    command::run,
    guest::Guest,
    http::{self, Connection, Response},
    nova,
    ovn::{Lab, Routing},
    port::Port,
    stage::Stage,
    upstream::{Script, Upstream},
    wait::until,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

mod slow;
mod told;

const SOON: Duration = Duration::from_secs(30);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn cloud(options: &[(&'static str, &str)]) -> Result<(Cloud<Stage>, [Guest; 2])> {
    let more = options.iter().map(|(section, line)| (*section, (*line).to_owned())).collect();
    let cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let guests = cloud.overlapping_guests()?;
    Ok((cloud, guests))
}

/// A refusal for a limit: when to ask again, and whose it is.
fn assert_limited(response: &Response, status: u16, guest: &Guest, words: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    let wait: u32 = response.header("Retry-After").and_then(|value| value.parse().ok()).unwrap_or(0);
    assert!(wait >= 1, "{response:?}");
    let text = response.text();
    assert!(text.contains(words), "{text}");
    assert!(text.contains(&guest.port.id), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn a_port_has_so_many_connections() -> Result<()> {
    let (cloud, [greedy, other]) = cloud(&[("metadata_ebpf", "port_connections = 4")])?;
    let limited = "metadata_limits_hit_total{limit=\"port_connections\"}";
    let mut parked = Vec::new();
    for _ in 0..4 {
        let mut connection = greedy.connect()?;
        is_identity_of(&greedy.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        parked.push(connection);
    }
    for _ in 0..3 {
        assert_limited(&greedy.get(META_DATA)?, 503, &greedy, "too many connections");
    }
    assert_eq!(cloud.agent.metric(limited)?, 3.0);
    own_identity(&other)?;
    // Who is slow to ask still hears why. It is heard out for a second, which the machine may be too busy for.
    until("a refusal is no reset", SOON, || {
        let mut slow = greedy.connect()?;
        let head = http::request_head("GET", META_DATA, &[], 0);
        let (begin, rest) = head.split_at(10);
        slow.stream().peek(&mut [0])?;
        slow.send(begin)?;
        thread::sleep(Duration::from_millis(50));
        slow.send(rest)?;
        let response = slow.response("GET")?;
        ensure!(response.status == 503, "{response:?}");
        Ok(())
    })?;
    for connection in &mut parked {
        is_identity_of(&greedy.port, &connection.request("GET", META_DATA, &[], b"")?)?;
    }
    drop(parked);
    until("connections that ended do not count", SOON, || own_identity(&greedy))
}

/// Of those who have as many as anybody, none gets more; `fairness` has those who have less.
#[test]
fn all_ports_together_have_so_many_connections() -> Result<()> {
    let (cloud, [one, other]) =
        cloud(&[("metadata_ebpf", "connections = 4"), ("metadata_ebpf", "port_connections = 0")])?;
    let parked = [&one, &other, &one, &other].map(Guest::connect);
    until("all connections are taken", SOON, || {
        let count = cloud.agent.metric("metadata_connections")?;
        ensure!(count == 4.0, "{count}");
        Ok(())
    })?;
    for guest in [&one, &other] {
        assert_limited(&guest.get(META_DATA)?, 503, guest, "the metadata service has too many connections");
    }
    assert_eq!(cloud.agent.metric("metadata_connections")?, 4.0);
    drop(parked);
    until("connections that ended do not count", SOON, || own_identity(&other))
}

#[test]
fn a_port_has_so_many_requests_in_time() -> Result<()> {
    let (cloud, [greedy, other]) =
        cloud(&[("metadata_ebpf", "request_rate = 1"), ("metadata_ebpf", "request_burst = 10")])?;
    // On one connection or on many, it is the same guest.
    let mut connection = greedy.connect()?;
    for _ in 0..5 {
        is_identity_of(&greedy.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        is_identity_of(&greedy.port, &greedy.get(META_DATA)?)?;
    }
    let refused = until("the burst is used up", SOON, || {
        let response = connection.request("GET", META_DATA, &[], b"")?;
        ensure!(response.status != 200, "still served");
        Ok(response)
    })?;
    assert_limited(&refused, 503, &greedy, "too many requests in too short a time");
    own_identity(&other)?;
    assert!(connection.is_closed()?);
    // Who waits as told is served.
    thread::sleep(Duration::from_secs(1));
    is_identity_of(&greedy.port, &greedy.get(META_DATA)?)?;
    assert!(cloud.agent.metric("metadata_refusals_total{reason=\"request_rate\"}")? >= 1.0);
    Ok(())
}

#[test]
fn neutrons_rate_limits_count_in_windows() -> Result<()> {
    let (_cloud, [greedy, other]) = cloud(&[
        ("metadata_rate_limiting", "rate_limit_enabled = true"),
        ("metadata_rate_limiting", "ip_versions = 4"),
        ("metadata_rate_limiting", "base_window_duration = 60"),
        ("metadata_rate_limiting", "base_query_rate_limit = 12"),
        ("metadata_rate_limiting", "burst_window_duration = 20"),
        ("metadata_rate_limiting", "burst_query_rate_limit = 6"),
        ("metadata_ebpf", "limit_status = 429"),
    ])?;
    for _ in 0..6 {
        is_identity_of(&greedy.port, &greedy.get(META_DATA)?)?;
    }
    assert_limited(&greedy.get(META_DATA)?, 429, &greedy, "too many requests in too short a time");
    own_identity(&other)
}

#[test]
fn a_port_has_so_many_requests_under_way() -> Result<()> {
    let (mut cloud, [greedy, other]) = cloud(&[("metadata_ebpf", "port_requests = 2")])?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Held(OK.to_vec()))?;
    let mut under_way = Vec::new();
    for _ in 0..2 {
        let mut connection = greedy.connect()?;
        connection.send(&http::request_head("GET", "/a", &[], 0))?;
        under_way.push(connection);
    }
    let mut requests = Vec::new();
    until("both are with Nova", SOON, || {
        requests.extend(upstream.take_requests());
        ensure!(requests.len() == 2, "{} are", requests.len());
        Ok(())
    })?;
    assert_limited(&greedy.get("/b")?, 503, &greedy, "too many requests at once");
    upstream.set_script(Script::Answer(OK.to_vec()));
    assert_eq!(other.get("/c")?.text(), "ok");
    upstream.release();
    for connection in &mut under_way {
        assert_eq!(connection.response("GET")?.text(), "ok");
    }
    assert_eq!(greedy.get("/d")?.text(), "ok");
    Ok(())
}

#[test]
fn all_ports_together_have_so_many_requests_under_way() -> Result<()> {
    let (mut cloud, [greedy, other]) = cloud(&[("metadata_ebpf", "requests = 1")])?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Held(OK.to_vec()))?;
    let mut under_way = greedy.connect()?;
    under_way.send(&http::request_head("GET", "/a", &[], 0))?;
    until("it is with Nova", SOON, || {
        ensure!(upstream.take_requests().len() == 1);
        Ok(())
    })?;
    assert_limited(&other.get("/b")?, 503, &other, "the metadata service has too many requests at once");
    upstream.release();
    assert_eq!(under_way.response("GET")?.text(), "ok");
    until("requests that ended do not count", SOON, || {
        let response = other.get("/c")?;
        ensure!(response.text() == "ok", "{}", response.text());
        Ok(())
    })
}

#[test]
fn so_many_requests_of_an_unknown_port_are_held() -> Result<()> {
    let more = vec![("metadata_ebpf", "port_held = 2".to_owned())];
    let hold = 5;
    let cloud = Cloud::on(Lab::start()?, &Options { hold, more, ..Options::default() })?;
    let network = cloud.chassis.add_network("red", Routing::Routed)?;
    let guest = cloud.chassis.boot(Port::new(&network)?)?;
    cloud.nova.add_instance(&guest.port);
    cloud.chassis.plug(&guest)?;
    guest.configure(None)?;
    let asked = Instant::now();
    let mut answers: Vec<_> = thread::scope(|scope| {
        let ask = || anyhow::Ok((guest.get(META_DATA)?, asked.elapsed()));
        let asking = [(); 3].map(|()| scope.spawn(ask));
        asking
            .into_iter()
            .map(|asking| asking.join().ok().context("a request panicked")?)
            .collect::<Result<_>>()
    })?;
    // One of them is told at once; which of them came last is not ours to say.
    answers.sort_by_key(|(_, after)| *after);
    let hold = Duration::from_secs(hold.into());
    let (refused, after) = &answers[0];
    assert_limited(refused, 503, &guest, "too many requests wait for this port");
    assert!(*after < hold, "told after {after:?}");
    for (held, after) in &answers[1..] {
        assert_limited(held, 503, &guest, "does not know this port yet");
        assert!(*after >= hold, "held for {after:?} only");
    }
    Ok(())
}
