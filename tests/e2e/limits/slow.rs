//! Guests that take their time or send too much: they are given up, and others do not notice.

use super::*;

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
