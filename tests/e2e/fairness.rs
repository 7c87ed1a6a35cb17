//! Many guests together, or one with many ports, take all there is: others get in, and whoever has most gives way.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_tests::{
    agent::{Options, service_namespace},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    guest::{Guest, METADATA},
    http::{self, Connection},
    netns::Namespace,
    nova,
    ovn::{Lab, Routing},
    port::Port,
    stage::Stage,
    trunk::Uplink,
    upstream::{Script, Upstream},
    wait::until,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

const SOON: Duration = Duration::from_secs(30);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PASSWORD: &str = "/openstack/latest/password";

/// Guests on taps of their own, all of them with one address, and known to Nova.
fn cloud<const N: usize>(options: &[&str]) -> Result<(Cloud<Stage>, [Guest; N])> {
    let more = options.iter().map(|line| ("metadata_ebpf", (*line).to_owned())).collect();
    let cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let guests = cloud.guests()?;
    Ok((cloud, guests))
}

/// The same with a server of our own in Nova's place.
fn with_upstream<const N: usize>(
    options: &[&str],
    script: Script,
) -> Result<(Cloud<Stage>, [Guest; N], Upstream)> {
    let (mut cloud, guests) = cloud(options)?;
    cloud.nova.pause();
    let upstream = Upstream::start(cloud.chassis.host(), nova::ADDRESS, script)?;
    Ok((cloud, guests, upstream))
}

/// Connections on which one request was answered.
fn park(guest: &Guest, count: usize) -> Result<Vec<Connection<TcpStream>>> {
    let open = || -> Result<Connection<TcpStream>> {
        let mut connection = guest.connect()?;
        is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        Ok(connection)
    };
    (0..count).map(|_| open()).collect()
}

/// Requests whose heads are sent.
fn ask(guest: &Guest, count: usize) -> Result<Vec<Connection<TcpStream>>> {
    let open = || -> Result<Connection<TcpStream>> {
        let mut connection = guest.connect()?;
        connection.send(&http::request_head("GET", "/a", &[], 0))?;
        Ok(connection)
    };
    (0..count).map(|_| open()).collect()
}

/// Requests with that much of a body of 60,000 bytes, which does not go on.
fn stall(guest: &Guest, count: usize, sent: usize) -> Result<Vec<Connection<TcpStream>>> {
    let body = vec![b'x'; sent];
    let begin = || -> Result<Connection<TcpStream>> {
        let mut connection = guest.connect()?;
        connection.send(&http::request_head("POST", PASSWORD, &[], 60_000))?;
        connection.send(&body)?;
        Ok(connection)
    };
    (0..count).map(|_| begin()).collect()
}

/// Number of connections that were not closed by the other side.
fn open(connections: &[Connection<TcpStream>]) -> Result<usize> {
    let mut open = 0;
    for connection in connections {
        connection.stream().set_nonblocking(true)?;
        open += usize::from(
            connection.stream().peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
        );
        connection.stream().set_nonblocking(false)?;
    }
    Ok(open)
}

fn taken(upstream: &Upstream, count: usize) -> Result<()> {
    let mut requests = Vec::new();
    until(&format!("{count} requests are with Nova"), SOON, || {
        requests.extend(upstream.take_requests());
        ensure!(requests.len() == count, "{} are", requests.len());
        Ok(())
    })
}

fn metric_is(cloud: &Cloud<Stage>, name: &str, expected: f64) -> Result<()> {
    until(&format!("{name} is {expected}"), SOON, || {
        let value = cloud.agent.metric(name)?;
        ensure!(value == expected, "it is {value}");
        Ok(())
    })
}

/// A trunk's ports are one instance's: what each of them takes counts for all.
#[test]
fn a_trunk_has_no_more_than_a_port() -> Result<()> {
    let more = ["port_connections = 6", "port_requests = 3", "request_rate = 1", "request_burst = 12"]
        .map(|line| ("metadata_ebpf", line.to_owned()))
        .to_vec();
    let cloud = Cloud::on(Lab::start()?, &Options { more, ..Options::default() })?;
    let network = |name| cloud.chassis.add_network(name, Routing::Routed);
    let parent = Port::new(&network("parent")?)?;
    let subport = |vlan: u8| -> Result<(u16, Port)> {
        let address = Ipv4Addr::new(192, 168, 1, vlan);
        Ok((vlan.into(), Port { address, ..Port::subport(&network("subport")?, &parent)? }))
    };
    let subports = (20..23).map(subport).collect::<Result<Vec<_>>>()?;
    cloud.nova.add_instance(&parent);
    let trunk = cloud.chassis.add_trunk(Uplink::Tap, parent, subports)?;
    let other = cloud.add_guest(&network("other")?)?;
    for guest in trunk.guests().chain([&other]) {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
    }
    let mut parked = Vec::new();
    for guest in trunk.guests().take(3) {
        parked.extend(park(guest, 2)?);
    }
    let refused = trunk.subports[2].1.get(META_DATA)?;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("too many connections"), "{}", refused.text());
    own_identity(&other)?;
    // Six requests of the trunk's were answered; its burst is twelve.
    let connection = parked.first_mut().context("some are parked")?;
    let refused = until("the burst is used up", SOON, || {
        let response = connection.request("GET", META_DATA, &[], b"")?;
        ensure!(response.status != 200, "still served");
        Ok(response)
    })?;
    assert!(refused.text().contains("too many requests in too short a time"), "{}", refused.text());
    own_identity(&other)
}

/// All connections are taken, by guests of whom none is beyond its limit. Another one gets in as often as it likes, and
/// keeps what it has; those who have most lose what is idle.
#[test]
fn a_guest_with_few_connections_gets_in() -> Result<()> {
    let (cloud, [other, greedy @ ..]) = cloud::<5>(&["connections = 16", "port_connections = 4"])?;
    let mut parked = Vec::new();
    for guest in &greedy {
        parked.push(park(guest, 4)?);
    }
    assert_eq!(cloud.agent.metric("metadata_connections")?, 16.0);
    assert_eq!(cloud.agent.admin("GET", "/ready")?.text(), "ready\n");
    let mut kept = park(&other, 1)?;
    let evictions = "metadata_gave_way_total{limit=\"connections\"}";
    assert_eq!(cloud.agent.metric(evictions)?, 1.0);
    for _ in 0..20 {
        own_identity(&other)?;
        is_identity_of(&other.port, &kept[0].request("GET", META_DATA, &[], b"")?)?;
        // The others take what they can get again.
        for (guest, parked) in greedy.iter().zip(&mut parked) {
            let mut connection = guest.connect()?;
            if connection.request("GET", META_DATA, &[], b"").is_ok_and(|response| response.status == 200) {
                parked.push(connection);
            }
        }
    }
    for (number, parked) in parked.iter().enumerate() {
        let open = open(parked)?;
        assert!((3..=4).contains(&open), "{open} connections of guest {number} are open");
    }
    // It is told: on the log once, and to who asks whether all is well, which it is.
    let ready = cloud.agent.admin("GET", "/ready")?;
    assert_eq!(ready.status, 200);
    assert!(
        ready.text().starts_with("ready\nnote: all guests together were at connections = 16 "),
        "{}",
        ready.text()
    );
    let log = cloud.agent.wait_logged(&["all guests together are at a limit"])?;
    assert_eq!(log.matches("all guests together are at a limit").count(), 1, "{log}");
    Ok(())
}

/// Bodies that do not go on take no place with Nova: neither from others nor from the guest's own requests.
#[test]
fn a_stalled_body_takes_no_place() -> Result<()> {
    let (cloud, [greedy, other]) = cloud::<2>(&["requests = 2", "port_requests = 2"])?;
    let stalled = stall(&greedy, 30, 1000)?;
    metric_is(&cloud, "metadata_connections", 30.0)?;
    for guest in [&greedy, &other, &greedy, &other] {
        own_identity(guest)?;
        let response = guest.request("POST", PASSWORD, &[], b"secret")?;
        assert_eq!(response.header("Server"), None, "it is not nova that answers: {}", response.text());
    }
    assert_eq!(open(&stalled)?, 30);
    Ok(())
}

/// Bytes of bodies that are not complete have a bound for all guests together, in which each has its share.
#[test]
fn stalled_bodies_have_so_many_bytes() -> Result<()> {
    let (cloud, [other, greedy @ ..]) = cloud::<4>(&["unfinished_bytes = 1048576"])?;
    let mut stalled = Vec::new();
    for guest in &greedy {
        stalled.extend(stall(guest, 10, 59_000)?);
    }
    let evictions = "metadata_gave_way_total{limit=\"unfinished_bytes\"}";
    let refusals = "metadata_refusals_total{reason=\"unfinished_bytes\"}";
    until("there is no more room", SOON, || {
        let gone = cloud.agent.metric(evictions)? + cloud.agent.metric(refusals)?;
        ensure!(gone >= 12.0, "{gone} bodies are gone");
        Ok(())
    })?;
    let body = vec![b'x'; 60_000];
    for _ in 0..5 {
        let mut connection = other.connect()?;
        connection.send(&http::request_head("POST", PASSWORD, &[], body.len()))?;
        for piece in body.chunks(10_000) {
            connection.send(piece)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let response = connection.response("POST")?;
        assert_eq!(response.header("Server"), None, "it is not nova that answers: {}", response.text());
    }
    let left = open(&stalled)?;
    assert!((10..=18).contains(&left), "{left} stalled bodies are left");
    // Whoever had to go was told.
    let told = stalled.iter_mut().filter_map(|connection| {
        connection.stream().set_read_timeout(Some(Duration::from_millis(10))).ok()?;
        connection.response("POST").ok()
    });
    let told: Vec<_> = told.collect();
    assert!(!told.is_empty());
    for response in told {
        assert!(response.text().contains("too many slow requests and answers"), "{}", response.text());
    }
    Ok(())
}

/// All places with Nova are taken by guests that wait for slow answers: another's request gets one.
#[test]
fn a_guest_with_few_requests_gets_to_nova() -> Result<()> {
    let (cloud, [other, greedy @ ..], upstream) =
        with_upstream::<3>(&["requests = 8", "port_requests = 4"], Script::Held(OK.to_vec()))?;
    let mut waiting = ask(&greedy[0], 4)?;
    waiting.extend(ask(&greedy[1], 4)?);
    taken(&upstream, 8)?;
    let mut asking = ask(&other, 1)?;
    taken(&upstream, 1)?;
    let refused = "metadata_gave_way_total{limit=\"requests\"}";
    metric_is(&cloud, refused, 1.0)?;
    upstream.release();
    assert_eq!(asking[0].response("GET")?.text(), "ok");
    let mut statuses: Vec<_> =
        waiting.iter_mut().map(|connection| Ok(connection.response("GET")?.status)).collect::<Result<_>>()?;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 200, 503]);
    Ok(())
}

/// A guest that goes away is noticed while Nova works, and its request is given up.
#[test]
fn a_guest_that_resets_is_noticed_at_once() -> Result<()> {
    let (cloud, [guest], upstream) = with_upstream::<1>(&["port_requests = 4"], Script::Held(OK.to_vec()))?;
    let gone = ask(&guest, 4)?;
    taken(&upstream, 4)?;
    for connection in &gone {
        setsockopt(connection.stream(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    drop(gone);
    metric_is(&cloud, "metadata_requests_unfinished_total{reason=\"guest_left\"}", 4.0)?;
    metric_is(&cloud, "metadata_connections", 0.0)?;
    upstream.set_script(Script::Answer(OK.to_vec()));
    assert_eq!(guest.get("/b")?.text(), "ok");
    Ok(())
}

/// One that ends its side may have gone, or wait for the answer: it gets that, unless its own next requests need the place.
#[test]
fn a_guest_that_may_have_gone_keeps_no_place_from_itself() -> Result<()> {
    let options = ["port_requests = 4", "port_connections = 6"];
    let (cloud, [guest], upstream) = with_upstream::<1>(&options, Script::Held(OK.to_vec()))?;
    // As a client does that is killed: its kernel ends the connection, and says no more until it is sent something.
    let mut abandoned = ask(&guest, 4)?;
    taken(&upstream, 4)?;
    for connection in &abandoned {
        connection.stream().shutdown(Shutdown::Write)?;
    }
    let mut next = Vec::new();
    for _ in 0..3 {
        // The kernel's news of the ends may be later than the next request.
        let asked = until("a request gets a place", SOON, || {
            let mut asked = ask(&guest, 1)?;
            asked[0].stream().set_read_timeout(Some(Duration::from_millis(300)))?;
            let answer = asked[0].response("GET");
            ensure!(matches!(answer, Err(http::Error::Timeout)), "{answer:?}");
            Ok(asked)
        })?;
        next.extend(asked);
    }
    metric_is(&cloud, "metadata_gave_way_total{limit=\"port_requests\"}", 3.0)?;
    upstream.release();
    for connection in &mut next {
        connection.stream().set_read_timeout(Some(SOON))?;
        assert_eq!(connection.response("GET")?.text(), "ok");
    }
    let answered = abandoned.iter_mut().filter_map(|connection| connection.response("GET").ok());
    let statuses: Vec<_> = answered.map(|response| response.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    Ok(())
}

/// Sockets of the service that wait for something to be acknowledged, and have no owner any more.
fn orphans(cloud: &Cloud<Stage>) -> Result<usize> {
    // Of net/tcp_states.h: FIN_WAIT1, LAST_ACK and CLOSING.
    const UNACKNOWLEDGED: [&str; 3] = ["04", "09", "0B"];
    let service = Namespace::existing(&service_namespace(&cloud.chassis));
    let table = service.run(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
    let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Nobody's has no inode.
    Ok(sockets.filter(|words| UNACKNOWLEDGED.contains(&words[3]) && words[9] == "0").count())
}

/// An answer that fits into the kernel's buffers counts until the guest has acknowledged it. One that never does is given
/// up after some seconds, and leaves nothing to the kernel.
#[test]
fn an_answer_that_is_not_acknowledged_counts() -> Result<()> {
    let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n".as_slice(), &[b'x'; 40_000]].concat();
    let options = ["port_connections = 8", "connection_rate = 0"];
    let (cloud, [mute, other], upstream) = with_upstream::<2>(&options, Script::Held(answer))?;
    let open = || -> Result<Connection<TcpStream>> {
        let mut connection = mute.connect()?;
        connection.send(&http::request_head("GET", "/a", &[("Connection", "close")], 0))?;
        Ok(connection)
    };
    let connections = (0..8).map(|_| open()).collect::<Result<Vec<_>>>()?;
    taken(&upstream, 8)?;
    // From now on its kernel hears, and cannot say that it has.
    mute.netns.ip(format!("route replace blackhole {}", METADATA.ip()))?;
    upstream.release();
    let answered = Instant::now();
    metric_is(&cloud, "metadata_requests_total{by=\"nova\",status=\"200\"}", 8.0)?;
    let counted = cloud.agent.metric("metadata_connections")?;
    // On a machine that is busy some may have been given up by now.
    assert!(counted == 8.0 || answered.elapsed() > Duration::from_secs(3), "{counted} connections count");
    upstream.set_script(Script::Answer(OK.to_vec()));
    assert_eq!(other.get("/b")?.text(), "ok");
    until("they are given up", SOON, || {
        assert_eq!(orphans(&cloud)?, 0);
        let counted = cloud.agent.metric("metadata_connections")?;
        ensure!(counted == 0.0, "{counted} connections count");
        Ok(())
    })?;
    println!("given up after {:?}", answered.elapsed());
    assert!(answered.elapsed() >= Duration::from_secs(3), "after {:?}", answered.elapsed());
    assert_eq!(orphans(&cloud)?, 0);
    drop(connections);
    mute.netns.ip(format!("route replace {} dev eth0", METADATA.ip()))?;
    assert_eq!(mute.get("/c")?.text(), "ok");
    Ok(())
}

/// Guests that take nothing of long answers have a share of the kernel's memory, and others have theirs.
#[test]
fn slow_readers_have_so_many_bytes() -> Result<()> {
    let (cloud, [other, greedy @ ..]) = cloud::<4>(&["unfinished_bytes = 1048576"])?;
    const LONG: usize = 1 << 19;
    for guest in &greedy {
        cloud.nova.set_user_data(&guest.port, vec![b'x'; LONG]);
        // Their kernels take little of an answer that nobody reads.
        guest.netns.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096")?;
    }
    cloud.nova.set_user_data(&other.port, vec![b'y'; LONG]);
    let mut slow = Vec::new();
    for guest in &greedy {
        for _ in 0..8 {
            let mut connection = guest.connect()?;
            connection.send(&http::request_head("GET", "/latest/user-data", &[], 0))?;
            slow.push(connection);
        }
    }
    let evictions = "metadata_gave_way_total{limit=\"unfinished_bytes\"}";
    let left = "metadata_requests_unfinished_total{reason=\"guest_left\"}";
    until("there is no more room", SOON, || {
        let gone = cloud.agent.metric(evictions)? + cloud.agent.metric(left)?;
        ensure!(gone >= 8.0, "{gone} answers are given up");
        Ok(())
    })?;
    for _ in 0..5 {
        assert!(other.get("/latest/user-data")?.body == vec![b'y'; LONG]);
    }
    // Those whose answer was given up see that, once they have taken what had come of it.
    let is_broken = |connection: &Connection<TcpStream>| -> Result<bool> {
        connection.stream().set_nonblocking(true)?;
        let (mut taken, mut bytes) = (Vec::new(), [0; 65_536]);
        loop {
            match connection.stream().read(&mut bytes) {
                Ok(0) => bail!("an answer ends as if it were whole"),
                Ok(length) => taken.extend_from_slice(&bytes[..length]),
                Err(error) => {
                    let head =
                        taken.windows(4).position(|end| end == b"\r\n\r\n").map_or(taken.len(), |at| at + 4);
                    ensure!(taken[head..].iter().all(|byte| *byte == b'x'), "something else is in its body");
                    return Ok(error.kind() == ErrorKind::ConnectionReset);
                }
            }
        }
    };
    let broken = slow.iter().map(is_broken).collect::<Result<Vec<_>>>()?;
    let count = broken.iter().filter(|broken| **broken).count();
    assert!((8..24).contains(&count), "{count} of {} answers were given up", slow.len());
    Ok(())
}
