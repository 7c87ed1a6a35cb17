//! Pauses of the monitoring: what a server sends meanwhile, and how a client catches up.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::*;
use ovsdb_client::{Clause, Client, Conditions, Event, Function};

fn client(remotes: &str) -> Client {
    let not = Clause::new("name", Function::NotEqual, "unwanted");
    Client::builder(config(remotes)).monitor::<Item>(Conditions::any_of([not])).connect()
}

async fn paused(client: &mut Client) -> Vec<String> {
    client.pause();
    summaries(&until(client, |event, _| matches!(event, Event::Paused)).await.1).concat()
}

async fn in_force(client: &mut Client, conditions: Conditions) {
    let generation = client.set_condition::<Item>(conditions).unwrap();
    until(client, |event, _| matches!(event, Event::ConditionInForce(g) if *g >= generation)).await;
}

fn updates(relay: &Relay) -> usize {
    let heard = relay.heard.lock().unwrap();
    heard.iter().filter(|message| message.contains("\"method\":\"update")).count()
}

#[tokio::test]
async fn a_pause_keeps_rows_requests_and_locks() {
    let mut server = Server::start(SCHEMA);
    let relay = Relay::start(&server, &[]).await;
    let mut client = client(&relay.remote());
    synced(&mut client).await;
    client.transact(["same", "changes", "goes"].map(insert).to_vec()).await.unwrap();
    // The update is under way already.
    assert_eq!(paused(&mut client).await, ["+changes", "+goes", "+same"]);
    let before = updates(&relay);

    client.transact(vec![insert("comes"), delete("goes"), update("changes", "count", 5)]).await.unwrap();
    client.handle().lock("l").await.unwrap();
    let event = next(&mut client).await;
    assert!(matches!(event, Event::Lock { held: true, .. }), "{event:?}");
    let quiet = tokio::time::timeout(Duration::from_millis(300), client.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(updates(&relay), before, "the server sends what nobody wants");
    assert_eq!(item_names(&client), ["changes", "goes", "same"]);

    client.resume();
    assert_eq!(summaries(&synced(&mut client).await), [["+comes", "-goes", "~changes"]]);
    client.transact(vec![insert("again")]).await.unwrap();
    assert_eq!(summary(batch(&mut client).await.of::<Item>()), ["+again"]);

    // A pause and its end at once are nothing.
    client.pause();
    client.resume();
    client.transact(vec![insert("last")]).await.unwrap();
    assert_eq!(summary(batch(&mut client).await.of::<Item>()), ["+last"]);
    assert!(!client.is_paused());

    // An end and a pause at once are nothing either.
    assert!(paused(&mut client).await.is_empty());
    assert!(client.is_paused());
    client.resume();
    client.pause();
    let quiet = tokio::time::timeout(Duration::from_millis(300), client.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");

    // A server that comes back monitors nothing either.
    server.restart();
    until(&mut client, |event, _| matches!(event, Event::Connected { .. })).await;
    assert!(client.is_paused());
    let (_, batches) = until(&mut client, |event, _| matches!(event, Event::Paused)).await;
    assert!(batches.is_empty());
    client.transact(vec![delete("same")]).await.unwrap();
    let generation = client.set_condition::<Item>(Conditions::any_of(named("again"))).unwrap();
    client.resume();
    assert_eq!(summaries(&synced(&mut client).await), [["-changes", "-comes", "-last", "-same"]]);
    assert!(!client.is_paused());
    assert!(matches!(next(&mut client).await, Event::ConditionInForce(g) if g == generation));
}

#[tokio::test]
async fn a_schema_that_changes_during_a_pause_is_followed() {
    let server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    paused(&mut client).await;
    let name = r#""name": {"type": "string"},"#;
    let later = format!(r#"{name} "later": {{"type": {{"key": "string", "min": 0, "max": 1}}}},"#);
    std::fs::write(server.directory.path("newer"), SCHEMA.replace(name, &later)).unwrap();
    run("ovsdb-client", &["convert", &server.unix(), "newer"], &server.directory.0);
    let insert = insert_row([("name".into(), "a".into()), ("later".into(), "now".into())].into());
    client.transact(vec![insert]).await.unwrap();
    client.resume();
    until_names(&mut client, &["a"]).await;
    assert_eq!(client.table::<Item>().iter().next().unwrap().1.later.as_deref(), Some("now"));
}

#[tokio::test]
async fn a_pause_on_a_cluster_ends_where_it_began_on_any_server() {
    let mut cluster = Cluster::start(SCHEMA, 3);
    let relays = [Relay::start(&cluster.servers[0], &[]).await, Relay::start(&cluster.servers[1], &[]).await];
    let mut client = client(&relays.each_ref().map(Relay::remote).join(","));
    let Event::Connected { remote } = next(&mut client).await else { panic!("not connected") };
    synced(&mut client).await;
    let used = relays.iter().position(|relay| relay.remote() == remote.to_string()).unwrap();
    let resumptions = || -> usize {
        let heard = relays.iter().flat_map(|relay| relay.heard.lock().unwrap().clone());
        heard.filter(|message| message.contains("\"result\":[true,")).count()
    };
    let mut fold = Fold::<Item>(BTreeMap::new());
    let mut follow = |batches: &[ovsdb_client::Batch]| batches.iter().for_each(|batch| fold.apply(batch));

    // A server's history is no larger than its database: ovsdb_txn_history_run() in Open vSwitch's transaction.c.
    let bulk = (0..1000).map(|i| i.to_string()).collect::<BTreeSet<_>>();
    client.transact(vec![insert("z"), update("z", "labels", bulk)]).await.unwrap();
    client.transact(vec![insert("x")]).await.unwrap();
    follow(&until_names(&mut client, &["x", "z"]).await);
    assert!(paused(&mut client).await.is_empty());
    client.transact(vec![delete("x"), insert("y")]).await.unwrap();
    client.resume();
    let batches = synced(&mut client).await;
    assert_eq!(summaries(&batches), [["+y", "-x"]]);
    follow(&batches);
    assert_eq!(resumptions(), 1);

    // The server goes away meanwhile, and conditions change.
    assert!(paused(&mut client).await.is_empty());
    cluster.servers[used].stop();
    until(&mut client, |event, _| matches!(event, Event::Paused)).await;
    while client.transact(vec![delete("y"), insert("v"), insert("w")]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let generation =
        client.set_condition::<Item>(Conditions::any_of([named("v"), named("z")].concat())).unwrap();
    client.resume();
    let batches = synced(&mut client).await;
    assert_eq!(summaries(&batches), [["+v", "+w", "-y"]]);
    follow(&batches);
    assert_eq!(resumptions(), 2);
    let (_, batches) =
        until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g == generation)).await;
    assert_eq!(summaries(&batches), [["-w"]]);
    follow(&batches);
    in_force(&mut client, Conditions::None).await;
    assert!(client.table::<Item>().is_empty());
}
