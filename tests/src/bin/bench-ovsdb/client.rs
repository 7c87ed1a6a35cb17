//! The client that is measured: `bench-ovsdb client <remote> [<file of logical ports>]`.
//!
//! Prints the number of rows when it holds them all, and waits to be killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ovsdb_client::{Clause, Client, Conditions, Config, Event, Uuid};

pub(crate) const COMMAND: &str = "client";

/// The columns that all clients ask for: those that say something about a guest's port.
pub(crate) const COLUMNS: &str = "logical_port,type,chassis,requested_chassis,datapath,tunnel_key,parent_port,tag,up,\
                                  mac,port_security,options,external_ids";

ovsdb_client::row! {
    struct PortBinding in "Port_Binding" {
        logical_port: String,
        kind: String = "type",
        chassis: Option<Uuid>,
        requested_chassis: Option<Uuid>,
        datapath: Uuid,
        tunnel_key: i64,
        parent_port: Option<String>,
        tag: Option<i64>,
        up: Option<bool>,
        mac: BTreeSet<String>,
        port_security: BTreeSet<String>,
        options: BTreeMap<String, String>,
        external_ids: BTreeMap<String, String>,
    }
}

pub(crate) fn run(remote: &str, ports: Option<&Path>) -> Result<()> {
    let conditions = match ports {
        None => Conditions::All,
        Some(file) => {
            let ports = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            Conditions::any_of(ports.lines().map(|port| Clause::equal("logical_port", port)))
        }
    };
    let config = Config::new(remote.parse()?, "OVN_Southbound");
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut client = Client::builder(config).monitor::<PortBinding>(conditions).connect();
        loop {
            match client.recv().await {
                Event::Synced => println!("{}", client.table::<PortBinding>().len()),
                Event::Disconnected { reason, .. } => bail!("{reason}"),
                _ => {}
            }
        }
    })
}
