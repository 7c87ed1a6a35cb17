//! A standalone ovsdb-server: contents, changes, conditions, transactions, locks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::*;
use ovsdb_client::{
    Clause, Client, Columns, Conditions, Error, Event, Index, Mutation, Mutator, Operation, Uuid, Value,
};

fn client(remotes: &str) -> Client {
    Client::builder(config(remotes))
        .monitor::<Item>(Conditions::All)
        .monitor::<Global>(Conditions::All)
        .connect()
}

#[tokio::test]
async fn contents_and_changes_arrive_over_unix_and_tcp() {
    let server = Server::start(SCHEMA);
    for remote in [server.unix(), server.tcp()] {
        let mut client = client(&remote);
        assert!(matches!(next(&mut client).await, Event::Connected { remote: r } if r.to_string() == remote));
        assert!(matches!(next(&mut client).await, Event::Synced));
        assert!(client.table::<Item>().is_empty());

        client.transact(vec![insert("a"), insert("b")]).await.unwrap();
        assert_eq!(
            summary(batch(&mut client).await.of::<Item>()),
            ["+a", "+b"],
            "one transaction, one batch"
        );
        client.transact(vec![update("a", "count", 5), delete("b")]).await.unwrap();
        let changes = batch(&mut client).await;
        assert_eq!(summary(changes.of::<Item>()), ["-b", "~a"]);
        let modify = changes.of::<Item>().iter().find(|change| change.new.is_some()).unwrap();
        assert_eq!(modify.old.as_ref().unwrap().count, 0);
        assert_eq!(modify.new.as_ref().unwrap().count, 5);
        assert_eq!(client.table::<Item>().get(&modify.uuid).unwrap().count, 5);

        client.transact(vec![delete("a")]).await.unwrap();
        assert_eq!(summary(batch(&mut client).await.of::<Item>()), ["-a"]);
    }
}

#[tokio::test]
async fn every_kind_of_column_follows_the_server() {
    let server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    client.transact(vec![insert("peer1"), insert("peer2"), insert("x")]).await.unwrap();
    until_names(&mut client, &["peer1", "peer2", "x"]).await;
    let id =
        |client: &Client, name: &str| *client.table::<Item>().iter().find(|(_, i)| i.name == name).unwrap().0;
    let (one, two) = (id(&client, "peer1"), id(&client, "peer2"));

    // Each step sets columns to new values; the differences that the server sends must lead to the same.
    let maps = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let steps = [
        Item {
            price: 1.0,
            up: Some(true),
            tag: Some(7),
            peer: Some(one),
            labels: ["a".to_owned()].into(),
            peers: [one].into(),
            ids: maps(&[("k", "v")]),
            ..Item::default()
        },
        Item {
            price: 2.5,
            up: Some(false),
            tag: Some(8),
            peer: Some(two),
            labels: ["b".to_owned(), "c".to_owned(), "\"é\n".to_owned()].into(),
            peers: [one, two].into(),
            ids: maps(&[("k", "w"), ("l", "")]),
            ..Item::default()
        },
        Item {
            labels: ["c".to_owned()].into(),
            peers: [two].into(),
            ids: maps(&[("l", "")]),
            ..Item::default()
        },
        Item::default(),
    ];
    for step in steps {
        let step = Item { name: "x".into(), count: -3, ..step };
        let row = Columns::from([
            ("count".into(), step.count.into()),
            ("price".into(), step.price.into()),
            ("up".into(), step.up.into()),
            ("tag".into(), step.tag.into()),
            ("peer".into(), step.peer.into()),
            ("labels".into(), step.labels.clone().into()),
            ("peers".into(), step.peers.clone().into()),
            ("ids".into(), step.ids.clone().into()),
        ]);
        client
            .transact(vec![Operation::Update { table: "Item".into(), condition: named("x"), row }])
            .await
            .unwrap();
        batch(&mut client).await;
        let held = client.table::<Item>().iter().find(|(_, item)| item.name == "x").unwrap().1;
        assert_eq!(**held, step);
    }
}

#[tokio::test]
async fn waiting_can_be_given_up_at_any_time() {
    let server = Server::start(SCHEMA);
    let (mut client, writer) = (client(&server.unix()), client(&server.unix()));
    synced(&mut client).await;
    let handle = writer.handle();
    let writes = tokio::spawn(async move {
        for i in 0..200 {
            while handle.transact(vec![insert(&format!("i{i}"))]).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let mut fold = Fold::<Item>(BTreeMap::new());
    let mut by_name = Index::new(|item: &Item| item.name.clone());
    while client.table::<Item>().len() < 200 {
        tokio::select! {
            biased;
            event = client.recv() => if let Event::Batch(batch) = event {
                fold.apply(&batch);
                by_name.apply(&batch);
            },
            () = tokio::task::yield_now() => {}
        }
    }
    fold.check(&client);
    writes.await.unwrap();
    let uuid = by_name.get("i77").next().unwrap();
    assert_eq!(client.table::<Item>().get(uuid).unwrap().name, "i77");
    client.transact(vec![update("i77", "name", "renamed"), delete("i78")]).await.unwrap();
    by_name.apply(&batch(&mut client).await);
    assert_eq!(
        [by_name.get("i77").count(), by_name.get("i78").count(), by_name.get("renamed").count()],
        [0, 0, 1]
    );
}

#[tokio::test]
async fn conditions_bring_and_take_rows() {
    let server = Server::start(SCHEMA);
    let names = |names: &[&str]| Conditions::any_of(names.iter().map(|name| Clause::equal("name", *name)));
    let mut client = Client::builder(config(&server.tcp())).monitor::<Item>(names(&["b"])).connect();
    let first = client.set_condition::<Item>(names(&["b"])).unwrap();
    assert_eq!(client.in_force(), None);
    synced(&mut client).await;
    assert_eq!(client.in_force(), Some(first), "what was never changed is in force without a word");
    client.transact(["a", "b", "c", "d"].map(insert).to_vec()).await.unwrap();
    until_names(&mut client, &["b"]).await;

    let generation = client.set_condition::<Item>(names(&["b", "c"])).unwrap();
    assert!(client.in_force() < Some(generation));
    let (_, batches) =
        until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g >= generation)).await;
    assert_eq!(summaries(&batches), [["+c"]]);

    // Many changes at once: only the last one counts, and is told to be in force.
    client.set_condition::<Item>(names(&["a"])).unwrap();
    client.set_condition::<Item>(Conditions::None).unwrap();
    let last = client.set_condition::<Item>(names(&["d", "b"])).unwrap();
    let (_, batches) =
        until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g == last)).await;
    assert_eq!(item_names(&client), ["b", "d"]);
    let mut fold = Fold(BTreeMap::new());
    fold.apply_all_of(&batches, ["b", "c"], &client);

    // The same again is in force already, and a change back and forth is none.
    assert_eq!(client.set_condition::<Item>(names(&["d", "b"])).unwrap(), last);
    assert_eq!(client.in_force(), Some(last));

    let thousands: Vec<String> = (0..5000).map(|i| format!("port-{i}")).collect();
    let clauses =
        thousands.iter().map(|name| Clause::equal("name", name.as_str())).chain([Clause::equal("name", "a")]);
    let generation = client.set_condition::<Item>(Conditions::any_of(clauses)).unwrap();
    until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g >= generation)).await;
    assert_eq!(item_names(&client), ["a"]);

    // A row that stops to match leaves, one that begins to match arrives.
    client.transact(vec![update("a", "name", "z"), update("b", "name", "port-77")]).await.unwrap();
    assert_eq!(summary(batch(&mut client).await.of::<Item>()), ["+port-77", "-a"]);

    client.set_condition::<Item>(Conditions::All).unwrap();
    until_names(&mut client, &["c", "d", "port-77", "z"]).await;
    client.set_condition::<Item>(Conditions::None).unwrap();
    until_names(&mut client, &[]).await;
    assert!(matches!(client.set_condition::<Global>(Conditions::All), Err(Error::NotMonitored("Global"))));
}

impl Fold<Item> {
    /// Folds `batches` into what the replica holds now, beginning with nothing known of the old rows.
    fn apply_all_of(&mut self, batches: &[ovsdb_client::Batch], before: [&str; 2], client: &Client) {
        let mut names: BTreeSet<String> = before.iter().map(|name| (*name).to_owned()).collect();
        for change in batches.iter().flat_map(|batch| batch.of::<Item>()) {
            match (&change.old, &change.new) {
                (None, Some(new)) => assert!(names.insert(new.name.clone())),
                (Some(old), None) => assert!(names.remove(&old.name)),
                _ => {}
            }
        }
        assert_eq!(names.into_iter().collect::<Vec<_>>(), item_names(client));
    }
}

#[tokio::test]
async fn transactions_do_what_they_say() {
    let server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    let handle = client.handle();
    assert_eq!(handle.list_dbs().await.unwrap(), ["Inventory", "_Server"]);
    assert_eq!(handle.get_schema().await.unwrap().tables.len(), 2);

    let table = || "Item".to_owned();
    let results = handle
        .transact(vec![
            Operation::Insert {
                table: table(),
                row: [("name".into(), "a".into())].into(),
                name: Some("new".into()),
            },
            Operation::Insert {
                table: table(),
                row: [("name".into(), "b".into()), ("peer".into(), Value::named_uuid("new"))].into(),
                name: None,
            },
            Operation::Mutate {
                table: table(),
                condition: named("a"),
                mutations: vec![
                    Mutation::new("count", Mutator::Add, 5),
                    Mutation::new("ids", Mutator::Insert, BTreeMap::from([("k", "v")])),
                ],
            },
            Operation::Comment { text: "a test".into() },
            Operation::Commit { durable: true },
            Operation::Select {
                table: table(),
                condition: named("a"),
                columns: Some(vec!["count".into(), "ids".into()]),
            },
            Operation::Wait {
                timeout: Some(0),
                table: table(),
                condition: named("a"),
                columns: vec!["count".into()],
                until_equal: true,
                rows: vec![[("count".into(), 5.into())].into()],
            },
        ])
        .await
        .unwrap();
    let a: Uuid = results[0].uuid.unwrap();
    assert_eq!(results[2].count, 1);
    assert_eq!(results[5].rows[0]["count"], Value::from(5));
    batch(&mut client).await;
    let b = client.table::<Item>().get(&results[1].uuid.unwrap()).unwrap();
    assert_eq!(b.peer, Some(a));

    // What fails says what failed, and changes nothing.
    let wait = Operation::Wait {
        timeout: Some(0),
        table: table(),
        condition: named("a"),
        columns: vec!["count".into()],
        until_equal: true,
        rows: vec![[("count".into(), 6.into())].into()],
    };
    let error = handle.transact(vec![delete("a"), wait]).await.unwrap_err();
    assert!(matches!(&error, Error::Transaction { index: 1, operation: "wait", .. }), "{error}");
    let error = handle.transact(vec![insert("a")]).await.unwrap_err();
    assert!(matches!(&error, Error::Transaction { operation: "commit", .. }), "{error}");
    assert!(error.to_string().contains("constraint violation"), "{error}");
    let error = handle.transact(vec![Operation::Assert { lock: "mine".into() }]).await.unwrap_err();
    assert!(error.to_string().contains("not owner"), "{error}");
    let error = handle.request("nonsense", serde_json::json!([])).await.unwrap_err();
    assert_eq!(error.to_string(), "the server refused nonsense: unknown method");
    assert_eq!(item_names(&client), ["a", "b"]);
}

#[tokio::test]
async fn locks_are_obtained_lost_and_obtained_again() {
    let mut server = Server::start(SCHEMA);
    let (mut first, mut second) = (client(&server.unix()), client(&server.unix()));
    synced(&mut first).await;
    synced(&mut second).await;
    let lock = |held: bool| move |event: &Event, _: &Client| matches!(event, Event::Lock { held: h, .. } if *h == held);
    first.handle().lock("leader").await.unwrap();
    until(&mut first, lock(true)).await;
    first.transact(vec![Operation::Assert { lock: "leader".into() }]).await.unwrap();
    second.handle().lock("leader").await.unwrap();
    first.handle().unlock("leader").await.unwrap();
    until(&mut first, lock(false)).await;
    until(&mut second, lock(true)).await;
    first.handle().steal("leader").await.unwrap();
    until(&mut first, lock(true)).await;
    until(&mut second, lock(false)).await;
    // Whoever it was stolen from is next, if it did not steal it itself.
    first.handle().unlock("leader").await.unwrap();
    until(&mut first, lock(false)).await;
    until(&mut second, lock(true)).await;
    first.handle().steal("leader").await.unwrap();
    until(&mut first, lock(true)).await;
    until(&mut second, lock(false)).await;
    // A thief that it was stolen from does not wait for it any more, and can ask again.
    second.handle().steal("leader").await.unwrap();
    until(&mut second, lock(true)).await;
    until(&mut first, lock(false)).await;
    first.handle().lock("leader").await.unwrap();
    second.handle().unlock("leader").await.unwrap();
    until(&mut first, lock(true)).await;
    server.restart();
    until(&mut first, lock(false)).await;
    until(&mut first, lock(true)).await;
}
