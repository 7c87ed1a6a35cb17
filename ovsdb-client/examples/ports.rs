//! Follows the logical ports of an OVN Southbound database: `ports <remotes> [<logical port>...]`.
//!
//! With `--once` it stops when the initial contents are complete, and says how long they took.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Instant;

use ovsdb_client::{Clause, Client, Conditions, Config, Event, Uuid};

ovsdb_client::row! {
    /// A logical port.
    pub struct PortBinding in "Port_Binding" {
        logical_port: String,
        kind: String = "type",
        chassis: Option<Uuid>,
        datapath: Uuid,
        tunnel_key: i64,
        parent_port: Option<String>,
        tag: Option<i64>,
        up: Option<bool> as optional,
        mac: BTreeSet<String>,
        options: BTreeMap<String, String>,
        external_ids: BTreeMap<String, String>,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (flags, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let Some((remotes, ports)) = arguments.split_first() else {
        eprintln!("usage: ports [--once] <remotes> [<logical port>...]");
        return ExitCode::FAILURE;
    };
    let remotes = match remotes.parse() {
        Ok(remotes) => remotes,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let conditions = if ports.is_empty() {
        Conditions::All
    } else {
        Conditions::any_of(ports.iter().map(|port| Clause::equal("logical_port", port.as_str())))
    };
    let began = Instant::now();
    let mut client =
        Client::builder(Config::new(remotes, "OVN_Southbound")).monitor::<PortBinding>(conditions).connect();
    let mut synced = false;
    loop {
        match client.recv().await {
            Event::Connected { remote } => println!("connected to {remote}"),
            Event::Disconnected { remote, reason, retry } => {
                println!("{remote}: {reason}; next attempt in {retry:?}")
            }
            Event::Synced => {
                println!("{} ports after {:?}", client.table::<PortBinding>().len(), began.elapsed());
                if flags.contains(&"--once".to_owned()) {
                    return ExitCode::SUCCESS;
                }
                synced = true;
            }
            Event::Batch(batch) if synced => {
                for change in batch.of::<PortBinding>() {
                    match (&change.old, &change.new) {
                        (None, Some(new)) => println!("{} is new", new.logical_port),
                        (Some(old), None) => println!("{} is gone", old.logical_port),
                        (_, new) => println!("changed: {new:?}"),
                    }
                }
            }
            Event::Waiting { remote, awaited } => eprintln!("{remote} has not sent {awaited} yet"),
            Event::ConditionRefused { error, .. } => eprintln!("the server refused the condition: {error}"),
            Event::ClauseLeftOut { column, problem, .. } => eprintln!("{column}: {problem}"),
            Event::Closed => return ExitCode::FAILURE,
            _ => {}
        }
    }
}
