//! A program that writes to a database, as Neutron, ovn-northd and ovn-controller do.

use std::time::Duration;

use anyhow::{Context as _, Result};
use ovsdb_client::{Client, Config, Error, Event, Handle, Operation, OperationResult};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Time that a server may take to serve its first client, and how long a cluster may have no leader.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between attempts while there is no server.
const PAUSE: Duration = Duration::from_millis(20);

/// Its connection, which is made again when it is lost.
#[derive(Debug)]
pub struct Writer {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Writer {
    /// Returns once there is a server.
    pub async fn connect(config: Config) -> Result<Self> {
        let mut client = Client::builder(config).connect();
        let handle = client.handle();
        let (connected, mut is_connected) = watch::channel(false);
        let task = tokio::spawn(async move {
            loop {
                if matches!(client.recv().await, Event::Synced) {
                    connected.send_replace(true);
                }
            }
        });
        let writer = Self { handle, task };
        timeout(PATIENCE, is_connected.wait_for(|is| *is)).await.context("no server")??;
        Ok(writer)
    }

    /// Executes a transaction, which must succeed.
    pub async fn write(&self, operations: Vec<Operation>) -> Result<Vec<OperationResult>> {
        Ok(self.handle.transact(operations).await?)
    }

    /// Executes a transaction that may as well be executed twice; while no server takes it, it is tried again.
    pub async fn insist(&self, operations: Vec<Operation>) -> Result<Vec<OperationResult>> {
        let began = Instant::now();
        loop {
            match self.handle.transact(operations.clone()).await {
                Err(error) if is_passing(&error) && began.elapsed() < PATIENCE => sleep(PAUSE).await,
                result => return Ok(result?),
            }
        }
    }

    /// Makes any request.
    pub async fn request(&self, method: &str, params: serde_json::Value) -> Result<serde_json::Value> {
        let result = self.handle.request(method, params).await?;
        Ok(serde_json::from_slice(result.as_bytes())?)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// True if the lack of a server, or of a leader, made a transaction fail.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::NotConnected | Error::Interrupted => true,
        other => other.to_string().contains("not connected") || other.to_string().contains("not leader"),
    }
}
