//! Connections that break, hang, idle, or lead to a server of no use.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::time::Duration;

use common::*;
use nix::sys::signal::Signal;
use ovsdb_client::{Clause, Client, Conditions, Error, Event, Function};

fn client(remotes: &str) -> Client {
    Client::builder(config(remotes)).monitor::<Item>(Conditions::All).connect()
}

#[tokio::test]
async fn a_reconnection_tells_differences_only() {
    let mut server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    client.transact(vec![insert("same"), insert("changes"), insert("goes")]).await.unwrap();
    until_names(&mut client, &["changes", "goes", "same"]).await;

    // The server is away for a while, and its database changes meanwhile.
    server.stop();
    let (event, _) = until(&mut client, |event, _| matches!(event, Event::Disconnected { .. })).await;
    assert!(matches!(event, Event::Disconnected { reason, .. } if !reason.to_string().is_empty()));
    assert!(matches!(client.transact(vec![]).await, Err(Error::NotConnected)));
    let change = r#"["Inventory",
        {"op":"insert","table":"Item","row":{"name":"new"}},
        {"op":"delete","table":"Item","where":[["name","==","goes"]]},
        {"op":"update","table":"Item","where":[["name","==","changes"]],"row":{"tag":4}}]"#;
    run("ovsdb-tool", &["transact", "db", change], &server.directory.0);
    let generation =
        client.set_condition::<Item>(Conditions::any_of([Clause::new("name", Function::NotEqual, "-")]));
    assert_eq!(item_names(&client), ["changes", "goes", "same"], "the rows stay while the server is away");
    server.restart();
    let batches = synced(&mut client).await;
    assert_eq!(summaries(&batches), [["+new", "-goes", "~changes"]]);
    let generation = generation.unwrap();
    until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g >= generation)).await;

    // Nothing happened: nothing is told.
    server.restart();
    assert!(synced(&mut client).await.is_empty());
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed_and_comes_back() {
    let server = Server::start(SCHEMA);
    let mut config = config(&server.tcp());
    config.probe_interval = Duration::from_secs(3);
    let mut client = Client::builder(config).monitor::<Item>(Conditions::All).connect();
    synced(&mut client).await;
    client.transact(vec![insert("a")]).await.unwrap();
    until_names(&mut client, &["a"]).await;
    server.signal(Signal::SIGSTOP);
    let (event, _) = until(&mut client, |event, _| matches!(event, Event::Disconnected { .. })).await;
    let Event::Disconnected { reason, .. } = event else { panic!() };
    assert!(reason.to_string().contains("did not answer the inactivity probe"), "{reason}");
    server.signal(Signal::SIGCONT);
    assert!(synced(&mut client).await.is_empty());
}

#[tokio::test]
async fn an_idle_connection_lives_by_echo_in_both_directions() {
    let server = Server::start(SCHEMA);
    let connect = |remote: &str, probe_interval| {
        let mut config = config(remote);
        config.probe_interval = probe_interval;
        Client::builder(config).monitor::<Item>(Conditions::All).connect()
    };
    // A server asks clients over TCP after 5 s of silence, and hangs up 5 s later.
    let silent = [Duration::from_secs(60), Duration::ZERO].map(|interval| connect(&server.tcp(), interval));
    // On Unix sockets it does not, so that all questions are the client's; a server on a busy machine takes its time.
    let asking = connect(&server.unix(), Duration::from_secs(3));
    let mut idle = tokio::task::JoinSet::new();
    for mut client in silent.into_iter().chain([asking]) {
        idle.spawn(async move {
            synced(&mut client).await;
            let quiet = tokio::time::timeout(Duration::from_secs(13), client.recv()).await;
            assert!(quiet.is_err(), "{quiet:?}");
        });
    }
    idle.join_all().await;
}

#[tokio::test]
async fn an_update_that_cannot_be_applied_starts_over() {
    let server = Server::start(SCHEMA);
    let proxy = Relay::start(&server, &[]).await;
    let mut client = client(&proxy.remote());
    synced(&mut client).await;
    client.transact(vec![insert("a"), insert("b")]).await.unwrap();
    until_names(&mut client, &["a", "b"]).await;
    proxy.garble.store(true, std::sync::atomic::Ordering::Relaxed);
    let handle = client.handle();
    for count in 1..5 {
        handle.transact(vec![update("a", "count", count)]).await.unwrap();
    }
    let generation = client.set_condition::<Item>(Conditions::any_of([Clause::equal("name", "a")])).unwrap();
    let (event, batches) = until(&mut client, |event, _| matches!(event, Event::Disconnected { .. })).await;
    let Event::Disconnected { reason, .. } = event else { panic!("{event:?}") };
    assert!(batches.is_empty(), "nothing is told after what could not be read: {batches:?}");
    assert!(reason.to_string().starts_with("starting over with a complete copy: "), "{reason}");
    let (_, batches) =
        until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g == generation)).await;
    assert_eq!(summaries(&batches).concat(), ["-b", "~a"]);
    assert_eq!(client.table::<Item>().iter().next().unwrap().1.count, 4);
}

#[tokio::test]
async fn what_is_wrong_is_said_plainly() {
    let server = Server::start(SCHEMA);
    let reason_of = async |config: ovsdb_client::Config| {
        let mut client = Client::builder(config).monitor::<Item>(Conditions::All).connect();
        let Event::Disconnected { reason, .. } = next(&mut client).await else { panic!("connected") };
        reason.to_string()
    };
    let mut other = config(&server.unix());
    other.database = "Other".into();
    assert!(reason_of(other).await.contains("does not serve database Other"));
    assert!(reason_of(config("unix:/nonexistent/sock")).await.contains("No such file"));
    assert!(
        reason_of(config(&format!("tcp:127.0.0.1:{}", free_port()))).await.contains("Connection refused")
    );
    assert!(reason_of(config("ssl:127.0.0.1:1")).await.contains("which ssl: needs"));
    assert!(reason_of(config("tcp:no.such.host.invalid:1")).await.contains("no.such.host.invalid"));
    let mut small = config(&server.unix());
    small.message_limit = 100;
    assert!(reason_of(small).await.contains("limit of 100 bytes"));
}
