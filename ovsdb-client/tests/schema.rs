//! Servers of other versions: missing methods, missing and additional tables and columns, schemas that change.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::fs;

use common::*;
use ovsdb_client::{Clause, Client, Conditions, Error, Event};

ovsdb_client::row! {
    /// A table that only newer schemas have.
    struct Extra in "Extra" {
        number: i64,
    }
}

fn client(remote: &str) -> Client {
    Client::builder(config(remote))
        .monitor::<Item>(Conditions::any_of([Clause::equal("name", "a"), Clause::equal("name", "b")]))
        .monitor_optional::<Extra>(Conditions::All)
        .connect()
}

/// The schema with a change in its text.
fn changed(from: &str, to: &str) -> String {
    let schema = SCHEMA.replace(from, to);
    assert_ne!(schema, SCHEMA);
    schema
}

const NAME: &str = r#""name": {"type": "string"},"#;

#[tokio::test]
async fn servers_that_lack_methods_do_with_older_ones() {
    for renamed in [&["monitor_cond_since"][..], &["monitor_cond_since", "monitor_cond"]] {
        let server = Server::start(SCHEMA);
        let proxy = Relay::start(&server, renamed).await;
        let mut client = client(&proxy.remote());
        assert!(synced(&mut client).await.is_empty());
        client.transact(["a", "b"].map(insert).to_vec()).await.unwrap();
        until_names(&mut client, &["a", "b"]).await;
        client.transact(vec![update("a", "labels", vec!["x", "y"]), update("b", "tag", 5)]).await.unwrap();
        batch(&mut client).await;
        client.transact(vec![update("a", "labels", vec!["y", "z"]), delete("b")]).await.unwrap();
        let batch = batch(&mut client).await;
        assert_eq!(summary(batch.of::<Item>()), ["-b", "~a"]);
        let held: Vec<_> = client.table::<Item>().iter().map(|(_, item)| item.labels.clone()).collect();
        assert_eq!(held, [["y".to_owned(), "z".to_owned()].into()]);

        // Without conditions on the server, all rows come and no change of conditions changes that.
        let generation =
            client.set_condition::<Item>(Conditions::any_of([Clause::equal("name", "c")])).unwrap();
        until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g == generation)).await;
        let without = if renamed.len() == 2 { vec!["a"] } else { vec![] };
        assert_eq!(item_names(&client), without);
    }
}

#[tokio::test]
async fn a_missing_or_different_column_is_named() {
    let cases = [
        (
            changed(r#""price": {"type": "real"},"#, ""),
            "table Item of the server's database Inventory 1.0.0 has no column price",
        ),
        (
            changed(r#""price": {"type": "real"},"#, r#""price": {"type": "integer"},"#),
            "column price of table Item is of type integer in the server's schema 1.0.0, not real",
        ),
        (changed("\"Item\"", "\"Thing\""), "database Inventory 1.0.0 of the server has no table Item"),
    ];
    for (schema, expected) in cases {
        let server = Server::start(&schema);
        let Event::Disconnected { reason, .. } = next(&mut client(&server.unix())).await else {
            panic!("connected")
        };
        assert_eq!(reason.to_string(), expected);
    }
}

#[tokio::test]
async fn a_condition_that_the_schema_refuses_is_told() {
    let short = r#""name": {"type": {"key": {"type": "string", "maxLength": 5}}}"#;
    let server = Server::start(&changed(r#""name": {"type": "string"}"#, short));
    let conditions = Conditions::any_of([Clause::equal("name", "too long")]);
    let mut client = Client::builder(config(&server.unix())).monitor::<Item>(conditions).connect();
    let Event::Disconnected { reason, .. } = next(&mut client).await else { panic!("connected") };
    assert!(
        reason.to_string().contains("refused monitor_cond_change") && reason.to_string().contains("too long"),
        "{reason}"
    );
}

#[tokio::test]
async fn what_a_newer_schema_adds_is_taken_when_it_comes() {
    let mut server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    client.transact(vec![insert("a")]).await.unwrap();
    until_names(&mut client, &["a"]).await;
    assert!(client.table::<Extra>().is_empty());

    // An upgrade of a running server.
    let later = format!(
        r#"{NAME} "later": {{"type": {{"key": "string", "min": 0, "max": 1}}}}, "unknown": {{"type": "integer"}},"#
    );
    let newer = changed(NAME, &later).replace(
        r#""Global""#,
        r#""Extra": {"isRoot": true, "columns": {"number": {"type": "integer"}}}, "Global""#,
    );
    fs::write(server.directory.path("newer"), newer).unwrap();
    run("ovsdb-client", &["convert", &server.unix(), "newer"], &server.directory.0);
    let change = r#"["Inventory",
        {"op":"insert","table":"Extra","row":{"number":5}},
        {"op":"update","table":"Item","where":[],"row":{"later":"now"}}]"#;
    run("ovsdb-client", &["transact", &server.unix(), change], &server.directory.0);
    while client.table::<Extra>().is_empty() || item_of(&client).is_none_or(|item| item.later.is_none()) {
        if let Event::Batch(batch) = next(&mut client).await {
            assert!(batch.of::<Item>().iter().all(|change| change.new.is_some()), "{batch:?}");
        }
    }
    assert_eq!(item_of(&client).unwrap().later.as_deref(), Some("now"));

    // And back to the old one, as a restored backup.
    server.stop();
    fs::remove_file(server.directory.path("db")).unwrap();
    run("ovsdb-tool", &["create", "db", "schema"], &server.directory.0);
    server.restart();
    let (event, _) = until(&mut client, |event, _| matches!(event, Event::Batch(_))).await;
    let Event::Batch(batch) = event else { panic!("{event:?}") };
    assert_eq!((batch.of::<Item>().len(), batch.of::<Extra>().len()), (1, 1));
    assert!(client.table::<Extra>().is_empty() && item_of(&client).is_none());
}

fn item_of(client: &Client) -> Option<Item> {
    client.table::<Item>().iter().next().map(|(_, item)| Item::clone(item))
}

#[tokio::test]
async fn a_database_that_is_removed_is_missed_and_taken_again() {
    let server = Server::start(SCHEMA);
    let mut client = client(&server.tcp());
    synced(&mut client).await;
    client.transact(vec![insert("a")]).await.unwrap();
    until_names(&mut client, &["a"]).await;
    server.appctl(&["ovsdb-server/remove-db", "Inventory"]);
    until(&mut client, |event, _| {
        matches!(event, Event::Disconnected { reason, .. } if reason.to_string().contains("does not serve database Inventory"))
    })
    .await;
    assert!(matches!(client.transact(vec![]).await, Err(Error::NotConnected)));
    assert_eq!(item_names(&client), ["a"]);
    server.appctl(&["ovsdb-server/add-db", server.directory.path("db").to_str().unwrap()]);
    assert!(synced(&mut client).await.is_empty());
}

#[tokio::test]
async fn real_schemas_fit() {
    ovsdb_client::row! {
        struct PortBinding in "Port_Binding" {
            logical_port: String,
            kind: String = "type",
            chassis: Option<ovsdb_client::Uuid>,
            datapath: ovsdb_client::Uuid,
            tunnel_key: i64,
            up: Option<bool>,
            tag: Option<i64>,
            mac: std::collections::BTreeSet<String>,
            additional_chassis: std::collections::BTreeSet<ovsdb_client::Uuid> as optional,
            external_ids: std::collections::BTreeMap<String, String>,
        }
    }
    ovsdb_client::row! {
        struct Interface in "Interface" {
            name: String,
            ofport: Option<i64>,
            ifindex: Option<i64>,
            external_ids: std::collections::BTreeMap<String, String>,
            statistics: std::collections::BTreeMap<String, i64>,
        }
    }
    let read = |path: &str| {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}: install ovn-common"))
    };
    let southbound = Server::start(&read("/usr/share/ovn/ovn-sb.ovsschema"));
    let mut config = config(&southbound.unix());
    config.database = "OVN_Southbound".into();
    let mut client = Client::builder(config).monitor::<PortBinding>(Conditions::All).connect();
    synced(&mut client).await;
    let insert = r#"["OVN_Southbound",
        {"op":"insert","table":"Datapath_Binding","uuid-name":"d","row":{"tunnel_key":1}},
        {"op":"insert","table":"Port_Binding",
         "row":{"logical_port":"p","type":"localport","tunnel_key":2,"datapath":["named-uuid","d"],"mac":"x"}}]"#;
    run("ovsdb-client", &["transact", &southbound.unix(), insert], &southbound.directory.0);
    let batch = batch(&mut client).await;
    let port = batch.of::<PortBinding>()[0].new.clone().unwrap();
    assert_eq!(
        (port.logical_port.as_str(), port.kind.as_str(), port.up, port.tunnel_key),
        ("p", "localport", None, 2)
    );

    let local = Server::start(&read("/usr/share/openvswitch/vswitch.ovsschema"));
    let mut config = common::config(&local.unix());
    config.database = "Open_vSwitch".into();
    synced(&mut Client::builder(config).monitor::<Interface>(Conditions::All).connect()).await;
}
