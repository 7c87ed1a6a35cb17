//! Requests reach Nova, and its answers the guest, byte for byte.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    capture::{Capture, Checksum},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    command::{Words as _, run},
    guest::Guest,
    http::{self, Response},
    nova::{self, Answer},
    process::anonymous_memory,
    stage::Stage,
    upstream::{Script, Upstream},
    wait::until,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

fn cloud_with_guest() -> Result<(Cloud<Stage>, Guest)> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    Ok((cloud, guest))
}

#[test]
fn user_data_is_bytes() -> Result<()> {
    let (cloud, guest) = cloud_with_guest()?;
    let long: Vec<u8> = (0..1 << 16).map(|index| (index * 7 % 253) as u8).collect();
    let every_byte: Vec<u8> = (0..=255).collect();
    // "hello" by gzip: to be passed on compressed.
    let gzip =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcbH\xcd\xc9\xc9\x07\x00\x86\xa6\x106\x05\x00\x00\x00";
    for user_data in [&long[..], &every_byte, gzip, b"", b"\xff\xfe", b"\r\n\r\n"] {
        cloud.nova.set_user_data(&guest.port, user_data.to_vec());
        for accept in [&[][..], &[("Accept-Encoding", "gzip, deflate")]] {
            let response = guest.request("GET", "/latest/user-data", accept, b"")?;
            assert_eq!(response.status, 200);
            assert!(response.body == user_data, "{} bytes became {}", user_data.len(), response.body.len());
            assert_eq!(response.header("Content-Type"), Some("text/plain; charset=UTF-8"));
            assert_eq!(response.header("Content-Encoding"), None);
        }
    }
    Ok(())
}

/// An answer is passed on as it comes, so its length is nothing to the agent.
#[test]
fn a_large_answer_takes_no_memory() -> Result<()> {
    let (cloud, guest) = cloud_with_guest()?;
    own_identity(&guest)?;
    let user_data: Vec<u8> = (0..128_u32 << 20).map(|index| (index * 7 % 251) as u8).collect();
    cloud.nova.set_user_data(&guest.port, user_data.clone());
    let before = anonymous_memory(cloud.agent.id()?)?;
    let mut connection = guest.connect()?;
    connection.send(&http::request_head("GET", "/latest/user-data", &[], 0))?;
    // What is on the way fills all buffers, while nothing is taken.
    thread::sleep(Duration::from_millis(500));
    let during = anonymous_memory(cloud.agent.id()?)?;
    assert!(connection.response("GET")?.body == user_data, "the answer's body changed");
    let after = anonymous_memory(cloud.agent.id()?)?;
    println!("{before} bytes, {during} within the answer, {after} after it");
    assert!(during.max(after) < before + (8 << 20), "{before}, {during}, {after} bytes");
    Ok(())
}

/// Memory that a burst takes goes back to the system some seconds after it.
#[test]
fn a_burst_of_bodies_leaves_no_memory() -> Result<()> {
    const BODIES: u64 = 1024;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let options = ["port_connections = 0", "port_requests = 0", "connection_rate = 0"];
    let mut more = options.map(|line| ("metadata_ebpf", line.to_owned())).to_vec();
    // The first of them waits until the last was sent, on a busy machine too.
    more.push(("metadata_haproxy", "timeout_server = 300".to_owned()));
    let mut cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let [guest, other] = cloud.overlapping_guests()?;
    own_identity(&other)?;
    cloud.nova.pause();
    let held = Script::Held(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec());
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, held)?;
    let before = anonymous_memory(cloud.agent.id()?)?;
    let body = vec![b'x'; 65_536];
    let mut posting = Vec::new();
    for _ in 0..BODIES {
        let mut connection = guest.connect()?;
        connection.send(&http::request_head("POST", "/a", &[("Connection", "close")], body.len()))?;
        connection.send(&body)?;
        posting.push(connection);
    }
    let mut count = 0;
    until("all of them are with Nova", Duration::from_secs(30), || {
        count += upstream.take_requests().len() as u64;
        ensure!(count == BODIES, "{count} are");
        Ok(())
    })?;
    let during = anonymous_memory(cloud.agent.id()?)?;
    upstream.release();
    for connection in &mut posting {
        assert_eq!(connection.response("POST")?.text(), "ok");
    }
    drop(posting);
    let after = until("memory is given back", Duration::from_secs(60), || {
        let now = anonymous_memory(cloud.agent.id()?)?;
        ensure!(now < before + (16 << 20), "{now} bytes, {before} before, {during} meanwhile");
        Ok(now)
    })?;
    println!("{before} bytes, {during} with {BODIES} bodies, {after} after them");
    assert!(during > before + BODIES * 65_536, "{during} bytes were no burst");
    Ok(())
}

#[test]
fn one_connection_serves_many_requests() -> Result<()> {
    let (cloud, guest) = cloud_with_guest()?;
    cloud.nova.set_user_data(&guest.port, "#cloud-config\n");
    let mut connection = guest.connect()?;
    for _ in 0..20 {
        assert_eq!(connection.request("GET", "/latest/user-data", &[], b"")?.text(), "#cloud-config\n");
        assert_eq!(connection.request("HEAD", "/latest/user-data", &[], b"")?.body, b"");
        assert_eq!(connection.request("GET", "/latest/nothing", &[], b"")?.status, 404);
    }
    let last = connection.request("GET", "/latest/user-data", &[("Connection", "close")], b"")?;
    assert_eq!(last.text(), "#cloud-config\n");
    assert!(connection.is_closed()?);
    Ok(())
}

/// A connection that is over costs one segment less, and one acknowledgement.
#[test]
fn the_last_answer_brings_the_end_with_it() -> Result<()> {
    let (_cloud, guest) = cloud_with_guest()?;
    for (target, status) in [(META_DATA, 200), ("no-target", 400)] {
        let capture = Capture::start(&guest)?;
        let response = guest.get(target)?;
        ensure!(response.status == status, "{response:?}");
        let segments = capture.segments()?;
        let last: Vec<_> = segments.iter().filter(|segment| segment.is_last()).collect();
        ensure!(last.len() == 1 && last[0].payload() > 0, "{target}: {segments:?}");
        ensure!(last[0].checksum() != Checksum::Wrong, "{target}: {segments:?}");
    }
    Ok(())
}

#[test]
fn a_password_is_posted_in_pieces() -> Result<()> {
    let (cloud, guest) = cloud_with_guest()?;
    let password: Vec<u8> = (0..900).map(|index| b'!' + (index % 90) as u8).collect();
    let mut connection = guest.connect()?;
    let head = http::request_head("POST", "/openstack/latest/password", &[], password.len());
    for piece in [&head[..10], &head[10..], &password[..1], &password[1..500], &password[500..]] {
        connection.send(piece)?;
        // So that the pieces travel, and are read, one by one.
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(connection.response("POST")?.status, 200);
    assert_eq!(cloud.nova.password(&guest.port), password);

    let requests = cloud.nova.take_requests();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/openstack/latest/password"));
    assert_eq!(request.header("Content-Length"), ["900"]);

    let again = connection.request("POST", "/openstack/latest/password", &[], b"other")?;
    assert_eq!(again.status, 409);
    assert!(again.text().contains("There was a conflict"), "{again:?}");
    assert_eq!(guest.get("/openstack/latest/password")?.body, password);
    Ok(())
}

/// Nova cannot read a chunked body: it must arrive there with its length.
#[test]
fn a_chunked_password_arrives_whole() -> Result<()> {
    let (cloud, guest) = cloud_with_guest()?;
    let mut connection = guest.connect()?;
    connection
        .send(b"POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    connection.send(b"6\r\nsecret\r\n")?;
    connection.send(b"5\r\n word\r\n0\r\n\r\n")?;
    assert_eq!(connection.response("POST")?.status, 200);
    assert_eq!(cloud.nova.password(&guest.port), "secret word");
    let requests = cloud.nova.take_requests();
    assert_eq!(requests.last().map(|request| request.header("Content-Length")), Some(vec!["11".to_owned()]));
    Ok(())
}

#[test]
fn every_status_passes() -> Result<()> {
    let (cloud, guest) = cloud_with_guest()?;
    let mut connection = guest.connect()?;
    for status in [
        200, 201, 202, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 409, 410, 413, 418, 429, 500,
        501, 502, 503, 504, 599,
    ] {
        let target = format!("/status/{status}?x=1");
        let body = if matches!(status, 204 | 304) { String::new() } else { format!("says {status}") };
        cloud.nova.answer(
            &target,
            Answer {
                status,
                headers: vec![("x-test", "kept"), ("location", "http://127.0.0.1:8775/elsewhere")],
                body: body.clone().into(),
            },
        );
        let response = connection.request("GET", &target, &[], b"")?;
        assert_eq!((response.status, response.text()), (status, body));
        assert_eq!(response.header("Location"), Some("http://127.0.0.1:8775/elsewhere"));
        assert_eq!(response.header("X-Test"), Some("kept"));
    }
    assert!(cloud.nova.take_requests().iter().all(|request| request.target.starts_with("/status/")));
    Ok(())
}

#[test]
fn nova_is_away_and_returns() -> Result<()> {
    let (mut cloud, guest) = cloud_with_guest()?;
    own_identity(&guest)?;
    cloud.nova.pause();
    for _ in 0..3 {
        assert_eq!(guest.get(META_DATA)?.status, 502);
    }
    cloud.nova.resume(cloud.chassis.host())?;
    own_identity(&guest)
}

#[test]
fn requests_travel_byte_for_byte() -> Result<()> {
    let (mut cloud, guest) = cloud_with_guest()?;
    cloud.nova.pause();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-From: upstream\r\n\r\nok";
    let upstream =
        Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::AnswerAndClose(answer.to_vec()))?;
    for target in [
        "/",
        "/latest/meta-data/",
        "//latest//meta-data",
        "/latest/../openstack/./x",
        "/a%2Fb%2e%2E/%7e?q=%20&r=a+b&&s",
        "/latest/user-data?",
    ] {
        let headers = [("Accept", "*/*"), ("User-Agent", "Cloud-Init/23.1"), ("Cookie", "a=b")];
        assert_eq!(guest.request("GET", target, &headers, b"")?.text(), "ok");
        let requests = upstream.take_requests();
        let [request] = requests.as_slice() else { panic!("{target} became {} requests", requests.len()) };
        let text = String::from_utf8_lossy(request);
        let mut lines: Vec<_> = text.trim_end().split("\r\n").collect();
        assert_eq!(lines.remove(0), format!("GET {target} HTTP/1.1"));
        let mut names: Vec<_> =
            lines.iter().filter_map(|line| Some(line.split_once(':')?.0.to_ascii_lowercase())).collect();
        names.sort();
        names.retain(|name| name != "connection");
        assert_eq!(
            names,
            [
                "accept",
                "host",
                "user-agent",
                "x-forwarded-for",
                "x-instance-id",
                "x-instance-id-signature",
                "x-tenant-id"
            ],
            "{text}"
        );
    }
    Ok(())
}

/// A connection to Nova that died is replaced for a GET; a POST is not sent a second time.
#[test]
fn only_what_may_be_repeated_is_repeated() -> Result<()> {
    let (mut cloud, guest) = cloud_with_guest()?;
    cloud.nova.pause();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Answer(answer.clone()))?;
    assert_eq!(guest.get("/first")?.text(), "ok");
    // The pooled connection will be closed without an answer to its next request.
    upstream.set_script(Script::AnswerAndClose(Vec::new()));
    let post = guest.request("POST", "/openstack/latest/password", &[], b"secret")?;
    assert!(matches!(post.status, 502 | 503), "{post:?}");
    let posts = upstream.take_requests().iter().filter(|request| request.starts_with(b"POST")).count();
    assert_eq!(posts, 1);
    upstream.set_script(Script::Answer(answer));
    assert_eq!(guest.get("/second")?.text(), "ok");
    Ok(())
}

/// The guest gets all of an answer, or sees that it did not, whatever Nova does.
#[test]
fn answers_are_whole_or_visibly_not() -> Result<()> {
    let (mut cloud, guest) = cloud_with_guest()?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Silence)?;
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3\r\n ok\r\n0\r\n\r\n";
    let unbounded = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok ok";
    for answer in [chunked, unbounded] {
        upstream.set_script(Script::AnswerAndClose(answer.into()));
        let response = guest.get("/latest/user-data").with_context(|| format!("of {answer:?}"))?;
        assert_eq!((response.status, response.text().as_str()), (200, "ok ok"));
    }
    for truncated in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok ok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok ok\r\n",
    ] {
        upstream.set_script(Script::AnswerAndClose(truncated.into()));
        match guest.get("/latest/user-data") {
            Err(http::Error::Closed | http::Error::Reset) => {}
            Ok(response) if response.status == 502 => {}
            other => panic!("of {truncated:?} the guest got {other:?}"),
        }
    }
    for broken in ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Len"] {
        upstream.set_script(Script::AnswerAndClose(broken.into()));
        assert_eq!(guest.get("/latest/user-data")?.status, 502, "of {broken:?}");
    }
    Ok(())
}

/// Old and unusual clients.
#[test]
fn every_kind_of_request_is_answered() -> Result<()> {
    let (cloud, guest) = cloud_with_guest()?;
    cloud.nova.set_user_data(&guest.port, "#cloud-config\n");
    let ask = |request: &str| -> Result<Response> {
        let mut connection = guest.connect()?;
        connection.send(request.as_bytes())?;
        connection.response("GET").with_context(|| format!("to {request:?}"))
    };
    for request in [
        "GET /latest/user-data HTTP/1.0\r\n\r\n",
        "GET /latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        "GET /latest/user-data HTTP/1.1\r\nHost: metadata.example.com:8080\r\n\r\n",
        "GET http://169.254.169.254/latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        "GET /latest/user-data HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade, http2-settings\r\n\r\n",
        "GET /latest/user-data HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\nRange: bytes=0-1\r\n\r\n",
    ] {
        let response = ask(request)?;
        assert_eq!((response.status, response.text().as_str()), (200, "#cloud-config\n"), "to {request:?}");
    }
    for request in [
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET /latest/user-data HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    ] {
        let status = ask(request)?.status;
        assert!((400..500).contains(&status), "{status} to {request:?}");
        assert_ne!(status, 404, "to {request:?}: a 404 says that Nova knows");
    }

    let mut wget = guest.netns.command("busybox")?;
    assert_eq!(run(wget.words("wget -qO- http://169.254.169.254/latest/user-data"))?, "#cloud-config\n");

    // Two requests in one segment are answered in their order; a body is asked for when its sender wants that.
    let mut connection = guest.connect()?;
    let pair =
        [META_DATA, "/latest/user-data"].map(|target| http::request_head("GET", target, &[], 0)).concat();
    connection.send(&pair)?;
    is_identity_of(&guest.port, &connection.response("GET")?)?;
    assert_eq!(connection.response("GET")?.text(), "#cloud-config\n");
    let expect = [("Expect", "100-continue")];
    connection.send(&http::request_head("POST", "/openstack/latest/password", &expect, 6))?;
    assert_eq!(connection.response("HEAD")?.status, 100);
    connection.send(b"secret")?;
    assert_eq!(connection.response("POST")?.status, 200);
    assert_eq!(cloud.nova.password(&guest.port), "secret");
    Ok(())
}

/// One guest that holds connections and sends nothing, or too much, does not keep another from being served.
#[test]
fn a_hostile_guest_hurts_nobody() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [hostile, other] = cloud.overlapping_guests()?;
    let limit = Duration::from_millis(300);
    let idle: Vec<_> = (0..300).map_while(|_| hostile.connect_with(None, limit).ok()).collect();
    println!("{} idle connections", idle.len());
    own_identity(&other)?;
    let mut unfinished = Vec::new();
    for mut connection in idle {
        // Those that were turned away are closed by now.
        if connection.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ").is_ok() {
            unfinished.push(connection);
        }
    }
    own_identity(&other)?;
    drop(unfinished);
    let mut huge = hostile.connect()?;
    huge.send(b"GET / HTTP/1.1\r\n")?;
    // Refused at some point, with an answer or without.
    let header = format!("X-A: {}\r\n", "a".repeat(8000));
    let refused = (0..1000).any(|_| huge.send(header.as_bytes()).is_err());
    let answer = huge.response("GET");
    assert!(refused || matches!(&answer, Ok(response) if response.status == 431), "{answer:?}");
    own_identity(&other)?;
    own_identity(&hostile)
}
