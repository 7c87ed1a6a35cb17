//! Requests that attackers send: refused without a trace at Nova, or served with nothing of the trick in them.

use std::{net::Shutdown, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    check::identity_lines,
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    nova,
    stage::Stage,
    upstream::{Script, Upstream},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Request that an attacker hopes Nova takes for one of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\nX-Instance-ID: victim\r\n\r\n";

fn recorded() -> Result<(Cloud<Stage>, Guest, Upstream)> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, Script::Answer(OK.to_vec()))?;
    Ok((cloud, guest, upstream))
}

/// The one request that Nova got.
fn only(upstream: &Upstream) -> Result<String> {
    let requests = upstream.take_requests();
    let mut texts: Vec<_> =
        requests.iter().map(|request| String::from_utf8_lossy(request).into_owned()).collect();
    ensure!(texts.len() == 1, "{} requests: {texts:?}", texts.len());
    Ok(texts.remove(0))
}

#[test]
fn what_is_refused_leaves_no_trace() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let long = "a".repeat(20_000);
    let post = "POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\n";
    let get = "GET /latest/user-data HTTP/1.1\r\nHost: x\r\n";
    let cases: &[(String, u16)] = &[
        // What some take for a part of the path, and others cut off.
        ("GET /latest/user-data#/../x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400),
        // Two lengths, one length in two ways, and lengths that are none.
        (format!("{post}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), 400),
        (format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), 400),
        (format!("{post}Content-Length: 5, 5\r\n\r\nhello"), 400),
        (format!("{post}Content-Length: +5\r\n\r\nhello"), 400),
        (format!("{post}Content-Length: -1\r\n\r\n"), 400),
        (format!("{post}Content-Length: 0x5\r\n\r\nhello"), 400),
        (format!("{post}Content-Length: 5 5\r\n\r\nhello"), 400),
        (format!("{post}Content-Length:\r\n\r\n"), 400),
        (format!("{post}Content-Length: 18446744073709551617\r\n\r\n"), 400),
        // A length and chunks, in either order, and chunks by another name.
        (format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"), 400),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 400),
        // Chunks that are none.
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\nGET / HTTP/1.1\r\n\r\n"), 400),
        // Lines that end, or do not, where others would say so.
        (format!("{get}X-A: b\n\r\n"), 400),
        ("GET /latest/user-data HTTP/1.1\nHost: x\n\n".to_owned(), 400),
        (format!("{get}X-A: b\rX-B: c\r\n\r\n"), 400),
        (format!("{get}X-A: b\r\n folded\r\n\r\n"), 400),
        (format!("{get}\tX-A: b\r\n\r\n"), 400),
        // Names and values.
        (format!("{get}: b\r\n\r\n"), 400),
        (format!("{get}X-A : b\r\n\r\n"), 400),
        (format!("{get}X A: b\r\n\r\n"), 400),
        (format!("{get}X-A\r\n\r\n"), 400),
        (format!("{get}X-A: b\0c\r\n\r\n"), 400),
        (format!("{get}X\0A: b\r\n\r\n"), 400),
        (format!("{get}Host: y\r\n\r\n"), 400),
        // Request lines.
        ("GET /a b HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET  /a HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /a\r\n\r\n".to_owned(), 400),
        ("GET /\0 HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1 \r\n\r\n".to_owned(), 400),
        ("GET / HTTP/3.0\r\n\r\n".to_owned(), 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        // We are no proxy.
        ("CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n".to_owned(), 400),
        ("GET http://another.host/latest/user-data HTTP/1.1\r\nHost: another.host\r\n\r\n".to_owned(), 400),
        ("GET http://169.254.169.254@another.host/ HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET https://169.254.169.254/ HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400),
        // It would tell the guest what we add.
        ("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400),
        // Too much.
        (format!("{get}X-A: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), 431),
        (format!("{get}{}\r\n", "A: b\r\n".repeat(101)), 431),
        (format!("{post}Content-Length: 65537\r\n\r\n"), 413),
    ];
    for (request, status) in cases {
        let bytes = format!("{request}{SMUGGLED}");
        let mut connection = guest.connect()?;
        connection.send(bytes.as_bytes())?;
        let shown = &request[..request.len().min(200)];
        let response = connection.response("POST").with_context(|| format!("to {shown:?}"))?;
        assert_eq!(response.status, *status, "to {shown:?}: {}", response.text());
        let text = response.text();
        assert!(text.contains(&guest.port.id), "{text}");
        assert!(connection.is_closed().with_context(|| format!("after {shown:?}"))?, "after {shown:?}");
    }
    // Not so much as the beginning of one.
    assert_eq!((upstream.take_requests(), upstream.connections()), (Vec::<Vec<u8>>::new(), 0));
    assert_eq!(guest.get("/after")?.text(), "ok");
    assert!(only(&upstream)?.starts_with("GET /after HTTP/1.1\r\n"));
    Ok(())
}

/// Bytes around requests and bodies have bounds of their own, or a guest could keep the agent busy with nothing.
#[test]
fn nothing_is_read_without_end() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let post = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extensions = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(100);
    let cases = [
        ("\r\n".repeat(20_000), 431),
        (format!("GET /a HTTP/1.1\r\n\r\n{}", "\r\n".repeat(20_000)), 431),
        (format!("{post}{extensions}0\r\n\r\n"), 413),
    ];
    for (bytes, status) in cases {
        let mut connection = guest.connect()?;
        connection.send(bytes.as_bytes())?;
        if bytes.starts_with("GET") {
            assert_eq!(connection.response("GET")?.text(), "ok");
        }
        assert_eq!(connection.response("POST")?.status, status);
        assert!(connection.is_closed()?);
    }
    ensure!(only(&upstream)?.starts_with("GET /a "));
    // A body in the smallest of chunks is no such thing.
    let mut connection = guest.connect()?;
    connection.send(format!("{post}{}0\r\n\r\n", "1\r\na\r\n".repeat(2000)).as_bytes())?;
    assert_eq!(connection.response("POST")?.text(), "ok");
    assert!(only(&upstream)?.ends_with(&"a".repeat(2000)));
    Ok(())
}

/// Guests that end their side early are told so; those that end it after their request get its answer.
#[test]
fn a_guest_may_end_its_side() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let mut connection = guest.connect()?;
    connection.send(b"POST /a HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello")?;
    connection.stream().shutdown(Shutdown::Write)?;
    let response = connection.response("POST")?;
    assert_eq!(response.status, 400, "{}", response.text());
    assert!(response.text().contains("a body that ends too early"), "{}", response.text());
    assert!(connection.is_closed()?);
    assert_eq!(upstream.connections(), 0);
    let mut connection = guest.connect()?;
    connection.send(b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")?;
    connection.stream().shutdown(Shutdown::Write)?;
    assert_eq!(connection.response("POST")?.text(), "ok");
    assert!(connection.is_closed()?);
    Ok(())
}

/// Bytes that a guest still sends after its last request cost it nothing of the answer.
#[test]
fn an_answer_is_not_overtaken_by_a_reset() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let body = vec![b'x'; 200_000];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    upstream.set_script(Script::Held([head.as_bytes(), &body].concat()));
    let mut connection = guest.connect()?;
    connection.send(b"POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")?;
    connection.send(b"\r\n")?;
    upstream.release();
    thread::sleep(Duration::from_millis(300));
    assert!(connection.response("POST")?.body == body);
    Ok(())
}

/// A body that looks like a request is a body, and what follows it is the guest's next request, as the guest.
#[test]
fn a_request_within_a_body_is_a_body() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let host = format!("Host: {}\r\n", nova::ADDRESS);
    let ours = identity_lines(&guest.port);
    let length = SMUGGLED.len();
    let post = "POST /openstack/latest/password HTTP/1.1\r\n";
    for framed in [
        format!("{post}Content-Length: {length}\r\n\r\n{SMUGGLED}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n{length:x};x=y\r\n{SMUGGLED}\r\n0\r\n\r\n"),
    ] {
        let mut connection = guest.connect()?;
        connection.send(framed.as_bytes())?;
        assert_eq!(connection.response("POST")?.text(), "ok");
        assert_eq!(only(&upstream)?, format!("{post}{host}Content-Length: {length}\r\n{ours}\r\n{SMUGGLED}"));
        connection.send(SMUGGLED.as_bytes())?;
        assert_eq!(connection.response("GET")?.text(), "ok");
        assert_eq!(only(&upstream)?, format!("GET /smuggled HTTP/1.1\r\n{host}{ours}\r\n"));
    }
    Ok(())
}

/// The same headers under every name that a server behind us might take for ours.
#[test]
fn identity_is_ours_alone() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let expected = format!(
        "GET /latest/user-data HTTP/1.1\r\nHost: {}\r\nAccept: */*\r\n{}\r\n",
        nova::ADDRESS,
        identity_lines(&guest.port)
    );
    for trick in [
        "X-Instance-ID: victim",
        "x-instance-id: victim\r\nX-INSTANCE-ID: victim",
        "X-Tenant-ID: victim",
        "X-Instance-ID-Signature: 00",
        "X-Forwarded-For: 192.168.1.99",
        "X-Forwarded-For: 192.168.1.99, 10.0.0.1",
        "X-Real-IP: 192.168.1.99",
        "Forwarded: for=192.168.1.99;host=victim",
        "X-Metadata-Provider: victim\r\nX-Metadata-Provider-Signature: 00",
        "X-OVN-Network-ID: victim",
        "X-Neutron-Router-ID: victim",
        "X_Instance_ID: victim\r\nX_Tenant_ID: victim\r\nX_Forwarded_For: victim",
        "Connection: X-Instance-ID, X-Tenant-ID, X-Instance-ID-Signature, close",
        "Connection: keep-alive, Host, Accept",
        "Proxy-Connection: X-Instance-ID",
        "Keep-Alive: timeout=5",
        "TE: trailers\r\nTrailer: X-Instance-ID",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        "Upgrade: websocket\r\nConnection: Upgrade",
        "Authorization: Basic eDp4\r\nProxy-Authorization: Basic eDp4\r\nCookie: a=b",
        "X-aws-ec2-metadata-token: x",
        "Expect: 100-continue",
        "Max-Forwards: 0",
        "X-HTTP-Method-Override: DELETE",
        "X-Original-URL: /victim\r\nX-Rewrite-URL: /victim",
    ] {
        let mut connection = guest.connect()?;
        let request =
            format!("GET /latest/user-data HTTP/1.1\r\nHost: victim\r\nAccept: */*\r\n{trick}\r\n\r\n");
        connection.send(request.as_bytes())?;
        assert_eq!(connection.response("GET")?.text(), "ok", "with {trick:?}");
        assert_eq!(only(&upstream)?, expected, "with {trick:?}");
    }
    Ok(())
}

#[test]
fn targets_and_values_are_bytes() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let mut request =
        b"GET /\xff\xfe/%00/%23x\"<>`{}|\\^?\xe4 HTTP/1.1\r\nUser-Agent: caf\xe9 \xf0\x9f\r\n\r\n".to_vec();
    let mut connection = guest.connect()?;
    connection.send(&request)?;
    assert_eq!(connection.response("GET")?.text(), "ok");
    let requests = upstream.take_requests();
    // Before the agent's own lines come the guest's, but for Host.
    request.truncate(request.len() - 2);
    let line = request.windows(2).position(|window| window == b"\r\n").context("no line")? + 2;
    let (line, fields) = request.split_at(line);
    let host = format!("Host: {}\r\n", nova::ADDRESS);
    let expected = [line, host.as_bytes(), fields, identity_lines(&guest.port).as_bytes(), b"\r\n"].concat();
    assert_eq!(requests, [expected]);
    Ok(())
}

#[test]
fn every_method_reaches_nova() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get"] {
        if method == "HEAD" {
            upstream.set_script(Script::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_vec()));
        }
        let response = guest.request(method, "/openstack/latest/password", &[], b"")?;
        upstream.set_script(Script::Answer(OK.to_vec()));
        assert_eq!(response.status, 200, "{method}");
        assert_eq!(response.header("Content-Length"), Some("2"), "{method}");
        let text = only(&upstream)?;
        assert!(text.starts_with(&format!("{method} /openstack/latest/password HTTP/1.1\r\n")), "{text}");
    }
    Ok(())
}

/// A request may arrive in pieces of any size, and several in one.
#[test]
fn segments_mean_nothing() -> Result<()> {
    let (_cloud, guest, upstream) = recorded()?;
    let requests = b"\r\nPOST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX-T: y\r\n\r\n\
        GET /b HTTP/1.1\r\nHost: x\r\n\r\nPUT /c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\r\n\0";
    for size in [1, 7, requests.len()] {
        let mut connection = guest.connect()?;
        for piece in requests.chunks(size) {
            connection.send(piece)?;
            if size < 10 {
                thread::sleep(Duration::from_micros(300));
            }
        }
        for _ in 0..3 {
            assert_eq!(connection.response("GET")?.text(), "ok");
        }
        let seen: Vec<_> = upstream
            .take_requests()
            .into_iter()
            .map(|request| {
                let text = String::from_utf8_lossy(&request).into_owned();
                let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
                (head.split(' ').take(2).collect::<Vec<_>>().join(" "), body.to_owned())
            })
            .collect();
        let expected = [("POST /a", "abc"), ("GET /b", ""), ("PUT /c", "\r\n\0")];
        assert_eq!(
            seen,
            expected.map(|(line, body)| (line.to_owned(), body.to_owned())),
            "in pieces of {size}"
        );
    }
    Ok(())
}
