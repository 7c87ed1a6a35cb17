//! Transactions on typed rows: seen in the client's own tables, and made again when somebody else was faster.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use common::*;
use ovsdb_client::{Client, Conditions, Event, Mark, NewRow, Operation, Retry, Uuid};
use tokio::time::timeout;

const ADDITIONS: i64 = 30;

fn client(remotes: &str) -> Client {
    Client::builder(config(remotes)).monitor::<Item>(Conditions::All).connect()
}

async fn visible(client: &mut Client, mark: Mark) {
    while !client.shows(mark) {
        next(client).await;
    }
}

fn row(client: &Client, name: &str) -> Option<(Uuid, i64)> {
    let found = client.table::<Item>().iter().find(|(_, item)| item.name == name);
    found.map(|(uuid, item)| (*uuid, item.count))
}

/// Adds one at a time to a number that another does the same with.
async fn add(mut client: Client) -> usize {
    let (mut again, mut added) = (0, 0);
    while added < ADDITIONS {
        let (uuid, count) = row(&client, "shared").unwrap();
        let operations = vec![
            Operation::verify_row(uuid, [Item::count.is(count)]),
            Operation::update_row(uuid, [Item::count.is(count + 1)]),
        ];
        match client.handle().commit(operations).await {
            Ok(commit) => {
                added += 1;
                visible(&mut client, commit.mark).await;
                assert!(row(&client, "shared").unwrap().1 > count);
            }
            Err(error) => {
                assert_eq!(error.retry(), Retry::WithNewRows, "{error}");
                again += 1;
                while row(&client, "shared") == Some((uuid, count)) {
                    next(&mut client).await;
                }
            }
        }
    }
    again
}

#[tokio::test]
async fn nothing_is_added_twice_or_lost() {
    let cluster = Cluster::start(SCHEMA, 3);
    let mut first = client(&cluster.servers[0].tcp());
    synced(&mut first).await;
    let new = NewRow::new(&Item { name: "shared".into(), ..Item::default() }).insert();
    let commit = first.handle().commit(vec![new]).await.unwrap();
    visible(&mut first, commit.mark).await;
    assert_eq!(row(&first, "shared").unwrap().0, commit.results[0].uuid.unwrap());
    let mut second = client(&cluster.servers[1].tcp());
    synced(&mut second).await;
    until_names(&mut second, &["shared"]).await;
    let (first, second) = tokio::join!(tokio::spawn(add(first)), tokio::spawn(add(second)));
    println!("{} and {} attempts were in vain", first.unwrap(), second.unwrap());
    let mut third = client(&cluster.servers[2].tcp());
    synced(&mut third).await;
    while row(&third, "shared").is_none_or(|(_, count)| count < 2 * ADDITIONS) {
        next(&mut third).await;
    }
    assert_eq!(row(&third, "shared").unwrap().1, 2 * ADDITIONS);
}

/// Rows written by a transaction are in the tables at its mark, on each server of a cluster, and on one that is none.
#[tokio::test]
async fn marks_are_behind_what_was_done() {
    let (cluster, alone) = (Cluster::start(SCHEMA, 3), Server::start(SCHEMA));
    for server in cluster.servers.iter().chain([&alone]) {
        let mut client = client(&server.tcp());
        synced(&mut client).await;
        for number in 0..50 {
            let item = Item { name: format!("{} {number}", server.tcp()), ..Item::default() };
            let commit = client.handle().commit(vec![NewRow::new(&item).insert()]).await.unwrap();
            visible(&mut client, commit.mark).await;
            let uuid = commit.results[0].uuid.unwrap();
            assert_eq!(**client.table::<Item>().get(&uuid).expect("not there at its mark"), item);
            let change =
                Operation::mutate_row(uuid, [Item::count.increase(2), Item::labels.insert(["x".into()])]);
            let commit = client.handle().commit(vec![change]).await.unwrap();
            visible(&mut client, commit.mark).await;
            assert_eq!(client.table::<Item>().get(&uuid).unwrap().count, 2);
        }
    }
}

/// Its mark comes as an event of its own.
#[tokio::test]
async fn a_transaction_that_changes_nothing_has_a_mark() {
    let server = Server::start(SCHEMA);
    let mut client = client(&server.unix());
    synced(&mut client).await;
    let commit = client.handle().commit(vec![]).await.unwrap();
    assert!(!client.shows(commit.mark));
    assert!(matches!(next(&mut client).await, Event::Visible(mark) if mark == commit.mark));
    assert!(client.shows(commit.mark));
    let failed = client.handle().commit(vec![insert("a"), insert("a")]).await.unwrap_err();
    assert_eq!(failed.retry(), Retry::Never, "{failed}");
}

/// Rows of one transaction refer to each other, and a row is waited for.
#[tokio::test]
async fn rows_are_inserted_waited_for_and_deleted() {
    let server = Server::start(SCHEMA);
    let mut writer = client(&server.unix());
    let mut other = client(&server.unix());
    synced(&mut writer).await;
    synced(&mut other).await;
    let one = NewRow::new(&Item { name: "one".into(), tag: Some(4), ..Item::default() }).named("one");
    let two = NewRow::new(&Item { name: "two".into(), ..Item::default() }).with(Item::peer.is_new("one"));
    let commit = writer.handle().commit(vec![one.insert(), two.insert()]).await.unwrap();
    visible(&mut writer, commit.mark).await;
    let uuids: Vec<Uuid> = commit.results.iter().filter_map(|result| result.uuid).collect();
    assert_eq!(writer.table::<Item>().get(&uuids[1]).unwrap().peer, Some(uuids[0]));

    let waiting = other.handle();
    let wait = Operation::await_row(uuids[0], WAIT, [Item::up.is(Some(true)), Item::tag.is(None)]);
    let waiting = tokio::spawn(async move { waiting.transact(vec![wait]).await });
    let set = Operation::update_row(uuids[0], [Item::up.is(Some(true)), Item::tag.is(None)]);
    writer.transact(vec![set]).await.unwrap();
    timeout(WAIT, waiting).await.unwrap().unwrap().unwrap();
    let wrong = Operation::await_row(uuids[0], std::time::Duration::from_millis(1), [Item::tag.is(Some(9))]);
    assert_eq!(other.transact(vec![wrong]).await.unwrap_err().retry(), Retry::WithNewRows);

    let commit = writer.handle().commit(vec![Operation::delete_row::<Item>(uuids[0])]).await.unwrap();
    assert_eq!(commit.results[0].count, 1);
    visible(&mut writer, commit.mark).await;
    assert_eq!(item_names(&writer), ["two"]);
}
