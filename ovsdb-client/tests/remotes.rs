//! Servers that change under a client, connections that it is asked to give up, and what it counts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::time::Duration;

use common::*;
use ovsdb_client::{Clause, Client, Conditions, DisconnectReason, Event};

async fn disconnected(client: &mut Client) -> (DisconnectReason, Duration) {
    let (event, _) = until(client, |event, _| matches!(event, Event::Disconnected { .. })).await;
    let Event::Disconnected { reason, retry, .. } = event else { panic!() };
    (reason, retry)
}

async fn connected(client: &mut Client) -> String {
    let (event, _) = until(client, |event, _| matches!(event, Event::Connected { .. })).await;
    let Event::Connected { remote } = event else { panic!() };
    remote.to_string()
}

#[tokio::test]
async fn other_servers_are_used_at_once() {
    let [one, two] = [Server::start(SCHEMA), Server::start(SCHEMA)];
    let mut client = Client::builder(config(&one.unix())).monitor::<Item>(Conditions::All).connect();
    synced(&mut client).await;
    client.transact(vec![insert("same"), insert("one")]).await.unwrap();
    until_names(&mut client, &["one", "same"]).await;
    let mut other = Client::builder(config(&two.unix())).monitor::<Item>(Conditions::All).connect();
    synced(&mut other).await;
    other.transact(vec![insert("two")]).await.unwrap();

    // The one in use stays while it is listed.
    client.set_remotes(format!("{},{}", two.unix(), one.unix()).parse().unwrap());
    client.transact(vec![insert("more")]).await.unwrap();
    until_names(&mut client, &["more", "one", "same"]).await;

    client.set_remotes(two.unix().parse().unwrap());
    assert!(matches!(disconnected(&mut client).await, (DisconnectReason::NotListed, Duration::ZERO)));
    assert_eq!(item_names(&client), ["more", "one", "same"], "rows stay meanwhile");
    assert_eq!(connected(&mut client).await, two.unix());
    until_names(&mut client, &["two"]).await;
}

/// A delay between attempts ends when there is something new to try.
#[tokio::test]
async fn a_delay_ends_with_other_servers() {
    let server = Server::start(SCHEMA);
    let mut config = config("unix:/nowhere/at/all");
    config.backoff_max = Duration::from_secs(3600);
    let mut client = Client::builder(config).monitor::<Item>(Conditions::All).connect();
    let mut longest = Duration::ZERO;
    while longest < Duration::from_secs(2) {
        longest = disconnected(&mut client).await.1;
    }
    client.set_remotes(server.unix().parse().unwrap());
    assert_eq!(connected(&mut client).await, server.unix());
}

#[tokio::test]
async fn a_connection_is_given_up_when_asked() {
    let cluster = Cluster::start(SCHEMA, 3);
    let conditions = Conditions::any_of([Clause::equal("name", "a")]);
    let mut client = Client::builder(config(&cluster.remotes())).monitor::<Item>(conditions).connect();
    let first = connected(&mut client).await;
    synced(&mut client).await;
    client.transact(vec![insert("a")]).await.unwrap();
    until_names(&mut client, &["a"]).await;
    client.reconnect();
    assert!(matches!(disconnected(&mut client).await, (DisconnectReason::Asked, Duration::ZERO)));
    assert_ne!(connected(&mut client).await, first, "the next one has its turn");
    assert!(synced(&mut client).await.is_empty());

    let generation = client.set_condition::<Item>(Conditions::All).unwrap();
    until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g >= generation)).await;
    let counters = client.counters();
    assert_eq!(counters.connections, 2);
    assert!(counters.attempts >= 2, "{counters:?}");
    // A follower that has not the first one's last transaction yet sends everything.
    assert_eq!(counters.complete_contents + counters.resumes, 2);
    // Contents of tables with conditions are brought by one as well.
    assert_eq!(counters.condition_changes, counters.complete_contents + 1);
    assert!(counters.complete_contents >= 1, "{counters:?}");
    assert_eq!(counters.rows_changed, 1);
    // A greeting is four requests, then come the monitor's, the transaction and the condition.
    assert!(counters.messages_sent >= 12 && counters.messages_received >= 12, "{counters:?}");
    assert!(counters.bytes_sent > 20 * counters.messages_sent, "{counters:?}");
    assert!(counters.bytes_received > 1000, "{counters:?}");
    assert_eq!(client.handle().counters(), client.counters());
}
