//! The devices of networks, as ports of the local Open vSwitch: which of them are to be added and removed, and the write
//! that is under way.
//!
//! Nothing is touched but Interfaces that carry [`NETWORK_KEY`], each as the only one of its port. States are compared, and
//! not what was done: a port that somebody removed, or that a restored database lacks, is added again, and one that a
//! former agent left is removed.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ovsdb_client::{Clause, Columns, Config, Handle, Mutation, Mutator, Operation, Table, Uuid, Value};
use tokio::{task::JoinHandle, time::Instant};
use tracing::{info, warn};

use super::{
    ids::NETWORK_KEY,
    one_shot::{connect, transact},
    rows::{Bridge, Interface, Port},
};

/// Prefix of the devices' names; the rest is of the network's id, as much as there is room for (IFNAMSIZ).
const PREFIX: &str = "mdn";
const DIGITS: usize = 12;
/// Time after a write until the next one, if nothing came of it.
const AGAIN: Duration = Duration::from_secs(1);
/// One change of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Add { network: String, metadata_port: String },
    Remove { name: String, port: Uuid, bridge: Option<Uuid> },
}

impl Change {
    fn tell(&self) {
        match self {
            Self::Add { network, .. } => {
                info!(network, device = device_name(network), "adding the network's device");
            }
            Self::Remove { name, .. } => info!(device = name, "removing a network's device"),
        }
    }
}

/// Rows of the local Open vSwitch.
pub(super) struct Rows<'a> {
    pub(super) interfaces: &'a Table<Interface>,
    pub(super) ports: &'a Table<Port>,
    pub(super) bridges: &'a Table<Bridge>,
}

/// The devices that have to be there, and the write that brings the next of them about.
#[derive(Debug, Default)]
pub(super) struct NetworkDevices {
    /// The metadata port that each is to be bound to, by network.
    wanted: BTreeMap<String, String>,
    undecided: BTreeSet<String>,
    /// True if what is wanted or what is there has changed since they were last compared.
    is_stale: bool,
    write: Option<Write>,
    /// Failure that was last logged.
    told: Option<String>,
}

#[derive(Debug)]
struct Write {
    changes: Vec<Change>,
    at: Instant,
    task: Option<JoinHandle<Result<(), String>>>,
}

/// True if an Interface is one of ours.
pub(super) fn is_ours(interface: &Interface) -> bool {
    interface.external_ids.contains_key(NETWORK_KEY)
}

/// True if it is ours for that network.
pub(super) fn is_of(interface: &Interface, network: &str) -> bool {
    interface.external_ids.get(NETWORK_KEY).is_some_and(|of| of == network)
}

/// Name of a network's device.
pub(super) fn device_name(network: &str) -> String {
    let digits = network.chars().filter(char::is_ascii_alphanumeric).take(DIGITS);
    PREFIX.chars().chain(digits).collect()
}

impl NetworkDevices {
    /// Takes the metadata ports, by network, to which devices have to be bound from now on. Devices of networks that are
    /// `undecided` stay as they are.
    pub(super) fn want(&mut self, wanted: BTreeMap<String, String>, undecided: BTreeSet<String>) {
        self.is_stale |= self.wanted != wanted || self.undecided != undecided;
        (self.wanted, self.undecided) = (wanted, undecided);
    }

    /// Notes that the ports of the local Open vSwitch have changed.
    pub(super) fn note_rows(&mut self) {
        self.is_stale = true;
    }

    /// Writes what the database lacks or has too much, if nothing is under way. Tells when to ask again, if nothing happens
    /// before.
    pub(super) fn write(
        &mut self,
        now: Instant,
        rows: &Rows<'_>,
        bridge: &str,
        handle: &Handle,
    ) -> Option<Instant> {
        if let Some(Write { task, .. }) = &self.write
            && task.as_ref().is_some_and(|task| !task.is_finished())
        {
            return Some(now + AGAIN);
        }
        if !std::mem::take(&mut self.is_stale) && self.write.is_none() {
            return None;
        }
        let changes = self.changes(rows);
        if changes.is_empty() {
            self.write = None;
            self.told = None;
            return None;
        }
        match &self.write {
            // What was written may not be here yet, and what failed is not repeated at once.
            Some(write) if write.changes == changes && now < write.at + AGAIN => {
                return Some(write.at + AGAIN);
            }
            Some(write) if write.changes == changes => {}
            _ => changes.iter().for_each(Change::tell),
        }
        let (operations, handle) = (operations(&changes, bridge), handle.clone());
        let task = tokio::spawn(async move {
            handle.transact(operations).await.map(drop).map_err(|error| error.to_string())
        });
        self.write = Some(Write { changes, at: now, task: Some(task) });
        Some(now + AGAIN)
    }

    /// Says once what came of a write that failed.
    pub(super) async fn note(&mut self) {
        let finished = |write: &mut Write| write.task.take_if(|task| task.is_finished());
        let Some(task) = self.write.as_mut().and_then(finished) else { return };
        let result = task.await.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(error) = result
            && self.told.as_ref() != Some(&error)
        {
            warn!(error, "cannot change the ports of the local Open vSwitch, trying again");
            self.told = Some(error);
        }
    }

    fn changes(&self, rows: &Rows<'_>) -> Vec<Change> {
        let ours = rows.interfaces.iter().filter(|(_, row)| is_ours(row));
        let (mut changes, mut there) = (Vec::new(), BTreeSet::new());
        for (uuid, row) in ours {
            let network = row.external_ids.get(NETWORK_KEY).map_or("", String::as_str);
            let wanted = self.wanted.get(network).filter(|metadata_port| {
                row.name == device_name(network) && row.external_ids.get("iface-id") == Some(metadata_port)
            });
            let Some((port, is_alone)) = port_of(rows, *uuid) else { continue };
            if wanted.is_some() || self.undecided.contains(network) {
                there.insert(network);
            } else if is_alone {
                let bridge = rows.bridges.iter().find(|(_, bridge)| bridge.ports.contains(&port));
                changes.push(Change::Remove {
                    name: row.name.clone(),
                    port,
                    bridge: bridge.map(|(uuid, _)| *uuid),
                });
            }
        }
        // What is to be removed may have the name.
        if changes.is_empty() {
            let missing = self.wanted.iter().filter(|(network, _)| !there.contains(network.as_str()));
            changes.extend(missing.map(|(network, metadata_port)| Change::Add {
                network: network.clone(),
                metadata_port: metadata_port.clone(),
            }));
        }
        changes
    }
}

/// Removes all of them from the local Open vSwitch, and tells how many there were.
pub async fn remove_network_devices(ovs: Config) -> Result<usize, String> {
    let client = connect(ovs).await?;
    let rows = Rows { interfaces: client.table(), ports: client.table(), bridges: client.table() };
    let changes = NetworkDevices::default().changes(&rows);
    if !changes.is_empty() {
        // No bridge is named in what removes.
        transact(&client, operations(&changes, "")).await?;
    }
    Ok(changes.len())
}

/// The port that an Interface is of, and whether it has no other.
fn port_of(rows: &Rows<'_>, interface: Uuid) -> Option<(Uuid, bool)> {
    let (uuid, port) = rows.ports.iter().find(|(_, port)| port.interfaces.contains(&interface))?;
    Some((*uuid, port.interfaces.len() == 1))
}

/// One transaction for all of them.
fn operations(changes: &[Change], bridge: &str) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        match change {
            Change::Add { network, metadata_port } => {
                operations.extend(add(number, bridge, network, metadata_port));
            }
            Change::Remove { port, bridge, .. } => {
                operations.extend(bridge.map(|bridge| remove(bridge, *port)))
            }
        }
    }
    operations
}

/// A port with one Interface. The database has each name of an Interface once.
fn add(number: usize, bridge: &str, network: &str, metadata_port: &str) -> [Operation; 3] {
    let (interface, port) = (format!("interface{number}"), format!("port{number}"));
    let name = device_name(network);
    let ids: BTreeMap<String, String> = [("iface-id", metadata_port), (NETWORK_KEY, network)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let row = Columns::from([
        ("name".to_owned(), name.as_str().into()),
        ("type".to_owned(), "internal".into()),
        ("external_ids".to_owned(), ids.into()),
    ]);
    let insert_interface =
        Operation::Insert { table: "Interface".to_owned(), row, name: Some(interface.clone()) };
    let row = Columns::from([
        ("name".to_owned(), name.as_str().into()),
        ("interfaces".to_owned(), Value::named_uuid(interface)),
    ]);
    let insert_port = Operation::Insert { table: "Port".to_owned(), row, name: Some(port.clone()) };
    let insert = Mutation::new("ports", Mutator::Insert, Value::named_uuid(port));
    let mutate = Operation::Mutate {
        table: "Bridge".to_owned(),
        condition: vec![Clause::equal("name", bridge)],
        mutations: vec![insert],
    };
    [insert_interface, insert_port, mutate]
}

/// Rows of ports and Interfaces that nothing refers to go by themselves.
fn remove(bridge: Uuid, port: Uuid) -> Operation {
    Operation::mutate_row(bridge, [Bridge::ports.delete([port])])
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: &str = "0c6a1b2e-5f7d-4c1a-9c55-0d7c1b2e3f4a";

    #[test]
    fn names_fit_and_tell_networks_apart() {
        assert_eq!(device_name(RED), "mdn0c6a1b2e5f7d");
        assert!(device_name(RED).len() < nix::libc::IFNAMSIZ);
        assert_eq!(device_name("../odd name"), "mdnoddname");
    }

    #[test]
    fn an_added_port_refers_to_its_own_rows_and_is_marked() {
        let changes = [Change::Add { network: RED.into(), metadata_port: "metadata".into() }];
        let operations = operations(&changes, "br-int");
        let [Operation::Insert { table, row, name }, port, bridge] = operations.as_slice() else {
            panic!("{operations:?}")
        };
        assert_eq!((table.as_str(), name.as_deref()), ("Interface", Some("interface0")));
        let ids: BTreeMap<String, String> =
            [("iface-id".to_owned(), "metadata".to_owned()), (NETWORK_KEY.to_owned(), RED.to_owned())].into();
        assert_eq!(row["external_ids"], Value::from(ids));
        assert!(
            matches!(port, Operation::Insert { row, .. } if row["interfaces"] == Value::named_uuid("interface0"))
        );
        assert!(
            matches!(bridge, Operation::Mutate { mutations, .. } if mutations[0].value == Value::named_uuid("port0"))
        );
    }
}
