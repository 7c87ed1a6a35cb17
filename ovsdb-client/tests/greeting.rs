//! Servers that take connections and say nothing of use, next to a good one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use ovsdb_client::{Awaited, Client, Conditions, Event};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Takes connections, asks for signs of life itself, and says nothing else.
async fn stand_in() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let remote = format!("tcp:{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = [0; 4096];
                let mut ticks = tokio::time::interval(Duration::from_millis(100));
                loop {
                    tokio::select! {
                        read = stream.read(&mut heard) => if !matches!(read, Ok(1..)) { return },
                        _ = ticks.tick() => {
                            let echo = br#"{"id":"echo","method":"echo","params":[]}"#;
                            if stream.write_all(echo).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    remote
}

#[tokio::test]
async fn a_silent_server_is_left_for_one_that_answers() {
    let server = Server::start(SCHEMA);
    let silent = stand_in().await;
    let mut waited = false;
    // Which of the two is asked first is left to chance.
    for _ in 0..20 {
        let mut config = config(&format!("{silent},{}", server.tcp()));
        config.greeting_timeout = Duration::from_millis(600);
        let began = Instant::now();
        let mut client = Client::builder(config).monitor::<Item>(Conditions::All).connect();
        let mut told = None;
        loop {
            match next(&mut client).await {
                Event::Waiting { remote, awaited } => told = Some((remote.to_string(), awaited)),
                Event::Disconnected { remote, reason, .. } => {
                    assert_eq!(told.take(), Some((silent.clone(), Awaited::Greeting)));
                    assert_eq!(remote.to_string(), silent);
                    assert!(reason.to_string().contains("did not send the schema"), "{reason}");
                    waited = true;
                }
                Event::Synced => break,
                _ => {}
            }
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        if waited {
            return;
        }
    }
    panic!("the silent server was never asked first");
}

#[tokio::test]
async fn a_silent_server_without_another_is_told_of_and_waited_for() {
    let silent = stand_in().await;
    let mut config = config(&silent);
    config.greeting_timeout = Duration::from_millis(200);
    let mut client = Client::builder(config).monitor::<Item>(Conditions::All).connect();
    let event = next(&mut client).await;
    assert!(matches!(event, Event::Waiting { awaited: Awaited::Greeting, .. }), "{event:?}");
    let more = tokio::time::timeout(Duration::from_secs(2), client.recv()).await;
    assert!(more.is_err(), "{more:?}");
}
