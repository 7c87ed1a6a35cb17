//! Servers that send more than anybody wants, and what a client keeps of it; and large contents beside other work.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::*;
use ovsdb_client::{Client, Conditions, Config, Event, Splitter};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: usize = 4 << 20;
const MESSAGE: usize = 1 << 20;
/// Bytes that sockets and one read hold beyond what the client keeps.
const SOCKETS: usize = 16 << 20;
const MUCH: usize = 200 << 20;

/// Reaction of a hostile server to the monitor request.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Sends updates without an answer.
    Updates,
    /// Answers, and sends updates.
    Contents,
    /// Answers, and asks for large echoes.
    Echoes,
}

/// Speaks with a client up to the monitor request, and then writes until nothing goes out for a second; the bytes.
async fn flood(mut stream: TcpStream, then: Then) -> (usize, bool) {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut splitter = Splitter::new(1 << 20);
    let mut buffer = vec![0; 65536];
    let monitor = loop {
        let length = stream.read(&mut buffer).await.unwrap();
        splitter.push(&buffer[..length]).unwrap();
        let mut monitor = None;
        while let Some(message) = splitter.next_message() {
            let request: Value = serde_json::from_slice(&message).unwrap();
            let (result, error) = match request["method"].as_str().unwrap() {
                "get_schema" => (schema.clone(), Value::Null),
                "monitor_cond_since" => {
                    monitor = Some(request["id"].clone());
                    continue;
                }
                _ => (Value::Null, json!("unknown method")),
            };
            let answer = json!({ "id": request["id"], "result": result, "error": error }).to_string();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        if let Some(id) = monitor {
            break id;
        }
    };
    if then != Then::Updates {
        let nil = "00000000-0000-0000-0000-000000000000";
        let answer = json!({ "id": monitor, "result": [false, nil, {}], "error": null }).to_string();
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    let row =
        json!({ "00000000-0000-0000-0000-000000000001": { "insert": { "name": "x".repeat(MESSAGE) } } });
    let message = match then {
        Then::Echoes => json!({ "id": 1, "method": "echo", "params": ["x".repeat(MESSAGE)] }),
        _ => json!({ "id": null, "method": "update2", "params": ["data", { "Item": row }] }),
    };
    let message = message.to_string();
    let mut written = 0;
    while written < MUCH {
        match tokio::time::timeout(Duration::from_secs(1), stream.write(message.as_bytes())).await {
            Err(_) => return (written, false),
            Ok(Err(_)) => return (written, true),
            Ok(Ok(length)) => {
                written += length;
                // Whole messages, as many as go.
                let rest = stream.write_all(&message.as_bytes()[length..]);
                match tokio::time::timeout(Duration::from_secs(1), rest).await {
                    Err(_) => return (written, false),
                    Ok(Err(_)) => return (written, true),
                    Ok(Ok(())) => written += message.len() - length,
                }
            }
        }
    }
    (written, false)
}

fn limited(remotes: &str) -> Config {
    let mut config = config(remotes);
    config.backlog_limit = LIMIT;
    config
}

#[tokio::test]
async fn a_server_that_floods_is_not_read_beyond_the_limit() {
    for then in [Then::Contents, Then::Echoes, Then::Updates] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = limited(&format!("tcp:{}", listener.local_addr().unwrap()));
        // Nobody takes its events.
        let mut client = Client::builder(config).monitor::<Item>(Conditions::All).connect();
        let (stream, _) = listener.accept().await.unwrap();
        let (written, hung_up) = flood(stream, then).await;
        assert!(written < LIMIT + SOCKETS, "{written} bytes were taken");
        assert_eq!(hung_up, then == Then::Updates);
        if hung_up {
            let event = until(&mut client, |event, _| matches!(event, Event::Disconnected { .. })).await.0;
            let Event::Disconnected { reason, .. } = event else { panic!("{event:?}") };
            assert!(reason.to_string().contains("before it answered the monitor request"), "{reason}");
        }
    }
}

#[tokio::test]
async fn more_than_the_limit_is_taken_by_who_takes_it() {
    let server = Server::start(SCHEMA);
    let mut small = limited(&server.unix());
    small.backlog_limit = 1;
    let mut client = Client::builder(small).monitor::<Item>(Conditions::All).connect();
    synced(&mut client).await;
    let handle = client.handle();
    let names: Vec<String> = (0..50).map(|number| format!("{number:02}{}", "x".repeat(10_000))).collect();
    let written = names.clone();
    let writer = tokio::spawn(async move {
        for name in &written {
            handle.transact(vec![insert(name)]).await.unwrap();
        }
    });
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    until_names(&mut client, &names).await;
    writer.await.unwrap();
}

#[tokio::test]
async fn large_contents_leave_others_their_turn() {
    const ROWS: usize = 20_000;
    let server = Server::start(SCHEMA);
    let mut writer = Client::builder(config(&server.unix())).connect();
    synced(&mut writer).await;
    let name = |number: usize| format!("{number:05}{}", "x".repeat(200));
    writer.transact((0..ROWS).map(|number| insert(&name(number))).collect()).await.unwrap();
    let mut client = Client::builder(config(&server.unix())).monitor::<Item>(Conditions::All).connect();
    until(&mut client, |event, _| matches!(event, Event::Connected { .. })).await;
    // This test's runtime has one thread: the other task has its turn whenever the client yields.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let turns = tokio::spawn(async move {
        let mut turns = 0_usize;
        while stopped.try_recv().is_err() {
            turns += 1;
            tokio::task::yield_now().await;
        }
        turns
    });
    // Given up half done, it goes on where it was, and nobody sees a half of it.
    let mut given_up = 0;
    let rows = loop {
        tokio::select! {
            biased;
            event = client.recv() => if let Event::Batch(batch) = event {
                break batch.of::<Item>().iter().map(|change| (change.uuid, change.new.clone())).collect::<BTreeMap<_, _>>();
            },
            () = tokio::task::yield_now() => {
                given_up += 1;
                assert!(client.table::<Item>().is_empty());
            }
        }
    };
    stop.send(()).unwrap();
    // 20,000 rows of some 300 bytes are 80 slices, of which it takes two for the other branch to be ready.
    let turns = turns.await.unwrap();
    assert!(turns > 20 && given_up > 20, "{turns} turns, given up {given_up} times");
    assert_eq!((rows.len(), client.table::<Item>().len()), (ROWS, ROWS));
}
