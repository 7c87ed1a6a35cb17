//! More than fits: many requests at once, and consumers that take their time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use nix::sys::signal::Signal;
use ovsdb_client::{Client, Conditions, Error, Event, Operation};
use tokio::io::AsyncWriteExt as _;

/// The size of a row of which a socket does not hold many.
const LARGE: usize = 100_000;

fn client(remote: &str) -> Client {
    Client::builder(config(remote)).monitor::<Item>(Conditions::All).connect()
}

#[tokio::test]
async fn many_large_requests_at_once_are_all_answered() {
    const REQUESTS: usize = 200;
    let server = Server::start(SCHEMA);
    for remote in [server.unix(), server.tcp()] {
        let mut client = client(&remote);
        synced(&mut client).await;
        let before = client.table::<Item>().len();
        let began = Instant::now();
        let mut requests = tokio::task::JoinSet::new();
        for i in 0..REQUESTS {
            let (handle, name) = (client.handle(), format!("{remote} {i} {}", "x".repeat(LARGE)));
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

/// Writes rows, until told to stop, and gives their number.
struct Writer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
    written: Arc<AtomicUsize>,
}

impl Writer {
    async fn start(server: &Server, size: usize) -> Self {
        let mut client = Client::builder(config(&server.unix())).connect();
        synced(&mut client).await;
        let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let name = format!("{count:?} {}", "x".repeat(size));
                client.transact(vec![insert(&name)]).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
            count.load(Ordering::Relaxed)
        });
        Self { stop, task, written }
    }

    async fn take(&self, count: usize) {
        let wanted = self.written.load(Ordering::Relaxed) + count;
        while self.written.load(Ordering::Relaxed) < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Waits for a row that never comes.
fn wait_for_ever() -> Vec<Operation> {
    vec![Operation::Wait {
        timeout: None,
        table: "Item".into(),
        condition: named("never"),
        columns: vec!["name".into()],
        until_equal: true,
        rows: vec![[("name".into(), "never".into())].into()],
    }]
}

/// Takes nothing but batches until there are `count` rows.
async fn catch_up(client: &mut Client, count: usize) {
    while client.table::<Item>().len() < count {
        let event = next(client).await;
        assert!(matches!(event, Event::Batch(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_does_not_fill_the_memory() {
    let server = Server::start(SCHEMA);
    let proxy = Relay::start(&server, &[]).await;
    let mut behind = client(&proxy.remote());
    synced(&mut behind).await;
    let given_up = tokio::time::timeout(Duration::from_millis(300), behind.transact(wait_for_ever())).await;
    assert!(given_up.is_err());
    let writer = Writer::start(&server, LARGE).await;
    writer.take(400).await;
    let written = writer.stop().await;
    let taken = proxy.heard.lock().unwrap().iter().map(String::len).sum::<usize>() / LARGE;
    assert!((60..200).contains(&taken), "{taken} of {written} rows left the server");
    catch_up(&mut behind, written).await;
}

#[tokio::test]
async fn a_consumer_that_waits_for_an_answer_behind_too_many_updates_goes_on() {
    let server = Server::start(SCHEMA);
    let mut limited = config(&server.tcp());
    limited.message_limit = 4 << 20;
    let mut behind = Client::builder(limited).monitor::<Item>(Conditions::All).connect();
    synced(&mut behind).await;
    let writer = Writer::start(&server, LARGE).await;
    let result = tokio::time::timeout(WAIT, behind.transact(wait_for_ever())).await.unwrap();
    assert!(matches!(result, Err(Error::Overrun)), "{result:?}");
    let written = writer.stop().await;
    catch_up(&mut behind, written).await;
    behind.transact(vec![insert("last")]).await.unwrap();
    assert_eq!(summary(batch(&mut behind).await.of::<Item>()), ["+last"]);
}

#[tokio::test]
async fn requests_that_nobody_waits_for_do_not_stand_in_the_way_of_others() {
    let server = Server::start(SCHEMA);
    let mut behind = client(&server.tcp());
    synced(&mut behind).await;
    let writer = Writer::start(&server, LARGE).await;
    writer.take(400).await;
    writer.stop().await;
    // The server has something to say that is not read, and reads nothing until it is: these stay where they are.
    server.signal(Signal::SIGSTOP);
    let mut abandoned = tokio::task::JoinSet::new();
    for i in 0..150 {
        let (handle, name) = (behind.handle(), format!("abandoned {i} {}", "x".repeat(4 * LARGE)));
        abandoned.spawn(async move {
            tokio::time::timeout(Duration::from_millis(500), handle.transact(vec![insert(&name)]))
                .await
                .is_ok()
        });
    }
    assert!(!abandoned.join_all().await.contains(&true));
    server.signal(Signal::SIGCONT);
    let result = tokio::time::timeout(WAIT, behind.transact(vec![insert("last")])).await.unwrap();
    assert_eq!(result.unwrap().len(), 1);
}

#[tokio::test]
async fn a_consumer_that_takes_no_events_keeps_its_connection() {
    // The server asks after 5 s of silence and hangs up 5 s later, once it has nothing left to send.
    let server = Server::start(SCHEMA);
    let mut behind = client(&server.tcp());
    synced(&mut behind).await;
    let writer = Writer::start(&server, 10).await;
    writer.take(300).await;
    let written = writer.stop().await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    catch_up(&mut behind, written).await;
    behind.transact(vec![insert("last")]).await.unwrap();
    assert_eq!(summary(batch(&mut behind).await.of::<Item>()), ["+last"]);
}
