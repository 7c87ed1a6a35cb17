//! A Nova, or a balancer before it, that says more than it was asked: an answer too many, a body after an answer that has
//! none. Whoever reads that must be whom it was said to.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    guest::Guest,
    http::{self, Connection},
    upstream::{Piece, Script},
};

use super::with_upstream;

/// Time for which each script is asked.
const ASKING: Duration = Duration::from_secs(3);
/// Of each guest's connections.
const CONNECTIONS: usize = 4;

/// An answer to a GET, whose body is the instance that asks.
fn answer(request: &str) -> Vec<u8> {
    let instance = request.lines().find_map(|line| line.strip_prefix("X-Instance-ID: ")).unwrap_or("nobody");
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{instance}", instance.len()).into_bytes()
}

fn at_once(bytes: Vec<u8>) -> Piece {
    (Duration::ZERO, bytes)
}

/// Another answer, so soon after the first that it comes while the connection is already used again.
fn an_answer_too_many(request: &str) -> Vec<Piece> {
    vec![at_once(answer(request)), (Duration::from_micros(300), answer(request))]
}

/// The same without a pause, as a server writes that has both in one buffer.
fn two_answers_at_once(request: &str) -> Vec<Piece> {
    vec![at_once([answer(request), answer(request)].concat())]
}

/// Something that is no answer at all.
fn nonsense(request: &str) -> Vec<Piece> {
    vec![at_once(answer(request)), (Duration::from_micros(300), b"\0nonsense\r\n\r\n".to_vec())]
}

/// A body where none may be: after HEAD, 204 and 304, of which the target tells which it is.
fn a_body_where_none_belongs(request: &str) -> Vec<Piece> {
    let with_body = answer(request);
    let head = match request {
        _ if request.starts_with("HEAD") => return vec![at_once(with_body)],
        _ if request.contains("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
        _ if request.contains("/304") => "HTTP/1.1 304 Not Modified\r\n\r\n",
        _ => return vec![at_once(with_body)],
    };
    vec![at_once(head.into()), (Duration::from_micros(300), with_body)]
}

/// An answer before the answer, after which nobody can tell whether there will be another after it.
fn an_interim_answer_too_many(request: &str) -> Vec<Piece> {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
    vec![at_once([interim.clone(), answer(request), interim].concat())]
}

/// In turn; a 204 or a 304 is only told where the script has one.
const REQUESTS: [(&str, &str); 8] = [
    ("GET", "/a"),
    ("GET", "/b"),
    ("HEAD", "/a"),
    ("GET", "/c"),
    ("GET", "/204"),
    ("GET", "/d"),
    ("GET", "/304"),
    ("GET", "/e"),
];

/// One request after another on one connection, of which all must be answered, and with nothing of somebody else's.
fn ask(guest: &Guest, end: Instant) -> Result<usize> {
    let mut connection = guest.connect()?;
    for (answers, (method, target)) in REQUESTS.into_iter().cycle().enumerate() {
        if Instant::now() > end {
            check_end(&mut connection)?;
            return Ok(answers);
        }
        let asked = || format!("{method} {target} after {answers} answers");
        let response = connection.request(method, target, &[], b"").with_context(asked)?;
        let empty = target[1..].parse() == Ok(response.status);
        ensure!(response.status == 200 || empty, "{}: {response:?}", asked());
        if method == "GET" && !empty {
            ensure!(response.text() == guest.port.instance, "{}: {response:?}", asked());
        }
    }
    unreachable!("it goes on")
}

/// Nothing was said that was not asked for.
fn check_end(connection: &mut Connection<std::net::TcpStream>) -> Result<()> {
    connection.stream().set_read_timeout(Some(Duration::from_millis(50)))?;
    match connection.is_closed() {
        Err(http::Error::Timeout) => Ok(()),
        other => anyhow::bail!("more than the answers: {other:?}"),
    }
}

#[test]
fn what_nova_says_too_much_reaches_no_other_guest() -> Result<()> {
    let workers =
        [("metadata_ebpf", "workers = 1".to_owned()), ("metadata_ebpf", "connection_rate = 0".to_owned())];
    let (cloud, guests, upstream) =
        with_upstream(&workers, Script::Made(|request| vec![at_once(answer(request))]))?;
    let all = || -> Result<usize> {
        let end = Instant::now() + ASKING;
        thread::scope(|scope| {
            let asking: Vec<_> = (0..2 * CONNECTIONS)
                .map(|number| &guests[number % 2])
                .map(|guest| scope.spawn(move || ask(guest, end)))
                .collect();
            asking.into_iter().map(|thread| thread.join().ok().context("a guest panicked")?).sum()
        })
    };
    let requests = all()?;
    println!("a proper nova: {requests} answers over {} connections", upstream.connections());
    // Two in three are plain.
    ensure!(upstream.connections() < requests * 2 / 3, "connections are not used again");
    for (name, script) in [
        ("an answer too many", Script::Made(an_answer_too_many)),
        ("two answers at once", Script::Made(two_answers_at_once)),
        ("nonsense", Script::Made(nonsense)),
        ("a body where none belongs", Script::Made(a_body_where_none_belongs)),
        ("an interim answer too many", Script::Made(an_interim_answer_too_many)),
    ] {
        upstream.set_script(script);
        let before = upstream.connections();
        let requests = all().with_context(|| name.to_owned())?;
        println!("{name}: {requests} answers over {} connections", upstream.connections() - before);
    }
    let up = cloud.agent.metric("metadata_nova_up{endpoint=\"127.0.0.1:8775\"}")?;
    assert_eq!(up, 1.0);
    assert!(!cloud.agent.log()?.contains("nova failed"));
    Ok(())
}
