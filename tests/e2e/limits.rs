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

#[test]
fn who_is_slow_is_not_waited_for() -> Result<()> {
    let (_cloud, [slow, other]) = cloud(&[
        ("metadata_haproxy", "timeout_http_request = 1"),
        ("metadata_haproxy", "timeout_client = 1"),
        ("metadata_haproxy", "timeout_http_keep_alive = 4"),
        ("metadata_ebpf", "connection_lifetime = 6"),
    ])?;
    // Bit by bit, and never to the end.
    let began = Instant::now();
    let mut head = slow.connect()?;
    head.send(b"GET / HTTP/1.1\r\n")?;
    while began.elapsed() < Duration::from_millis(800) && head.send(b"X-A: b\r\n").is_ok() {
        thread::sleep(Duration::from_millis(100));
    }
    let response = head.response("GET")?;
    assert_eq!(response.status, 408, "{}", response.text());
    assert!(head.is_closed()?);
    assert!(began.elapsed() < Duration::from_secs(25), "after {:?}", began.elapsed());

    let mut body = slow.connect()?;
    body.send(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello")?;
    assert_eq!(body.response("POST")?.status, 408);
    assert!(body.is_closed()?);

    // An idle one is closed without a word, before and after requests.
    let mut silent = slow.connect()?;
    assert!(silent.is_closed()?);
    let mut idle = slow.connect()?;
    is_identity_of(&slow.port, &idle.request("GET", META_DATA, &[], b"")?)?;
    assert!(idle.is_closed()?);

    // So is one with nothing but a few empty lines, which begin no request. Many do, and go on with one, too.
    let mut lines = slow.connect()?;
    is_identity_of(&slow.port, &lines.request("GET", META_DATA, &[], b"")?)?;
    lines.send(b"\r\n\r\n\r")?;
    thread::sleep(Duration::from_millis(100));
    lines.send(b"\n")?;
    assert!(lines.is_closed()?);
    for count in [2, 20] {
        let mut lines = slow.connect()?;
        is_identity_of(&slow.port, &lines.request("GET", META_DATA, &[], b"")?)?;
        lines.send("\r\n".repeat(count).as_bytes())?;
        is_identity_of(&slow.port, &lines.request("GET", META_DATA, &[], b"")?)?;
    }
    let mut many = slow.connect()?;
    many.send("\r\n".repeat(20).as_bytes())?;
    assert_eq!(many.response("GET")?.status, 408);

    // However busy, it does not last for ever.
    let began = Instant::now();
    let mut busy = slow.connect()?;
    while busy.request("GET", META_DATA, &[], b"").is_ok() {
        assert!(began.elapsed() < Duration::from_secs(60), "it still lasts");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(began.elapsed() >= Duration::from_secs(5), "it lasted {:?}", began.elapsed());
    own_identity(&other)
}

/// A guest that takes nothing of its answer does not keep it for ever.
#[test]
fn who_does_not_read_is_not_waited_for() -> Result<()> {
    let (cloud, [deaf, other]) = cloud(&[("metadata_haproxy", "timeout_client = 1")])?;
    // More than all buffers on the way hold.
    cloud.nova.set_user_data(&deaf.port, vec![b'x'; 64 << 20]);
    let mut connection = deaf.connect()?;
    connection.send(&http::request_head("GET", "/latest/user-data", &[], 0))?;
    let gauge = "metadata_connections";
    until("it is being served", SOON, || {
        let count = cloud.agent.metric(gauge)?;
        ensure!(count == 1.0, "{count}");
        Ok(())
    })?;
    own_identity(&other)?;
    until("it is given up", Duration::from_secs(60), || {
        let count = cloud.agent.metric(gauge)?;
        ensure!(count == 0.0, "{count}");
        Ok(())
    })
}

#[test]
fn heads_and_bodies_have_bounds() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&[
        ("metadata_ebpf", "request_head_bytes = 2048"),
        ("metadata_ebpf", "request_body_bytes = 1100"),
    ])?;
    let padded = |length: usize| "a".repeat(length);
    assert_eq!(guest.request("GET", META_DATA, &[("X-A", &padded(1500))], b"")?.status, 200);
    let response = guest.request("GET", META_DATA, &[("X-A", &padded(2000))], b"")?;
    assert_eq!(response.status, 431, "{}", response.text());
    assert!(response.text().contains("2048"), "{}", response.text());
    let body = vec![b'a'; 1101];
    assert_eq!(guest.request("POST", "/openstack/latest/password", &[], &body[..1000])?.status, 200);
    let response = guest.request("POST", "/openstack/latest/password", &[], &body)?;
    assert_eq!(response.status, 413, "{}", response.text());
    let mut chunked = guest.connect()?;
    chunked.send(b"POST /openstack/latest/password HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n44d\r\n")?;
    chunked.send(&body)?;
    assert_eq!(chunked.response("POST")?.status, 413);
    assert_eq!(cloud.nova.password(&guest.port), vec![b'a'; 1000]);
    Ok(())
}

/// The numbers that an operator watches, on the socket and, for reading only, over TCP.
#[test]
fn everything_is_counted() -> Result<()> {
    let (cloud, [guest, _other]) = cloud(&[("metadata_ebpf", "admin_listen = 127.0.0.1:9775")])?;
    own_identity(&guest)?;
    assert_eq!(guest.get("/nothing")?.status, 404);
    guest.connect()?.send(b"nonsense\r\n\r\n")?;
    until("all of it is counted", SOON, || {
        for (name, expected) in [
            ("metadata_requests_total{by=\"nova\",status=\"200\"}", 2.0),
            ("metadata_requests_total{by=\"nova\",status=\"404\"}", 1.0),
            ("metadata_requests_total{by=\"agent\",status=\"400\"}", 1.0),
            ("metadata_refusals_total{reason=\"malformed\"}", 1.0),
            ("metadata_connections_accepted_total", 4.0),
            ("metadata_connections", 0.0),
            ("metadata_request_seconds_count{by=\"nova\"}", 3.0),
            ("metadata_request_seconds_count{by=\"agent\"}", 1.0),
            ("metadata_nova_seconds_count", 3.0),
            ("metadata_nova_up{endpoint=\"127.0.0.1:8775\"}", 1.0),
            // The three requests came one after another.
            ("metadata_ports{identity=\"known\"}", 2.0),
            ("metadata_ready", 1.0),
        ] {
            let value = cloud.agent.metric(name)?;
            ensure!(value == expected, "{name} is {value}, not {expected}");
        }
        ensure!(cloud.agent.metric("metadata_nova_connections_total{endpoint=\"127.0.0.1:8775\"}")? >= 1.0);
        Ok(())
    })?;
    let redirected = cloud.agent.counters()?["redirected"] as f64;
    assert!(cloud.agent.metric("metadata_frames_total{outcome=\"redirected\"}")? >= redirected);

    let ask = |method: &str, target: &str| -> Result<Response> {
        let stream = cloud.chassis.host().run(|| TcpStream::connect("127.0.0.1:9775"))??;
        Ok(Connection::new(stream).request(method, target, &[("Connection", "close")], b"")?)
    };
    let metrics = ask("GET", "/metrics")?;
    assert!(
        metrics.header("Content-Type").is_some_and(|kind| kind.starts_with("application/openmetrics-text"))
    );
    assert!(metrics.text().ends_with("# EOF\n"));
    assert_eq!(ask("GET", "/ready")?.status, 200);
    assert_eq!(ask("PUT", "/log?level=debug")?.status, 403);
    let ports = ask("GET", "/ports")?;
    assert!(ports.status == 403 && !ports.text().contains(&guest.port.instance), "{ports:?}");
    assert_eq!(cloud.agent.admin("PUT", "/log?level=info")?.status, 200);
    // The port that the agent listens at is no guest's.
    assert!(guest.get("/metrics")?.status == 404);
    Ok(())
}

/// The log's first line, the metric and `--version` tell of the same build, and the former of no secret.
#[test]
fn version_files_and_settings_are_told_at_the_start() -> Result<()> {
    let (cloud, _) = cloud(&[("metadata_ebpf", "connection_lifetime = 77")])?;
    let log = cloud.agent.wait_logged(&["starting", "connection_lifetime"])?;
    let first = log.lines().next().context("the log is empty")?;
    let told = run(Command::new(cloud.agent.program()).arg("--version"))?;
    let version = told.trim().strip_prefix("metadata-agent ").with_context(|| told.clone())?;
    for words in [
        format!("version=\"{version}\""),
        "agent.conf\"]".to_owned(),
        "\"[metadata_ebpf] connection_lifetime = 77\"".to_owned(),
        "\"[DEFAULT] metadata_proxy_shared_secret = (set)\"".to_owned(),
    ] {
        assert!(first.contains(&words), "{words} is not in {first}");
    }
    assert!(!log.contains(nova::SECRET), "{log}");
    let (release, commit) = version.split_once(' ').unwrap_or((version, ""));
    let commit = commit.trim_matches(['(', ')']);
    let name = format!("metadata_build_info{{version=\"{release}\",commit=\"{commit}\"}}");
    assert_eq!(cloud.agent.metric(&name)?, 1.0);
    Ok(())
}

/// The log's line of a request, and what it must not say.
#[test]
fn requests_are_logged_without_their_secrets() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&[])?;
    cloud.nova.set_user_data(&guest.port, "user-data-secret");
    guest.get("/latest/user-data?query-secret")?;
    guest.request("POST", "/openstack/latest/password", &[("X-Header", "header-secret")], b"body-secret")?;
    guest.get("/path-secret")?;
    guest.request("METHODSECRET", "/", &[], b"")?;
    let lines = until("the requests are in the log", SOON, || {
        let log = cloud.agent.log()?;
        let lines: Vec<_> = log.lines().filter(|line| line.contains("access: ")).map(str::to_owned).collect();
        ensure!(lines.len() == 4, "{lines:?}");
        Ok(lines)
    })?;
    let Port { id, instance, project, network, tap, address, .. } = &guest.port;
    for word in [
        format!("tap={tap}"),
        format!("port=\"{id}\""),
        format!("instance=\"{instance}\""),
        format!("project=\"{project}\""),
        format!("network=\"{network}\""),
        format!("source={address}"),
        "method=\"GET\"".to_owned(),
        "path=\"user-data\"".to_owned(),
        "status=200".to_owned(),
        "bytes=16".to_owned(),
        "ms=".to_owned(),
        "nova_ms=".to_owned(),
    ] {
        assert!(lines[0].contains(&word), "no {word} in {}", lines[0]);
    }
    // An option's name is none.
    let log = cloud.agent.log()?.to_lowercase().replace("metadata_proxy_shared_secret", "");
    assert!(!log.contains("secret"), "{log}");
    assert!(!log.contains(&nova::signature(instance)), "a signature is in the log");
    Ok(())
}

/// Requests without an answer, as their guest goes away or its port does: no answer is counted, and the log says which
/// it was.
#[test]
fn requests_that_end_without_an_answer_are_told_of() -> Result<()> {
    let (mut cloud, [leaves, unplugged]) = cloud(&[])?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Held(OK.to_vec()))?;
    let unfinished = |reason: &str| {
        let name = format!("metadata_requests_unfinished_total{{reason=\"{reason}\"}}");
        until(&name, SOON, || {
            let count = cloud.agent.metric(&name)?;
            ensure!(count == 1.0, "{count}");
            Ok(())
        })
    };
    let mut connection = leaves.connect()?;
    connection.send(&http::request_head("POST", "/openstack/latest/password", &[], 10))?;
    connection.send(b"half")?;
    // With a reset: one who only ended its side would be told that something is missing.
    setsockopt(connection.stream(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(connection);
    unfinished("guest_left")?;

    let mut connection = unplugged.connect()?;
    connection.send(&http::request_head("GET", META_DATA, &[], 0))?;
    until("the request is with Nova", SOON, || {
        ensure!(upstream.take_requests().len() == 1, "it is not");
        Ok(())
    })?;
    cloud.chassis.stop_tap(&unplugged)?;
    unfinished("cut_off")?;

    let lines = until("both are in the log", SOON, || {
        let log = cloud.agent.log()?;
        let lines: Vec<_> = log.lines().filter(|line| line.contains("access: ")).map(str::to_owned).collect();
        ensure!(lines.len() == 2, "{lines:?}");
        Ok(lines)
    })?;
    for (line, guest, reason) in
        [(&lines[0], &leaves, "the guest left"), (&lines[1], &unplugged, "its port or the agent went away")]
    {
        assert!(line.contains(&guest.port.id) && line.contains(reason), "{line}");
        assert!(!line.contains("status="), "{line}");
    }
    Ok(())
}
