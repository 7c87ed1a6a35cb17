//! Nova as it is on a bad day: away, slow, lying, flapping; on machines that die, and behind TLS.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, own_identity},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    http,
    nova::{self, Nova},
    stage::Stage,
    upstream::{Script, Upstream},
    wait::until,
};

mod endpoints;
mod machines;
mod openssl;
mod surplus;
mod tls;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SOON: Duration = Duration::from_secs(30);

fn address(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn answer() -> Script {
    Script::Answer(OK.to_vec())
}

fn cloud(options: &[(&'static str, String)]) -> Result<(Cloud<Stage>, [Guest; 2])> {
    let cloud = Cloud::on(Stage::start()?, &Options { more: options.to_vec(), ..Options::default() })?;
    let guests = cloud.overlapping_guests()?;
    Ok((cloud, guests))
}

/// Waits until a server that was dropped has closed its socket.
fn nobody_listens(cloud: &Cloud<Stage>, address: SocketAddrV4) -> Result<()> {
    until(&format!("nobody listens at {address}"), SOON, || {
        let listens = cloud.chassis.host().run(|| std::net::TcpStream::connect(address).is_ok())?;
        ensure!(!listens, "somebody does");
        Ok(())
    })
}

/// Fails unless a line is in the log, which is written a little later, and not twice.
fn told_once(cloud: &Cloud<Stage>, text: &str) -> Result<()> {
    let count = || -> Result<usize> { Ok(cloud.agent.log()?.matches(text).count()) };
    until(&format!("the log says {text:?}"), SOON, || {
        ensure!(count()? > 0, "it does not");
        Ok(())
    })?;
    ensure!(count()? == 1, "the log says {text:?} {} times", count()?);
    Ok(())
}

/// An agent with one server of our own in Nova's place.
fn with_upstream(
    options: &[(&'static str, String)],
    script: Script,
) -> Result<(Cloud<Stage>, [Guest; 2], Upstream)> {
    let (mut cloud, guests) = cloud(options)?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, script)?;
    Ok((cloud, guests, upstream))
}

/// A server that writes head and body apart, with Nagle's algorithm, sends the second part when the first is acknowledged. That
/// is not delayed by the 40 ms that a kernel waits for something to send along.
#[test]
fn an_answer_in_parts_waits_for_no_delayed_acknowledgement() -> Result<()> {
    let parts = |_: &str| {
        let parts = ["HTTP/1.1 200 OK\r\nContent-", "Length: 11\r\n\r\n", "one, ", "two, \n"];
        parts.map(|part| (Duration::ZERO, part.into())).to_vec()
    };
    let (_cloud, [guest, _], upstream) = with_upstream(&[], Script::Made(parts))?;
    let mut connection = guest.connect()?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let asked = Instant::now();
        assert_eq!(connection.request("GET", "/a", &[], b"")?.text(), "one, two, \n");
        times.push(asked.elapsed());
    }
    times.sort();
    println!("half of the answers took {:?}", times[25]);
    assert!(times[25] < Duration::from_millis(20), "{times:?}");
    assert_eq!(upstream.connections(), 1, "the connections that are kept are those that wait");
    Ok(())
}

/// Requests that are not safe to repeat are sent once, whatever becomes of them.
#[test]
fn a_post_is_sent_at_most_once() -> Result<()> {
    let hosts = "nova_metadata_host = 127.0.0.1:8801,127.0.0.1:8802".to_owned();
    let (cloud, [guest, _]) = cloud(&[("DEFAULT", hosts)])?;
    let close = || Script::AnswerAndClose(Vec::new());
    let both = [8801, 8802].map(|port| Upstream::start(cloud.chassis.host(), address(port), answer()));
    let [first, second] = both;
    let (first, second) = (first?, second?);
    // Pooled connections to both, which will turn out to be dead.
    for _ in 0..4 {
        assert_eq!(guest.get("/a")?.text(), "ok");
    }
    let posts = |upstream: &Upstream| {
        upstream.take_requests().iter().filter(|request| request.starts_with(b"POST")).count()
    };
    first.set_script(close());
    second.set_script(close());
    for _ in 0..4 {
        let response = guest.request("POST", "/openstack/latest/password", &[], b"secret")?;
        assert_eq!(response.status, 502, "{}", response.text());
        assert_eq!(posts(&first) + posts(&second), 1);
    }
    // And it is not lost to a dead connection either.
    first.set_script(answer());
    second.set_script(answer());
    assert_eq!(guest.get("/b")?.text(), "ok");
    for _ in 0..4 {
        assert_eq!(guest.request("POST", "/openstack/latest/password", &[], b"secret")?.text(), "ok");
    }
    assert_eq!(posts(&first) + posts(&second), 4);
    Ok(())
}

/// A server that answers without reading a body would take it for the next request: no other guest's goes there.
#[test]
fn a_connection_that_carried_a_body_carries_nothing_else() -> Result<()> {
    let (mut cloud, [guest, other]) = cloud(&[("metadata_ebpf", "workers = 1".to_owned())])?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, answer())?;
    for (method, body, connections) in [
        ("GET", "", 1),
        ("GET", "", 1),
        ("POST", "a", 2),
        ("GET", "", 2),
        ("GET", "b", 3),
        ("PUT", "c", 4),
        ("HEAD", "", 4),
    ] {
        if method == "HEAD" {
            upstream.set_script(Script::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_vec()));
        }
        assert_eq!(guest.request(method, "/a", &[], body.as_bytes())?.status, 200);
        assert_eq!(upstream.connections(), connections, "after {method} with {body:?}");
    }
    upstream.set_script(answer());
    // Nor is one shared by two instances, or used again after an answer without a body.
    for (who, connections) in [(&other, 5), (&other, 5), (&guest, 6), (&guest, 6), (&other, 6)] {
        assert_eq!(who.get("/b")?.text(), "ok");
        assert_eq!(upstream.connections(), connections);
    }
    Ok(())
}

/// Nor does it keep a port of this machine, of which a guest could use up all.
#[test]
fn a_connection_that_is_done_leaves_nothing_behind() -> Result<()> {
    let (cloud, [guest, _], upstream) = with_upstream(&[], answer())?;
    for _ in 0..50 {
        assert_eq!(guest.request("POST", "/a", &[], b"secret")?.text(), "ok");
    }
    assert_eq!(upstream.connections(), 50);
    until("the servers have seen the ends", SOON, || {
        let table = cloud.chassis.host().run(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
        let port = format!(":{:04X}", nova::ADDRESS.port());
        let states = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let left: Vec<_> =
            states.filter(|words| words[2].ends_with(&port)).map(|words| words[3].to_owned()).collect();
        assert!(!left.contains(&"06".to_owned()), "{} are in TIME_WAIT", left.len());
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

#[test]
fn a_slow_nova_is_not_waited_for_for_ever() -> Result<()> {
    let impatient = [("metadata_haproxy", "timeout_server = 1".to_owned())];
    let (cloud, [guest, _], upstream) = with_upstream(&impatient, Script::Silence)?;
    let asked = Instant::now();
    let response = guest.get(META_DATA)?;
    assert_eq!(response.status, 504, "{}", response.text());
    assert!(response.text().contains(&guest.port.instance), "{}", response.text());
    assert!(asked.elapsed() >= Duration::from_secs(1), "after {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(25), "after {:?}", asked.elapsed());
    assert_eq!(upstream.take_requests().len(), 1, "a request that takes long is not made twice");

    // An answer that begins and does not go on is broken off, visibly.
    upstream.set_script(Script::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_vec()));
    match guest.get(META_DATA) {
        Err(http::Error::Reset | http::Error::Closed) => {}
        other => panic!("the guest got {other:?}"),
    }
    upstream.set_script(Script::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_vec()));
    assert_eq!(guest.get(META_DATA)?.status, 504);
    assert_eq!(cloud.agent.metric("metadata_refusals_total{reason=\"nova_timeout\"}")?, 2.0);
    assert_eq!(cloud.agent.metric("metadata_requests_unfinished_total{reason=\"nova_broke_off\"}")?, 1.0);
    Ok(())
}

#[test]
fn a_slow_request_of_one_guest_delays_no_other() -> Result<()> {
    let (_cloud, [guest, other], upstream) = with_upstream(&[], Script::Held(OK.to_vec()))?;
    let mut slow = guest.connect()?;
    slow.send(&http::request_head("GET", "/slow", &[], 0))?;
    until("the slow request is with Nova", SOON, || {
        ensure!(upstream.take_requests().len() == 1, "it is not");
        Ok(())
    })?;
    upstream.set_script(answer());
    for guest in [&other, &guest] {
        assert_eq!(guest.get("/fast")?.text(), "ok");
    }
    upstream.release();
    assert_eq!(slow.response("GET")?.text(), "ok");
    Ok(())
}

#[test]
fn what_a_lying_nova_says_is_not_passed_on() -> Result<()> {
    let (_cloud, [guest, _], upstream) = with_upstream(&[], answer())?;
    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    for script in [
        Script::Endless(head.clone(), b"X-A: b\r\n".to_vec()),
        Script::Endless(head, b"a".to_vec()),
        Script::AnswerAndClose(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!".to_vec(),
        ),
        Script::AnswerAndClose(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok".to_vec(),
        ),
        Script::AnswerAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok".to_vec()),
        Script::AnswerAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nok".to_vec()),
        Script::AnswerAndClose(b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\nok".to_vec()),
        Script::AnswerAndClose(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n".to_vec()),
        Script::AnswerAndClose(b"HTTP/9.9 200 OK\r\n\r\nok".to_vec()),
        Script::AnswerAndClose(b"220 smtp.example.com ESMTP\r\n".to_vec()),
        Script::AnswerAndClose(vec![0; 1000]),
    ] {
        upstream.set_script(script.clone());
        let response = guest.get(META_DATA)?;
        assert_eq!(response.status, 502, "of {script:?}: {}", response.text());
        assert!(response.text().contains(&guest.port.instance), "{}", response.text());
    }
    // Bytes beyond the announced ones are nobody's answer.
    upstream.set_script(Script::Answer([OK, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nvictim"].concat()));
    for _ in 0..5 {
        assert_eq!(guest.get(META_DATA)?.text(), "ok");
    }
    // What comes before the answer is not the answer.
    let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".to_vec();
    upstream.set_script(Script::Answer([&interim, OK].concat()));
    let response = guest.get(META_DATA)?;
    assert_eq!((response.status, response.text().as_str(), response.header("Link")), (200, "ok", None));
    Ok(())
}

/// A Nova that is away for a moment ends no boot, and one that stays away is not waited for long.
#[test]
fn a_nova_that_is_restarted_is_waited_for() -> Result<()> {
    let (cloud, [guest, other], upstream) = with_upstream(&[], answer())?;
    assert_eq!(guest.get("/pooled")?.text(), "ok");
    drop(upstream);
    nobody_listens(&cloud, nova::ADDRESS)?;
    let asked = Instant::now();
    let (upstream, answers) = thread::scope(|scope| -> Result<_> {
        let get = scope.spawn(|| guest.get("/a"));
        let post = scope.spawn(|| other.request("POST", "/a", &[], b"secret"));
        thread::sleep(Duration::from_secs(1));
        let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, answer())?;
        Ok((upstream, [get.join(), post.join()]))
    })?;
    for answer in answers {
        assert_eq!(answer.expect("a guest panicked")?.text(), "ok");
    }
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert_eq!(upstream.take_requests().len(), 2);

    drop(upstream);
    nobody_listens(&cloud, nova::ADDRESS)?;
    let asked = Instant::now();
    assert_eq!(guest.get("/b")?.status, 502);
    let took = asked.elapsed();
    assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

/// Nor does one that loses what it has in hand: that is asked for once more, if it is safe to.
#[test]
fn a_request_that_a_nova_loses_is_made_again() -> Result<()> {
    let (cloud, [guest, other], upstream) = with_upstream(&[], Script::Held(OK.to_vec()))?;
    let (mut get, mut post) = (guest.connect()?, other.connect()?);
    get.send(&http::request_head("GET", "/a", &[], 0))?;
    post.send(&http::request_head("POST", "/a", &[], 0))?;
    until("both are with Nova", SOON, || {
        ensure!(upstream.connections() == 2, "{} are", upstream.connections());
        Ok(())
    })?;
    drop(upstream);
    let upstream =
        until("Nova is back", SOON, || Upstream::start(cloud.chassis.host(), nova::ADDRESS, answer()))?;
    assert_eq!(get.response("GET")?.text(), "ok");
    assert_eq!(post.response("POST")?.status, 502);
    let requests = upstream.take_requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].starts_with(b"GET"));
    Ok(())
}

/// Guests get Nova's answer; why is for the operator, once and not with each of them.
#[test]
fn another_secret_than_novas_is_told() -> Result<()> {
    let (cloud, [guest, _]) = cloud(&[("DEFAULT", "metadata_proxy_shared_secret = another".to_owned())])?;
    for _ in 0..5 {
        let response = guest.get(META_DATA)?;
        assert_eq!(response.status, 403);
        assert!(response.text().contains("Invalid proxy request signature."), "{}", response.text());
    }
    told_once(&cloud, "metadata_proxy_shared_secret probably differs")
}

#[test]
fn a_name_that_is_not_found_is_told() -> Result<()> {
    let hosts = format!("nova_metadata_host = nova.invalid, {}", nova::ADDRESS);
    let (cloud, [guest, _]) = cloud(&[("DEFAULT", hosts)])?;
    for _ in 0..4 {
        own_identity(&guest)?;
    }
    told_once(&cloud, "cannot look up nova.invalid: ")
}

/// An agent that was started before Nova serves as soon as Nova does.
#[test]
fn nova_starts_last() -> Result<()> {
    let (mut cloud, [guest, _]) = cloud(&[])?;
    cloud.nova.pause();
    // A process that another test starts just now may have a copy of the listener until it runs its program.
    until("nobody listens", SOON, || {
        let response = guest.get(META_DATA)?;
        assert_eq!(response.status, 502, "{}", response.text());
        ensure!(response.text().contains("cannot reach nova"), "{}", response.text());
        Ok(())
    })?;
    cloud.nova = Nova::start(cloud.chassis.host())?;
    cloud.nova.add_instance(&guest.port);
    own_identity(&guest)
}
