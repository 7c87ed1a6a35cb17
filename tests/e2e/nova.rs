//! Nova as it is on a bad day: away, slow, lying, flapping; on machines that die, and behind TLS.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    http,
    nova::{self, Nova},
    stage::Stage,
    upstream::{Script, Upstream},
    wait::until,
};

#[path = "nova/machines.rs"]
mod machines;
#[path = "nova/tls.rs"]
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

/// Whether a line is in the log, which is written a little later, and not twice.
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

#[test]
fn endpoints_stand_in_for_each_other() -> Result<()> {
    let hosts = "nova_metadata_host = 127.0.0.1:8801, localhost:8802 127.0.0.1:8803".to_owned();
    let (cloud, [guest, _]) = cloud(&[("DEFAULT", hosts)])?;
    let host = cloud.chassis.host();
    let start = |port| Upstream::start(host, address(port), answer());
    let (first, second, third) = (start(8801)?, start(8802)?, start(8803)?);
    let counts = || [&first, &second, &third].map(|upstream| upstream.take_requests().len());
    for _ in 0..9 {
        assert_eq!(guest.get("/a")?.text(), "ok");
    }
    assert_eq!(counts(), [3, 3, 3], "each has its share");

    // One closes its connections without an answer, which only who asks can find out.
    second.set_script(Script::AnswerAndClose(Vec::new()));
    for _ in 0..9 {
        assert_eq!(guest.get("/b")?.text(), "ok");
    }
    let up = |endpoint: &str| cloud.agent.metric(&format!("metadata_nova_up{{endpoint=\"{endpoint}\"}}"));
    assert_eq!([up("127.0.0.1:8801")?, up("localhost:8802")?, up("127.0.0.1:8803")?], [1.0, 0.0, 1.0]);
    counts();
    second.set_script(answer());
    until("it is asked again", SOON, || {
        assert_eq!(guest.get("/c")?.text(), "ok");
        ensure!(!second.take_requests().is_empty(), "it is not");
        Ok(())
    })?;
    assert_eq!(up("localhost:8802")?, 1.0);

    // Two are gone altogether: nobody listens. That concerns a POST as little as a GET, since nothing was sent.
    drop((first, second));
    nobody_listens(&cloud, address(8801))?;
    nobody_listens(&cloud, address(8802))?;
    third.take_requests();
    for round in 0..6 {
        let method = if round % 2 == 0 { "POST" } else { "GET" };
        assert_eq!(guest.request(method, "/d", &[], b"")?.text(), "ok", "{method} in round {round}");
    }
    assert_eq!(third.take_requests().len(), 6);
    Ok(())
}

/// Nova's servers close the connection of a request that they cannot read. A guest that sends such ones shall not have
/// the endpoints avoided, for itself or others.
#[test]
fn no_guest_decides_about_novas_health() -> Result<()> {
    let hosts = "nova_metadata_host = 127.0.0.1:8801,127.0.0.1:8802".to_owned();
    let (cloud, [guest, other]) = cloud(&[("DEFAULT", hosts)])?;
    let start = |port| Upstream::start(cloud.chassis.host(), address(port), answer());
    let servers = [start(8801)?, start(8802)?];
    let counts = || servers.each_ref().map(|server| server.take_requests().len());
    for script in [Script::AnswerAndClose(Vec::new()), answer()] {
        for server in &servers {
            server.set_script(script.clone());
        }
        let expected = if matches!(script, Script::Answer(_)) { (200, [2, 2]) } else { (502, [4, 4]) };
        for _ in 0..4 {
            assert_eq!(other.get("/a")?.status, expected.0);
            for endpoint in ["127.0.0.1:8801", "127.0.0.1:8802"] {
                let up = cloud.agent.metric(&format!("metadata_nova_up{{endpoint=\"{endpoint}\"}}"))?;
                assert_eq!(up, 1.0, "{endpoint}");
            }
        }
        assert_eq!(counts(), expected.1);
    }
    // What is sent once proves nothing either.
    servers[0].set_script(Script::AnswerAndClose(Vec::new()));
    servers[1].set_script(Script::AnswerAndClose(Vec::new()));
    assert_eq!(guest.request("POST", "/a", &[], b"secret")?.status, 502);
    let failures =
        |port| cloud.agent.metric(&format!("metadata_nova_failures_total{{endpoint=\"127.0.0.1:{port}\"}}"));
    assert_eq!(failures(8801)? + failures(8802)?, 9.0);
    assert!(!cloud.agent.log()?.contains("nova failed"));
    Ok(())
}

/// What is not safe to repeat is sent once, whatever becomes of it.
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
    assert_eq!(other.get("/b")?.text(), "ok");
    assert_eq!(upstream.connections(), 4);
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
    assert_eq!(guest.get(META_DATA)?.status, 502);
    assert!(cloud.agent.metric("metadata_refusals_total{reason=\"nova_timeout\"}")? >= 1.0);
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

/// Servers that come and go are not noticed as long as one is there.
#[test]
fn a_flapping_nova_is_not_noticed() -> Result<()> {
    let hosts = format!("nova_metadata_host = 127.0.0.1:8801, {}", nova::ADDRESS);
    let (cloud, [guest, _]) = cloud(&[("DEFAULT", hosts)])?;
    let flapping = Upstream::start(cloud.chassis.host(), address(8801), Script::AnswerAndClose(Vec::new()))?;
    let broken: [&[u8]; 3] = [b"", b"HTTP/1.1 200 OK\r\nConte", b"nonsense\r\n\r\n"];
    let until = Instant::now() + Duration::from_secs(5);
    let mut answers = 0;
    while Instant::now() < until {
        flapping.set_script(Script::AnswerAndClose(broken[answers % 3].to_vec()));
        is_identity_of(&guest.port, &guest.get(META_DATA)?)
            .with_context(|| format!("after {answers} answers"))?;
        answers += 1;
        thread::sleep(Duration::from_millis(2));
    }
    assert!(flapping.connections() > 2, "it was given {} chances", flapping.connections());
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
