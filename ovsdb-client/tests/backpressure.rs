//! More than fits: many requests at once, and consumers that take their time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use ovsdb_client::{Client, Conditions};
use tokio::io::AsyncWriteExt as _;

fn client(remote: &str) -> Client {
    Client::builder(config(remote)).monitor::<Item>(Conditions::All).connect()
}

#[tokio::test]
async fn many_large_requests_at_once_are_all_answered() {
    const REQUESTS: usize = 200;
    const SIZE: usize = 100_000;
    let server = Server::start(SCHEMA);
    for remote in [server.unix(), server.tcp()] {
        let mut client = client(&remote);
        synced(&mut client).await;
        let before = client.table::<Item>().len();
        let began = Instant::now();
        let mut requests = tokio::task::JoinSet::new();
        for i in 0..REQUESTS {
            let (handle, name) = (client.handle(), format!("{remote} {i} {}", "x".repeat(SIZE)));
            requests.spawn(async move { handle.transact(vec![insert(&name)]).await });
        }
        // The rows come back as updates while requests are still being written.
        while client.table::<Item>().len() < before + REQUESTS {
            batch(&mut client).await;
        }
        for result in requests.join_all().await {
            assert_eq!(result.unwrap().len(), 1);
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{remote}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_server_that_asks_without_reading_is_not_read() {
    const MUCH: usize = 64 << 20;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = client(&format!("tcp:{}", listener.local_addr().unwrap()));
    let (mut stream, _) = listener.accept().await.unwrap();
    let question = format!(r#"{{"id":"echo","method":"echo","params":["{}"]}}"#, "x".repeat(1000));
    let mut written = 0;
    while let Ok(result) =
        tokio::time::timeout(Duration::from_secs(1), stream.write_all(question.as_bytes())).await
    {
        result.unwrap();
        written += question.len();
        assert!(written < MUCH, "the client keeps all answers");
    }
}
