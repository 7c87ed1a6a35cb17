//! Streams of messages, good and bad, cut into reads anywhere: the splitter, and the session behind it.

use std::time::{Duration, Instant};

use crate::condition::Conditions;
use crate::counters::SharedTally;
use crate::row::Row as _;
use crate::session::{Session, SessionConfig, TableSpec};
use crate::splitter::{SplitError, Splitter};
use fuzz::fuzz;

crate::row! {
    struct Port in "Port" {
        name: String,
        ids: std::collections::BTreeMap<String, String>,
    }
}

/// A conversation with the ids that a session gives to its first requests.
const MESSAGES: &[&str] = &[
    r#"{"id":0,"result":{},"error":null}"#,
    r#"{"id":1,"error":null,"result":{"Database":{"00000000-0000-0000-0000-000000000001":
        {"initial":{"name":"db","model":"clustered","connected":true,"leader":false}}}}}"#,
    r#"{"id":2,"error":null,"result":[{"rows":[{"cid":["uuid","00000000-0000-0000-0000-000000000002"],"index":7}]}]}"#,
    r#"{"id":3,"error":null,"result":{"name":"db","version":"1.0.0","tables":{"Port":{"columns":{
        "name":{"type":"string"},
        "ids":{"type":{"key":"string","value":"string","min":0,"max":"unlimited"}}}}}}}"#,
    r#"{"id":4,"error":null,"result":{"locked":false}}"#,
    r#"{"id":5,"error":null,"result":[false,"00000000-0000-0000-0000-000000000003",{"Port":{
        "00000000-0000-0000-0000-000000000004":{"initial":{"name":"a\"}{\\","ids":["map",[["k","v"]]]}}}}]}"#,
    r#"{"id":null,"method":"update3","params":["data","00000000-0000-0000-0000-000000000005",{"Port":{
        "00000000-0000-0000-0000-000000000004":{"modify":{"ids":["map",[["k","v"],["l","w"]]]}}}}]}"#,
    r#"{"id":null,"method":"update2","params":["server",{"Database":{"00000000-0000-0000-0000-000000000001":
        {"modify":{"connected":false}}}}]}"#,
    r#"{"id":"echo","method":"echo","params":[1,{"a":null}]}"#,
    r#"{"id":null,"method":"locked","params":["lock"]}"#,
    r#"{"id":null,"method":"monitor_canceled","params":["data"]}"#,
    r#"{"id":3,"result":null,"error":{"error":"unknown database","details":"x"}}"#,
];

/// The last of those with which a session gets to monitor, and goes on.
const UNDISTURBED: usize = 6;

const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\\"",
    ",",
    ":",
    " ",
    "\n",
    "null",
    "{}",
    "[]",
    "-1",
    "1e999",
    "0.5",
    "\\u0000",
    "\\ud800",
    "id",
    "method",
    "params",
    "result",
    "error",
    "99999999999999999999",
    "é",
    "\u{16}\u{3}",
];

#[test]
fn streams() {
    let good = MESSAGES[..=UNDISTURBED].iter().map(|message| message.as_bytes().to_vec()).collect();
    assert!(converse(good), "the undamaged conversation comes to nothing");
    fuzz("stream::streams", |random| {
        let mut stream = Vec::new();
        for message in &MESSAGES[..=random.below(MESSAGES.len())] {
            // In their order more often than not, so that a session gets somewhere.
            let message = if random.once_in(4) { random.pick(MESSAGES) } else { message };
            let mut message = message.as_bytes().to_vec();
            if random.once_in(5) {
                random.damage(&mut message, WORDS);
            }
            stream.extend(message);
            stream.extend(random.pick(&["", " ", "\n\t"]).bytes());
        }
        if random.once_in(3) {
            random.damage(&mut stream, WORDS);
        }
        let limit = random.pick(&[64, 400, 1 << 20]);
        let whole = split(&stream, limit, || usize::MAX);
        let cut =
            split(&stream, limit, || 1 + if random.once_in(2) { random.below(3) } else { random.below(200) });
        assert_eq!(whole, cut, "it depends on where reads end");
        let (messages, error) = whole;
        let length: usize = messages.iter().map(Vec::len).sum();
        assert!(length <= stream.len() && messages.iter().all(|message| message.len() <= limit));
        assert!(messages.iter().all(|message| message.starts_with(b"{")));
        assert!(!matches!(error, Some(SplitError::TooLong { .. })) || stream.len() > limit);
        converse(messages);
    });
}

fn split(stream: &[u8], limit: usize, mut cut: impl FnMut() -> usize) -> (Vec<Vec<u8>>, Option<SplitError>) {
    let mut splitter = Splitter::new(limit);
    let mut rest = stream;
    let mut error = None;
    while !rest.is_empty() && error.is_none() {
        let (read, more) = rest.split_at(cut().min(rest.len()));
        error = splitter.push(read).err();
        rest = more;
    }
    (std::iter::from_fn(|| splitter.next_message()).collect(), error)
}

/// A session ends or goes on, whatever a server says, and answers each message with a few of its own at most. Returns
/// true if it monitored in the end.
fn converse(messages: Vec<Vec<u8>>) -> bool {
    let table =
        TableSpec { name: Port::TABLE, columns: Port::COLUMNS, optional: false, conditions: Conditions::All };
    let config = SessionConfig {
        database: "db".to_owned(),
        tables: vec![table],
        probe_interval: Duration::from_secs(5),
        greeting_timeout: Duration::from_secs(5),
        deferred_limit: 1 << 20,
        servers: 1,
        leader_only: false,
        turns: None,
    };
    let mut session = Session::new(config, SharedTally::default());
    let now = Instant::now();
    session.lock("lock", false);
    session.connected(now);
    for message in messages {
        while session.poll_transmit().is_some() {}
        if session.receive(now, message).is_err() {
            break;
        }
        let sent = std::iter::from_fn(|| session.poll_transmit()).count();
        assert!(sent <= 2, "{sent} messages in answer to one");
        while session.poll_event().is_some() {}
    }
    let monitored = session.is_ready();
    session.disconnected();
    assert!(!session.is_ready() && session.poll_transmit().is_none());
    monitored
}
