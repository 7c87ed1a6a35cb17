//! Time until a plugged guest is answered: from the moment in which a client of the database that the agent reads sees
//! the interface's row complete, to the guest's first answer.

use std::{
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ovsdb_client::{Client, Conditions, Config, Event};
use tokio::runtime;

use crate::guest::Guest;

/// Time after which a guest sends its SYN once more: one that came too early is not answered.
const ATTEMPT: Duration = Duration::from_millis(4);
const PATIENCE: Duration = Duration::from_secs(60);

ovsdb_client::row! {
    /// Columns of an Interface that the agent needs to serve it.
    struct Interface in "Interface" {
        name: String,
        ifindex: Option<i64>,
        external_ids: std::collections::BTreeMap<String, String>,
    }
}

/// The interfaces of a local Open vSwitch, each as soon as its row is complete.
#[derive(Debug)]
pub struct Interfaces(Receiver<(String, Instant)>);

impl Interfaces {
    /// Follows the database at that remote.
    pub fn of(remote: &str) -> Result<Self> {
        let remote = remote.parse()?;
        let (sender, receiver) = mpsc::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || {
            runtime.block_on(async {
                let config = Config::new(remote, "Open_vSwitch");
                let mut client = Client::builder(config).monitor::<Interface>(Conditions::All).connect();
                loop {
                    let Event::Batch(batch) = client.recv().await else { continue };
                    let now = Instant::now();
                    for row in batch.of::<Interface>().iter().filter_map(|change| change.new.as_ref()) {
                        let Some(port) = row.external_ids.get("iface-id") else { continue };
                        if row.ifindex.is_some_and(|index| index > 0)
                            && sender.send((port.clone(), now)).is_err()
                        {
                            return;
                        }
                    }
                }
            });
        });
        Ok(Self(receiver))
    }

    /// Time at which the row of that port was complete.
    fn complete(&self, port: &str) -> Result<Instant> {
        loop {
            let (seen, at) = self.0.recv_timeout(PATIENCE).context("the row never came")?;
            if seen == port {
                return Ok(at);
            }
        }
    }

    /// Plugs a guest that asks already; the time from its row to its first answer.
    pub fn until_answered(&self, guest: &Guest, plug: impl FnOnce() -> Result<()>) -> Result<Duration> {
        thread::scope(|scope| {
            let asking = scope.spawn(|| first_answer(guest));
            plug()?;
            let seen = self.complete(&guest.port.id)?;
            let answered = asking.join().ok().context("the guest's thread panicked")??;
            Ok(answered.saturating_duration_since(seen))
        })
    }
}

/// Tries to connect until somebody answers; when the first request was answered.
pub fn first_answer(guest: &Guest) -> Result<Instant> {
    let until = Instant::now() + PATIENCE;
    loop {
        match guest.connect_with(None, ATTEMPT) {
            Ok(mut connection) => {
                connection.stream().set_read_timeout(Some(PATIENCE))?;
                let response = connection.request("GET", "/", &[], b"")?;
                ensure!(response.status == 200, "{response:?}");
                return Ok(Instant::now());
            }
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => {}
        }
    }
}
