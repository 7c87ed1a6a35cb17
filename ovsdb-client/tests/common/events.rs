//! Events of a client, and the replica that they make.
use std::{collections::BTreeMap, time::Duration};

use ovsdb_client::{Batch, Change, Client, Config, Event, Row, Uuid};
use tokio::time::timeout;

use super::{Item, WAIT};

pub fn config(remotes: &str) -> Config {
    let mut config = Config::new(remotes.parse().unwrap(), "Inventory");
    config.backoff_max = Duration::from_secs(1);
    config
}

/// The next event, or a failed test.
pub async fn next(client: &mut Client) -> Event {
    timeout(WAIT, client.recv()).await.expect("no event in time")
}

/// Takes events until one is wanted, and gives all batches on the way.
pub async fn until(
    client: &mut Client,
    mut wanted: impl FnMut(&Event, &Client) -> bool,
) -> (Event, Vec<Batch>) {
    let mut batches = Vec::new();
    loop {
        let event = next(client).await;
        let done = wanted(&event, client);
        match event {
            event if done => return (event, batches),
            Event::Batch(batch) => batches.push(batch),
            _ => {}
        }
    }
}

pub async fn synced(client: &mut Client) -> Vec<Batch> {
    until(client, |event, _| matches!(event, Event::Synced)).await.1
}

pub async fn batch(client: &mut Client) -> Batch {
    match until(client, |event, _| matches!(event, Event::Batch(_))).await.0 {
        Event::Batch(batch) => batch,
        other => panic!("{other:?}"),
    }
}

/// Takes events until the table holds exactly these names.
pub async fn until_names(client: &mut Client, names: &[&str]) -> Vec<Batch> {
    let mut batches = Vec::new();
    while item_names(client) != names {
        if let Event::Batch(batch) = next(client).await {
            batches.push(batch);
        }
    }
    batches
}

pub fn item_names(client: &Client) -> Vec<String> {
    let mut names: Vec<String> = client.table::<Item>().iter().map(|(_, item)| item.name.clone()).collect();
    names.sort();
    names
}

/// `+name`, `-name` and `~name` for each change.
pub fn summary(changes: &[Change<Item>]) -> Vec<String> {
    let mut lines: Vec<String> = changes
        .iter()
        .map(|change| match (&change.old, &change.new) {
            (None, Some(new)) => format!("+{}", new.name),
            (Some(old), None) => format!("-{}", old.name),
            (Some(_), Some(new)) => format!("~{}", new.name),
            (None, None) => panic!("a change of nothing"),
        })
        .collect();
    lines.sort();
    lines
}

pub fn summaries(batches: &[Batch]) -> Vec<Vec<String>> {
    batches.iter().map(|batch| summary(batch.of::<Item>())).collect()
}

/// Fold of notifications: to compare with the replica.
pub struct Fold<R>(pub BTreeMap<Uuid, R>);

impl<R: Row> Fold<R> {
    pub fn apply(&mut self, batch: &Batch) {
        for change in batch.of::<R>() {
            let old = match &change.new {
                Some(new) => self.0.insert(change.uuid, R::clone(new)),
                None => self.0.remove(&change.uuid),
            };
            assert_eq!(old.as_ref(), change.old.as_deref(), "the old row is the one told before");
        }
    }

    pub fn check(&self, client: &Client) {
        let table: BTreeMap<Uuid, R> =
            client.table::<R>().iter().map(|(uuid, row)| (*uuid, R::clone(row))).collect();
        assert_eq!(self.0, table);
    }
}
