//! Broken requests and responses, made in random ways and from what a coverage-guided fuzzer kept, against others who read
//! them: httparse, and Python's own server and client.
#![allow(clippy::unwrap_used, clippy::panic, reason = "it is part of tests")]
#[path = "oracles/mod.rs"]
mod oracles;
#[path = "oracles/python.rs"]
mod python;

use std::{fs, path::Path};

use fuzz::{Random, fuzz};
use oracles::{Answer, assert_target};
use python::Python;

/// Requests of clients and of attackers.
const REQUESTS: &[&str] = &[
    "GET /a/b/ HTTP/1.1\r\nHost: 192.0.2.1\r\nUser-Agent: Some-Client/23\r\n\r\n",
    "HEAD /a HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: victim\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nsecret",
    "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nA;x=y\r\n0123456789\r\n00\r\nX-T: a\r\n\r\n",
    "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    "GET http://192.0.2.1/a HTTP/1.1\r\nConnection: X-Hop, keep-alive\r\nX-Hop: a\r\n\r\n",
    "GET http://192.0.2.1?a HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nX-Instance-ID: v\r\n",
];

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nh\r\n04\r\nello\r\n000\r\nX-T: a\r\n\r\n",
    "HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhello",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"a\"\r\n\r\n",
    "HTTP/1.1 404 Not Found\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
];

/// Words that mean something where they are read.
const WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    " ",
    "\t",
    "\0",
    ":",
    ",",
    ";",
    "Content-Length: 5\r\n",
    "Content-Length:",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding:",
    "chunked",
    "Accept: a\r\n",
    "Accept: a\r\n b",
    "From a: b\r\n",
    "0\r\n\r\n",
    "5\r\n",
    "0x5",
    "+5",
    "5_0",
    "ffffffffffffffff",
    "HTTP/1.1",
    "HTTP/1.0",
    "GET / HTTP/1.1\r\n\r\n",
    "GET /smuggled HTTP/1.1\r\nX-Forwarded-For: victim\r\n\r\n",
    "http://",
    "//",
    "#",
    "%00",
    "\u{e4}",
    "\u{85}",
    "\u{a0}",
];

/// A few messages, one after another, most of them broken somewhere.
fn messages(random: &mut Random, seeds: &[&str], most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(most) {
        bytes.extend_from_slice(random.pick(seeds).as_bytes());
    }
    if !random.once_in(8) {
        random.damage(&mut bytes, WORDS);
    }
    bytes.truncate(16 << 10);
    bytes
}

/// Inputs that a coverage-guided fuzzer kept, since each reaches something that no other does.
fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

/// Requests that are accepted are what Python's server makes of them, unless it refuses them.
fn compare_requests(python: &mut Python, bytes: &[u8]) -> u64 {
    let mut agreed = 0;
    for (head, ours) in oracles::requests(bytes) {
        let Some(theirs) = python.request(head) else { continue };
        assert_eq!((&theirs.method, &theirs.fields), (&ours.method, &ours.fields), "{}", head.escape_ascii());
        // It takes a no-break space and a next-line character for spaces, and several slashes at the start for one.
        if !ours.target.iter().any(|byte| matches!(byte, 0x85 | 0xa0)) {
            let slashes = ours.target.iter().take_while(|byte| **byte == b'/').count();
            assert_target(&theirs.target, &ours.target[slashes.saturating_sub(1)..]);
        }
        agreed += 1;
    }
    agreed
}

/// Responses, too, are what Python's client makes of them.
fn compare_response(python: &mut Python, bytes: &[u8]) -> u64 {
    let mut agreed = 0;
    for (is_head, ours) in oracles::responses(bytes) {
        if ours.status < 200 || is_read_otherwise(bytes, &ours, is_head) {
            continue;
        }
        let Some(theirs) = python.response(bytes, is_head) else { continue };
        assert_eq!(theirs, ours, "{}", bytes.escape_ascii());
        agreed += 1;
    }
    agreed
}

/// True if Python's client is known to read an answer in another way: it takes a length that is told twice for none,
/// reads chunks also where there can be no body, and none where the word has space behind it.
fn is_read_otherwise(bytes: &[u8], answer: &Answer, is_head: bool) -> bool {
    let values = |wanted: &'static [u8]| {
        let fields = answer.fields.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted));
        fields.map(|(_, value)| value)
    };
    let is_told_twice =
        values(b"content-length").count() > 1 || values(b"content-length").any(|value| value.contains(&b','));
    let has_space_behind = bytes.windows(2).any(|pair| matches!(pair, b" \r" | b"\t\r"));
    let is_chunked = values(b"transfer-encoding").next().is_some();
    is_told_twice || is_chunked && (is_head || matches!(answer.status, 204 | 304) || has_space_behind)
}

#[test]
fn requests() {
    let mut python = Python::start();
    let mut agreed = 0;
    fuzz("http1::requests", |random| {
        agreed += compare_requests(&mut python, &messages(random, REQUESTS, 4));
    });
    println!("fuzz::http1::requests: {agreed} requests were read by both");
    assert!(agreed > 0, "nothing was compared");
}

#[test]
fn responses() {
    let mut python = Python::start();
    let mut agreed = 0;
    fuzz("http1::responses", |random| {
        agreed += compare_response(&mut python, &messages(random, RESPONSES, 1));
    });
    println!("fuzz::http1::responses: {agreed} responses were read by both");
    assert!(agreed > 0, "nothing was compared");
}

#[test]
fn what_was_kept_for_its_coverage() {
    let mut python = Python::start();
    let corpus = corpus();
    let requests: u64 = corpus.iter().map(|bytes| compare_requests(&mut python, bytes)).sum();
    let responses: u64 = corpus.iter().map(|bytes| compare_response(&mut python, bytes)).sum();
    assert!(requests > 0 && responses > 0, "{requests} {responses} of {}", corpus.len());
    println!("{requests} requests and {responses} responses were read by both");
}
