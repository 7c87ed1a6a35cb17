//! Random transactions against a real server, watched in every wording at once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::*;
use ovsdb_client::{
    Clause, Client, Columns, Conditions, Error, Event, Function, Mutation, Mutator, Operation, Uuid, Value,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// How long to go on: each round is as good as any other.
const DURATION: Duration = Duration::from_secs(6);

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
}

impl Watcher {
    async fn start(remote: &str) -> Self {
        let tables = Client::builder(config(remote))
            .monitor::<Item>(Conditions::All)
            .monitor::<Global>(Conditions::All);
        let mut client = tables.connect();
        synced(&mut client).await;
        Self { client, fold: Fold(BTreeMap::new()) }
    }

    async fn take(&mut self) {
        if let Event::Batch(batch) = next(&mut self.client).await {
            self.fold.apply(&batch);
        }
    }

    /// Takes everything up to the transaction that set the global number to `number`.
    async fn catch_up(&mut self, number: i64) {
        while self.client.table::<Global>().iter().all(|(_, global)| global.number != number) {
            self.take().await;
        }
        self.fold.check(&self.client);
    }
}

#[tokio::test]
async fn every_wording_leads_to_what_the_server_holds() {
    let mut server = Server::start(SCHEMA);
    let cond = Relay::start(&server, &["monitor_cond_since"]).await;
    let plain = Relay::start(&server, &["monitor_cond_since", "monitor_cond"]).await;
    let mut watchers = [
        Watcher::start(&server.tcp()).await,
        Watcher::start(&cond.remote()).await,
        Watcher::start(&plain.remote()).await,
    ];
    // One whose conditions change all the time.
    let mut partial = Watcher::start(&server.unix()).await;
    let mut minimum = 0;
    let writer = Client::builder(config(&server.unix())).connect();
    let handle = writer.handle();
    watchers[0]
        .client
        .transact(vec![Operation::Insert { table: "Global".into(), row: Columns::new(), name: None }])
        .await
        .unwrap();

    let mut runner = TestRunner::default();
    let transactions = prop::collection::vec(operation(), 1..6);
    let began = Instant::now();
    let (mut number, mut succeeded) = (0, 0);
    while began.elapsed() < DURATION {
        for _ in 0..sample(&mut runner, &(1..20usize)) {
            let mut operations = sample(&mut runner, &transactions);
            let ids: Vec<Uuid> = watchers[0].client.table::<Item>().iter().map(|(id, _)| *id).collect();
            if !ids.is_empty() {
                let peers =
                    sample(&mut runner, &prop::sample::subsequence(ids.clone(), 0..=ids.len().min(4)));
                operations.push(update(&sample(&mut runner, &name()), "peer", peers.first().copied()));
                operations.push(update(&sample(&mut runner, &name()), "peers", peers));
            }
            match handle.transact(operations).await {
                Ok(_) => succeeded += 1,
                // Two rows of one name.
                Err(Error::Transaction { error, .. }) => assert!(error.contains("constraint"), "{error}"),
                Err(Error::NotConnected) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
            if sample(&mut runner, &(0..8)) == 0 {
                minimum = sample(&mut runner, &(-1000..1000i64));
                let conditions =
                    Conditions::any_of([Clause::new("price", Function::Greater, minimum as f64 / 4.0)]);
                partial.client.set_condition::<Item>(conditions).unwrap();
            }
        }
        if number == 10 {
            server.restart();
        }
        number += 1;
        let mark = Columns::from([("number".into(), number.into())]);
        let mark = vec![Operation::Update { table: "Global".into(), condition: vec![], row: mark }];
        while handle.transact(mark.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let truth = select_items(&handle).await;
        for watcher in &mut watchers {
            watcher.catch_up(number).await;
            assert_eq!(watcher.fold.0, truth);
        }
        // The partial one is done when its last conditions are in force.
        partial.catch_up(number).await;
        let generation = partial.client.set_condition::<Item>(Conditions::None).unwrap();
        let conditions = Conditions::any_of([Clause::new("price", Function::Greater, minimum as f64 / 4.0)]);
        let wanted = partial.client.set_condition::<Item>(conditions).unwrap();
        assert!(wanted > generation);
        loop {
            match next(&mut partial.client).await {
                Event::Batch(batch) => partial.fold.apply(&batch),
                Event::ConditionInForce(generation) if generation == wanted => break,
                _ => {}
            }
        }
        let matching: BTreeMap<_, _> =
            truth.into_iter().filter(|(_, item)| item.price > minimum as f64 / 4.0).collect();
        assert_eq!(partial.fold.0, matching);
        partial.fold.check(&partial.client);
    }
    assert!(succeeded > 100, "{succeeded}");
    println!("{succeeded} transactions, {number} comparisons");
}
