//! Misuse by a program, and the errors that it hears: the connection goes on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use common::*;
use ovsdb_client::{Clause, Client, Columns, Conditions, Error, Event, Function, Operation};
use serde_json::json;

fn client(remotes: &str) -> Client {
    Client::builder(config(remotes)).monitor::<Item>(Conditions::All).connect()
}

/// The connection is as it was: the next thing that happens in it is a row.
async fn still_there(client: &mut Client, name: &str) {
    client.transact(vec![insert(name)]).await.unwrap();
    loop {
        match next(client).await {
            Event::Batch(batch) if summary(batch.of::<Item>()) == [format!("+{name}")] => return,
            Event::ConditionInForce(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_servers_do_not_take_for_json_is_not_sent() {
    let server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    let price = |price: f64| insert_row(Columns::from([("price".into(), price.into())]));
    let cases: [(Operation, &str); 6] = [
        (insert("a\0b"), "NUL"),
        (update("a", "labels", vec!["ok", "\0"]), "NUL"),
        (Operation::Comment { text: "\0".into() }, "NUL"),
        (price(1e-310), "too close to zero"),
        (price(f64::NAN), "NaN is no number"),
        (price(f64::INFINITY), "inf is no number"),
    ];
    for (operation, problem) in cases {
        let error = client.transact(vec![operation]).await.unwrap_err();
        assert!(matches!(error, Error::Unsendable(_)) && error.to_string().contains(problem), "{error}");
    }
    let request = client.handle().request("echo", json!(["\0"])).await;
    assert!(matches!(request, Err(Error::Unsendable(_))), "{request:?}");
    assert!(matches!(client.handle().lock("\0").await, Err(Error::Unsendable(_))));
    let least = client.transact(vec![price(f64::MIN_POSITIVE)]).await.unwrap();
    assert!(least[0].uuid.is_some());
    until_names(&mut client, &[""]).await;
    still_there(&mut client, "last").await;
}

#[tokio::test]
async fn a_clause_that_does_not_fit_is_an_error_to_who_sets_it() {
    let server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    for (clause, problem) in [
        (Clause::equal("name", 5), "column name: 5 does not fit it, which is of type string"),
        (Clause::new("name", Function::Less, "a"), "compares numbers"),
        (Clause::equal("name", "\0"), "NUL"),
    ] {
        let error = client.set_condition::<Item>(Conditions::any_of([clause])).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    still_there(&mut client, "a").await;
    // Columns that the server lacks are those of another version.
    let newer = Conditions::any_of([Clause::equal("newer", 1), Clause::equal("name", "b")]);
    let generation = client.set_condition::<Item>(newer).unwrap();
    until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g == generation)).await;
    still_there(&mut client, "b").await;
}

#[tokio::test]
async fn conditions_that_only_the_server_finds_wrong_are_told_and_forgotten() {
    let schema = SCHEMA.replace(
        r#""name": {"type": "string"}"#,
        r#""name": {"type": {"key": {"type": "string", "maxLength": 5}}}"#,
    );
    let server = Server::start(&schema);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    let long = Conditions::any_of([Clause::equal("name", "too long")]);
    let refused = client.set_condition::<Item>(long).unwrap();
    let event = next(&mut client).await;
    let Event::ConditionRefused { generation, error } = event else { panic!("{event:?}") };
    assert!(generation == refused && !error.is_empty(), "{error}");
    still_there(&mut client, "a").await;
    let b = client.set_condition::<Item>(Conditions::any_of([Clause::equal("name", "b")])).unwrap();
    until(&mut client, |event, _| matches!(event, Event::ConditionInForce(g) if *g == b)).await;
    assert!(item_names(&client).is_empty());
    still_there(&mut client, "b").await;
}

#[tokio::test]
async fn a_table_that_is_not_monitored_is_an_error() {
    let client = client("unix:/nowhere");
    assert!(client.try_table::<Item>().unwrap().is_empty());
    assert!(matches!(client.try_table::<Global>(), Err(Error::NotMonitored("Global"))));
    assert!(client.table::<Global>().is_empty());
}

#[test]
fn a_client_whose_runtime_is_gone_says_so() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let first = runtime();
    let mut client = first.block_on(async { client("unix:/nowhere") });
    drop(first);
    runtime().block_on(async {
        until(&mut client, |event, _| matches!(event, Event::Closed)).await;
        assert!(matches!(client.transact(vec![insert("a")]).await, Err(Error::Closed)));
    });
}
