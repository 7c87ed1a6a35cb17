//! neutron-server's look at the agents: the rows of Chassis_Private, where each says which number it has seen.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use ovsdb_client::{Client, Conditions, Config, Event};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const SB_CFG: &str = "neutron:ovn-metadata-sb-cfg";

ovsdb_client::row! {
    struct ChassisPrivate in "Chassis_Private" {
        name: String,
        external_ids: BTreeMap<String, String>,
    }
}

/// A client of the Southbound that follows them.
#[derive(Debug)]
pub struct Neutron {
    /// Number of chassis that have answered each number.
    answers: watch::Receiver<BTreeMap<i64, usize>>,
    task: JoinHandle<()>,
}

impl Neutron {
    pub fn connect(southbound: Config) -> Self {
        let mut client = Client::builder(southbound).monitor::<ChassisPrivate>(Conditions::All).connect();
        let (publish, answers) = watch::channel(BTreeMap::new());
        let task = tokio::spawn(async move {
            let mut numbers = BTreeMap::new();
            loop {
                if let Event::Batch(batch) = client.recv().await {
                    for change in batch.of::<ChassisPrivate>() {
                        let row = change.new.as_ref();
                        numbers.insert(
                            change.uuid,
                            row.and_then(|row| row.external_ids.get(SB_CFG)?.parse::<i64>().ok()),
                        );
                    }
                    let mut answers = BTreeMap::new();
                    for number in numbers.values().flatten() {
                        *answers.entry(*number).or_default() += 1;
                    }
                    publish.send_replace(answers);
                }
            }
        });
        Self { answers, task }
    }

    /// Waits until as many chassis have answered `number`.
    pub async fn await_answers(&self, number: i64, chassis: usize) -> Result<()> {
        let mut answers = self.answers.clone();
        let all = |answers: &BTreeMap<i64, usize>| answers.get(&number) == Some(&chassis);
        let waited = timeout(PATIENCE, answers.wait_for(all)).await.map(|found| found.map(drop));
        let seen = self.answers.borrow().clone();
        waited
            .with_context(|| format!("not all of {chassis} chassis answer {number}, but so: {seen:?}"))??;
        Ok(())
    }
}

impl Drop for Neutron {
    fn drop(&mut self) {
        self.task.abort();
    }
}
