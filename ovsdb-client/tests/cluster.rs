//! Raft clusters: failover, resumption, and the choice of a server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use nix::sys::signal::Signal;
use ovsdb_client::{Clause, Client, Conditions, Config, Error, Event, Function, Handle};
use tokio::sync::mpsc;

fn connect(config: Config) -> Client {
    Client::builder(config).monitor::<Item>(Conditions::All).connect()
}

/// A client that follows a cluster on a task of its own and checks what it is told.
struct Follower {
    task: tokio::task::JoinHandle<(Client, Vec<String>)>,
    connected: mpsc::UnboundedReceiver<String>,
    handle: Handle,
}

impl Follower {
    /// Follows until a row `end` arrives.
    fn start(config: Config) -> Self {
        let mut client = connect(config);
        let (sender, connected) = mpsc::unbounded_channel();
        let handle = client.handle();
        let task = tokio::spawn(async move {
            let mut fold = Fold::<Item>(BTreeMap::new());
            let mut reasons = Vec::new();
            while !item_names(&client).contains(&"end".to_owned()) {
                match next(&mut client).await {
                    Event::Batch(batch) => {
                        fold.apply(&batch);
                        let all_deleted = batch.of::<Item>().iter().all(|change| change.new.is_none());
                        assert!(
                            !all_deleted || batch.len() < 10,
                            "a reconnection looks as if everything was deleted"
                        );
                    }
                    Event::Connected { remote } => sender.send(remote.to_string()).unwrap(),
                    Event::Disconnected { reason, .. } => reasons.push(reason.to_string()),
                    _ => {}
                }
            }
            fold.check(&client);
            (client, reasons)
        });
        Self { task, connected, handle }
    }

    async fn connected(&mut self) -> String {
        tokio::time::timeout(WAIT, self.connected.recv()).await.unwrap().unwrap()
    }
}

/// Writes over a connection of its own: rows are inserted, changed and deleted, as fast as the cluster takes it.
struct Writer {
    handle: Handle,
    written: Arc<AtomicU64>,
    stop: tokio::sync::oneshot::Sender<()>,
    writes: tokio::task::JoinHandle<()>,
    connection: tokio::task::JoinHandle<()>,
}

impl Writer {
    fn start(config: Config) -> Self {
        let mut client = connect(config);
        let handle = client.handle();
        let written = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let writes = tokio::spawn(write(handle.clone(), Arc::clone(&written), stopped));
        let connection = tokio::spawn(async move {
            loop {
                client.recv().await;
            }
        });
        Self { handle, written, stop, writes, connection }
    }

    /// Number of transactions that succeeded.
    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until the cluster took `count` writes more.
    async fn take(&self, count: u64) {
        let wanted = self.written() + count;
        let taken = async {
            while self.written() < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(2 * WAIT, taken).await.is_ok(), "the cluster takes no writes");
    }

    /// Writes a last row `end`, and nothing after it.
    async fn end(self) {
        self.stop.send(()).unwrap();
        self.writes.await.unwrap();
        while self.handle.transact(vec![insert("end")]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.connection.abort();
    }
}

async fn write(handle: Handle, written: Arc<AtomicU64>, mut stop: tokio::sync::oneshot::Receiver<()>) {
    for i in 0.. {
        let mut operations = vec![insert(&format!("row-{i}")), update(&format!("row-{}", i / 2), "count", i)];
        if i % 3 == 0 {
            operations.push(delete(&format!("row-{}", i / 3)));
        }
        match handle.transact(operations).await {
            Ok(_) => {
                written.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::NotConnected | Error::Interrupted | Error::Transaction { .. }) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
        if stop.try_recv().is_ok() {
            break;
        }
    }
}

#[tokio::test]
async fn servers_killed_under_load_lose_and_invent_nothing() {
    let mut cluster = Cluster::start(SCHEMA, 3);
    let mut follower = Follower::start(config(&cluster.remotes()));
    let first = cluster.index(&follower.connected().await);
    let writer = Writer::start(config(&cluster.remotes()));
    writer.take(20).await;

    // The server that the follower uses, then the leader, whoever that is.
    cluster.servers[first].stop();
    let second = cluster.index(&follower.connected().await);
    assert_ne!(first, second);
    writer.take(20).await;
    cluster.servers[first].restart();
    cluster.servers[first].await_connected();
    let leader = cluster.leader();
    cluster.servers[leader].stop();
    let next_leader = cluster.leader();
    assert_ne!(leader, next_leader);
    writer.take(20).await;
    cluster.servers[leader].restart();
    cluster.servers[leader].await_connected();
    writer.take(20).await;
    writer.end().await;
    let handle = follower.handle.clone();
    let (client, reasons) = follower.task.await.unwrap();
    assert!(!reasons.is_empty());
    let held: BTreeMap<_, _> =
        client.table::<Item>().iter().map(|(id, row)| (*id, Item::clone(row))).collect();
    assert_eq!(held, select_items(&handle).await);
}

#[tokio::test]
async fn conditions_that_change_during_failover_end_right() {
    let mut cluster = Cluster::start(SCHEMA, 3);
    let above = |count: i64| {
        Conditions::any_of([Clause::new("count", Function::Greater, count), Clause::equal("name", "end")])
    };
    let mut partial = Client::builder(config(&cluster.remotes())).monitor::<Item>(above(0)).connect();
    let writer = Writer::start(config(&cluster.remotes()));
    let mut fold = Fold::<Item>(BTreeMap::new());
    let mut down = None;
    // A server goes down only when the cluster took writes since the last one came back: an election takes as long as
    // the machine makes it.
    let (mut failures, mut enough) = (0, 5);
    let started = Instant::now();
    for round in 0.. {
        if round >= 120 && failures >= 3 && down.is_none() && writer.written() >= enough {
            break;
        }
        assert!(started.elapsed() < 6 * WAIT, "{failures} failures, {} writes", writer.written());
        let may_fail = down.is_none() && writer.written() >= enough;
        let threshold = i64::from(round * 37 % 11) * 20;
        partial.set_condition::<Item>(above(threshold)).unwrap();
        let pause = tokio::time::sleep(Duration::from_millis(25));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                event = next(&mut partial) => match event {
                    Event::Batch(batch) => fold.apply(&batch),
                    // Sometimes the server goes away just when it was taken, with changes of conditions under way.
                    Event::Connected { remote } if round % 3 == 0 && may_fail && down.is_none() => {
                        let index = cluster.index(&remote.to_string());
                        cluster.servers[index].stop();
                        down = Some((index, round));
                    }
                    _ => {}
                },
                () = &mut pause => break,
            }
        }
        fold.check(&partial);
        match down {
            Some((index, since)) if round > since + 20 => {
                cluster.servers[index].restart();
                down = None;
                failures += 1;
                enough = writer.written() + 5;
            }
            // A change is on its way when the server dies.
            None if round % 30 >= 10 && may_fail => {
                partial.set_condition::<Item>(above(threshold + 1)).unwrap();
                tokio::task::yield_now().await;
                let index = usize::try_from(round).unwrap() / 30 % 3;
                cluster.servers[index].stop();
                down = Some((index, round));
            }
            _ => {}
        }
    }
    writer.end().await;
    partial.set_condition::<Item>(above(0)).unwrap();
    let wanted = partial.set_condition::<Item>(above(50)).unwrap();
    let mut in_force = false;
    while !in_force || !item_names(&partial).contains(&"end".to_owned()) {
        match next(&mut partial).await {
            Event::Batch(batch) => fold.apply(&batch),
            Event::ConditionInForce(generation) => in_force = generation == wanted,
            _ => {}
        }
    }
    fold.check(&partial);
    let truth = select_items(&partial.handle()).await;
    let matching: BTreeMap<_, _> =
        truth.into_iter().filter(|(_, item)| item.count > 50 || item.name == "end").collect();
    assert_eq!(fold.0, matching);
}

#[tokio::test]
async fn another_server_resumes_where_the_last_one_ended() {
    let mut cluster = Cluster::start(SCHEMA, 3);
    let (a, b) = (Relay::start(&cluster.servers[0], &[]).await, Relay::start(&cluster.servers[1], &[]).await);
    let mut client = connect(config(&format!("{},{}", a.remote(), b.remote())));
    let Event::Connected { remote } = next(&mut client).await else { panic!("not connected") };
    synced(&mut client).await;
    client.transact(["x", "y"].map(insert).to_vec()).await.unwrap();
    until_names(&mut client, &["x", "y"]).await;

    let (used, other) = if remote.to_string() == a.remote() { (0, &b) } else { (1, &a) };
    cluster.servers[used].stop();
    until(&mut client, |event, _| matches!(event, Event::Disconnected { .. })).await;
    cluster.leader();
    let writer_handle = {
        let mut writer = connect(config(&cluster.servers[2].tcp()));
        synced(&mut writer).await;
        writer.transact(vec![delete("x"), insert("z")]).await.unwrap();
        writer
    };
    let batches = until_names(&mut client, &["y", "z"]).await;
    assert_eq!(summaries(&batches).concat(), ["+z", "-x"]);
    drop(writer_handle);
    let heard = other.heard.lock().unwrap();
    assert!(
        heard.iter().any(|message| message.contains("\"result\":[true,")),
        "resumed, not dumped: {heard:?}"
    );
}

#[tokio::test]
async fn servers_without_a_quorum_are_left_and_taken_again() {
    let mut cluster = Cluster::start(SCHEMA, 3);
    let mut client = connect(config(&cluster.remotes()));
    let Event::Connected { remote } = next(&mut client).await else { panic!("not connected") };
    let used = cluster.index(&remote.to_string());
    synced(&mut client).await;
    client.transact(vec![insert("a")]).await.unwrap();
    until_names(&mut client, &["a"]).await;
    let others: Vec<usize> = (0..3).filter(|index| *index != used).collect();
    for other in &others {
        cluster.servers[*other].stop();
    }
    // The lonely server notices after a few election timeouts.
    until(&mut client, |event, _| {
        matches!(event, Event::Disconnected { reason, .. } if reason.to_string().contains("lost its connection to the clustered"))
    })
    .await;
    assert_eq!(item_names(&client), ["a"], "the rows stay");
    cluster.servers[others[0]].restart();
    assert!(synced(&mut client).await.is_empty());
    client.transact(vec![insert("b")]).await.unwrap();
    until_names(&mut client, &["a", "b"]).await;
}

#[tokio::test]
async fn a_client_that_wants_the_leader_follows_it() {
    let cluster = Cluster::start(SCHEMA, 3);
    let mut leader_only = config(&cluster.remotes());
    leader_only.leader_only = true;
    let mut client = connect(leader_only);
    let connected = |event: &Event, _: &Client| matches!(event, Event::Connected { .. });
    let leader = cluster.leader();
    let (event, _) = until(&mut client, connected).await;
    assert!(matches!(event, Event::Connected { remote } if cluster.index(&remote.to_string()) == leader));
    synced(&mut client).await;
    cluster.servers[leader].appctl(&["cluster/failure-test", "transfer-leadership"]);
    until(&mut client, |event, _| {
        matches!(event, Event::Disconnected { reason, .. } if reason.to_string().contains("not the leader"))
    })
    .await;
    let (event, _) = until(&mut client, connected).await;
    assert!(matches!(event, Event::Connected { remote } if cluster.index(&remote.to_string()) != leader));
    // A hung leader is left by the probe, but nobody waits for that here.
    cluster.servers[leader].signal(Signal::SIGCONT);
}

#[tokio::test]
async fn a_cluster_that_was_restored_from_a_backup_is_taken_as_it_is() {
    let mut cluster = Cluster::start(SCHEMA, 1);
    let mut client = connect(config(&cluster.remotes()));
    synced(&mut client).await;
    client.transact(vec![insert("old"), insert("changes")]).await.unwrap();
    until_names(&mut client, &["changes", "old"]).await;
    let server = &mut cluster.servers[0];
    server.stop();
    let (db, backup) = (server.directory.path("db"), server.directory.path("backup"));
    std::fs::copy(&db, &backup).unwrap();
    server.restart();
    synced(&mut client).await;
    for i in 0..20 {
        client.transact(vec![insert(&format!("new{i}")), update("changes", "count", i)]).await.unwrap();
    }
    // So that the client has seen how far the log was.
    server.restart();
    synced(&mut client).await;
    assert_eq!(client.table::<Item>().len(), 22);

    server.stop();
    std::fs::copy(&backup, &db).unwrap();
    server.restart();
    let behind = |event: &Event, _: &Client| matches!(event, Event::Disconnected { reason, .. } if reason.to_string().contains("the server is behind"));
    until(&mut client, behind).await;
    assert_eq!(client.table::<Item>().len(), 22, "a server that is behind is not believed at once");
    let batches = synced(&mut client).await;
    assert_eq!(item_names(&client), ["changes", "old"]);
    assert_eq!(summaries(&batches).concat().len(), 21, "differences only");
}
