//! A single question or change of the local Open vSwitch, for commands: no agent runs that would keep its rows.
use std::time::Duration;

use ovsdb_client::{Client, Conditions, Config, Event, Operation};
use tokio::time::timeout;

use super::rows::{Bridge, Interface, Port};

/// Timeout of each question.
const ANSWER: Duration = Duration::from_secs(5);

/// A client with the rows of ports and bridges.
pub(super) async fn connect(ovs: Config) -> Result<Client, String> {
    let mut client = Client::builder(ovs)
        .monitor::<Interface>(Conditions::All)
        .monitor::<Port>(Conditions::All)
        .monitor::<Bridge>(Conditions::All)
        .connect();
    let synced = async {
        loop {
            match client.recv().await {
                Event::Synced => return Ok(()),
                Event::Disconnected { reason, .. } => return Err(reason.to_string()),
                Event::Closed => return Err("the connection is gone".to_owned()),
                _ => {}
            }
        }
    };
    timeout(ANSWER, synced).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))?;
    Ok(client)
}

/// Does all of it in one transaction.
pub(super) async fn transact(client: &Client, operations: Vec<Operation>) -> Result<(), String> {
    let done = timeout(ANSWER, client.transact(operations)).await;
    done.map_err(|_| "it does not answer".to_owned())?.map(drop).map_err(|error| error.to_string())
}
