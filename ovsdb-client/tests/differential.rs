//! Random transactions against a real server, watched in every wording at once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::*;
use ovsdb_client::{
    Clause, Client, Columns, Conditions, Error, Event, Function, Handle, Mutation, Mutator, Operation, Uuid,
    Value,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Duration of the test, from `DIFFERENTIAL_SECONDS` (5): each round is as good as any other.
fn duration() -> Duration {
    let seconds = std::env::var("DIFFERENTIAL_SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

fn name() -> impl Strategy<Value = String> {
    (0..12u8).prop_map(|number| format!("item{number}"))
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "set", "map", "", "\"\\\u{7f}é"]).prop_map(str::to_owned)
}

fn column() -> impl Strategy<Value = (String, Value)> {
    let words = || prop::collection::btree_set(word(), 0..4);
    let value = |column: &'static str| move |value: Value| (column.to_owned(), value);
    prop_oneof![
        any::<i64>().prop_map(Value::from).prop_map(value("count")),
        (-1000i32..1000).prop_map(|price| Value::from(f64::from(price) / 4.0)).prop_map(value("price")),
        prop::option::of(any::<bool>()).prop_map(Value::from).prop_map(value("up")),
        prop::option::of(0..3i64).prop_map(Value::from).prop_map(value("tag")),
        words().prop_map(Value::from).prop_map(value("labels")),
        prop::collection::btree_map(word(), word(), 0..4).prop_map(Value::from).prop_map(value("ids")),
    ]
}

/// Operations by name; references are made from rows that exist when the transaction is built.
fn operation() -> impl Strategy<Value = Operation> {
    let columns =
        || prop::collection::vec(column(), 0..4).prop_map(|columns| columns.into_iter().collect::<Columns>());
    prop_oneof![
        4 => (name(), columns()).prop_map(|(name, mut row)| {
            row.insert("name".into(), name.into());
            insert_row(row)
        }),
        4 => (name(), columns()).prop_map(|(name, row)| {
            Operation::Update { table: "Item".into(), condition: named(&name), row }
        }),
        2 => (name(), prop::collection::btree_set(word(), 1..3), any::<bool>()).prop_map(|(name, words, add)| {
            let mutator = if add { Mutator::Insert } else { Mutator::Delete };
            let mutations = vec![Mutation::new("labels", mutator, words)];
            Operation::Mutate { table: "Item".into(), condition: named(&name), mutations }
        }),
        2 => name().prop_map(|name| delete(&name)),
        1 => (0..3i64).prop_map(|tag| {
            Operation::Delete { table: "Item".into(), condition: vec![Clause::equal("tag", tag)] }
        }),
    ]
}

fn sample<T>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).unwrap().current()
}

/// A client with what it was told.
struct Watcher {
    client: Client,
    fold: Fold<Item>,
    /// The server of the last connection.
    remote: String,
}

impl Watcher {
    async fn start(remotes: &str) -> Self {
        let client = Client::builder(config(remotes))
            .monitor::<Item>(Conditions::All)
            .monitor::<Global>(Conditions::All)
            .connect();
        let mut watcher = Self { client, fold: Fold(BTreeMap::new()), remote: String::new() };
        while !matches!(watcher.take().await, Event::Synced) {}
        watcher
    }

    async fn take(&mut self) -> Event {
        let event = next(&mut self.client).await;
        match &event {
            Event::Batch(batch) => self.fold.apply(batch),
            Event::Connected { remote } => self.remote = remote.to_string(),
            _ => {}
        }
        event
    }

    /// Takes everything up to the transaction that set the global number to `number`.
    async fn catch_up(&mut self, number: i64) {
        while self.client.table::<Global>().iter().all(|(_, global)| global.number != number) {
            self.take().await;
        }
        self.fold.check(&self.client);
    }

    /// Compares what it was told, and says only what is different.
    fn check(&self, truth: &BTreeMap<Uuid, Item>) {
        let (held, wanted) = (self.fold.0.iter(), truth.iter());
        let wrong: Vec<_> = held.filter(|(uuid, item)| truth.get(*uuid) != Some(*item)).collect();
        let missed: Vec<_> = wanted.filter(|(uuid, item)| self.fold.0.get(*uuid) != Some(*item)).collect();
        assert!(wrong.is_empty() && missed.is_empty(), "{}: {wrong:#?} for {missed:#?}", self.remote);
    }

    /// Sets conditions, and takes everything until they are in force.
    async fn follow(&mut self, conditions: Conditions) {
        let wanted = self.client.set_condition::<Item>(conditions).unwrap();
        while self.client.in_force() < Some(wanted) {
            self.take().await;
        }
        self.fold.check(&self.client);
    }
}

fn above(minimum: i64) -> Conditions {
    Conditions::any_of([Clause::new("price", Function::Greater, minimum as f64 / 4.0)])
}

/// Writer of transactions, and their results.
struct Writer {
    handle: Handle,
    runner: TestRunner,
    succeeded: usize,
    number: i64,
}

impl Writer {
    async fn start(remotes: &str) -> Self {
        let mut client = Client::builder(config(remotes)).connect();
        synced(&mut client).await;
        let handle = client.handle();
        tokio::spawn(async move {
            loop {
                client.recv().await;
            }
        });
        // A server's history is no larger than its database: ovsdb_txn_history_run() in Open vSwitch's transaction.c.
        let bulk = (0..2000).map(|i| i.to_string()).collect::<BTreeSet<_>>();
        let global = Operation::Insert { table: "Global".into(), row: Columns::new(), name: None };
        handle.transact(vec![global, insert("bulk"), update("bulk", "labels", bulk)]).await.unwrap();
        Self { handle, runner: TestRunner::default(), succeeded: 0, number: 0 }
    }

    /// Makes a random transaction, with references to some of the rows `ids` if there are any.
    async fn write(&mut self, ids: Vec<Uuid>) {
        let mut operations = sample(&mut self.runner, &prop::collection::vec(operation(), 1..6));
        if !ids.is_empty() {
            let few = 0..=ids.len().min(4);
            let peers = sample(&mut self.runner, &prop::sample::subsequence(ids, few));
            operations.push(update(&sample(&mut self.runner, &name()), "peer", peers.first().copied()));
            operations.push(update(&sample(&mut self.runner, &name()), "peers", peers));
        }
        match self.handle.transact(operations).await {
            Ok(_) => self.succeeded += 1,
            // Two rows of one name, or no leader.
            Err(Error::Transaction { error, .. }) => {
                assert!(error.contains("constraint") || error.contains("cluster"), "{error}");
            }
            Err(Error::NotConnected | Error::Interrupted) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Marks the end of what was written so far, and gives what a server holds then.
    async fn end_round(&mut self) -> BTreeMap<Uuid, Item> {
        self.number += 1;
        let row = Columns::from([("number".into(), self.number.into())]);
        let mark = Operation::Update { table: "Global".into(), condition: vec![], row: row.clone() };
        until_ok(async || self.handle.transact(vec![mark.clone()]).await).await;
        // Another server than the one that took it may be asked, and not have it yet.
        let marked = Operation::Wait {
            timeout: Some(0),
            table: "Global".into(),
            condition: vec![],
            columns: vec!["number".into()],
            until_equal: true,
            rows: vec![row],
        };
        until_ok(async || select_items_if(&self.handle, vec![marked.clone()]).await).await
    }
}

/// Tries again until it succeeds.
async fn until_ok<T>(attempt: impl AsyncFn() -> Result<T, Error>) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        match attempt().await {
            Ok(result) => return result,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes for a while, and tells before each round which server the first watcher uses. All of the watchers, and one whose
/// conditions change all the time, have to agree with a server after each.
async fn compare(remotes: &str, watched: &[&str], references: bool, uses: impl Fn(&str)) {
    let mut writer = Writer::start(remotes).await;
    let mut watchers = Vec::new();
    for remotes in watched {
        watchers.push(Watcher::start(remotes).await);
    }
    let mut partial = Watcher::start(remotes).await;
    let mut minimum = 0;
    let began = Instant::now();
    // However busy the machine is, there is something to compare.
    while began.elapsed() < duration() || writer.succeeded <= 100 {
        uses(&watchers[0].remote);
        for _ in 0..sample(&mut writer.runner, &(1..20usize)) {
            let rows = watchers[0].client.table::<Item>().iter().filter(|_| references);
            writer.write(rows.map(|(id, _)| *id).collect()).await;
            if sample(&mut writer.runner, &(0..8)) == 0 {
                minimum = sample(&mut writer.runner, &(-1000..1000i64));
                partial.client.set_condition::<Item>(above(minimum)).unwrap();
            }
        }
        let truth = writer.end_round().await;
        for watcher in &mut watchers {
            watcher.catch_up(writer.number).await;
            watcher.check(&truth);
        }
        // The partial one is done when its last conditions are in force.
        partial.catch_up(writer.number).await;
        partial.client.set_condition::<Item>(Conditions::None).unwrap();
        partial.follow(above(minimum)).await;
        let matching: BTreeMap<_, _> =
            truth.into_iter().filter(|(_, item)| item.price > minimum as f64 / 4.0).collect();
        partial.check(&matching);
    }
    println!("{} transactions, {} comparisons", writer.succeeded, writer.number);
}

#[tokio::test]
async fn every_wording_leads_to_what_the_server_holds() {
    let server = Server::start(SCHEMA);
    let cond = Relay::start(&server, &["monitor_cond_since"]).await;
    let plain = Relay::start(&server, &["monitor_cond_since", "monitor_cond"]).await;
    let tcp = server.tcp();
    let failures = Failures::start(vec![server], Duration::ZERO);
    compare(&tcp, &[&tcp, &cond.remote(), &plain.remote()], true, |_| {}).await;
    assert!(failures.stop() > 0);
}

#[tokio::test]
async fn every_wording_leads_to_what_a_cluster_holds_that_loses_servers() {
    let cluster = Cluster::start(SCHEMA, 3);
    let remotes = cluster.remotes();
    let mut relays = Vec::new();
    for renamed in [&[][..], &["monitor_cond_since"], &["monitor_cond_since", "monitor_cond"]] {
        for server in &cluster.servers {
            relays.push(Relay::start(server, renamed).await);
        }
    }
    let lists: Vec<String> = relays
        .chunks(3)
        .map(|relays| relays.iter().map(Relay::remote).collect::<Vec<_>>().join(","))
        .collect();
    let watched: Vec<&str> = lists.iter().map(String::as_str).collect();
    // The server that the first of them uses goes away: the answer to what that one missed comes from another.
    let failures = Failures::start(cluster.servers, Duration::from_secs(1));
    // Weak references to rows that are gone stay on some servers of a cluster of ovsdb-server 3.1.0.
    compare(&remotes, &watched, false, |used| {
        let index = relays.iter().position(|relay| relay.remote() == used).unwrap();
        failures.point_at(index % 3);
    })
    .await;
    let losses = failures.stop();
    let resumed = |relay: &Relay| {
        relay.heard.lock().unwrap().iter().filter(|message| message.contains("\"result\":[true,")).count()
    };
    let resumptions: usize = relays[..3].iter().map(resumed).sum();
    println!("{losses} servers lost, {resumptions} resumptions");
    assert!(losses > 0 && resumptions > 0, "{losses} servers lost, {resumptions} resumptions");
}
