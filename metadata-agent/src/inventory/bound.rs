//! Interfaces of another agent that are bound to networks' metadata ports in the local Open vSwitch: found, released and bound
//! again, for a node that changes hands.
use std::collections::{BTreeMap, BTreeSet};

use ovsdb_client::{Clause, Columns, Config, Mutation, Mutator, Operation, Uuid, Value};

use super::{
    network_devices::is_ours,
    one_shot::{connect, transact},
    rows::{Bridge, Interface, Port},
};

/// An interface of Open vSwitch, as the only one of its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Name of the interface and of its device.
    pub device: String,
    /// Id of the logical port that it is bound to.
    pub logical_port: String,
    /// Name of its bridge.
    pub bridge: String,
    port: Uuid,
    bridge_row: Uuid,
}

/// All interfaces that are bound to a logical port, are nobody's guest and not ours, by their names.
pub async fn bound_by_others(ovs: Config) -> Result<BTreeMap<String, Bound>, String> {
    let client = connect(ovs).await?;
    let (interfaces, ports, bridges) =
        (client.table::<Interface>(), client.table::<Port>(), client.table::<Bridge>());
    let bound = interfaces.iter().filter_map(|(uuid, row)| {
        let is_guests =
            ["vm-uuid", "vm-id", "attached-mac"].iter().any(|key| row.external_ids.contains_key(key));
        let logical_port = row.external_ids.get("iface-id").filter(|_| !is_guests && !is_ours(row))?;
        let alone = |interfaces: &BTreeSet<Uuid>| interfaces.len() == 1 && interfaces.contains(uuid);
        let (port, _) = ports.iter().find(|(_, port)| alone(&port.interfaces))?;
        let (bridge_row, bridge) = bridges.iter().find(|(_, bridge)| bridge.ports.contains(port))?;
        let bound = Bound {
            device: row.name.clone(),
            logical_port: logical_port.clone(),
            bridge: bridge.name.clone(),
            port: *port,
            bridge_row: *bridge_row,
        };
        Some((row.name.clone(), bound))
    });
    Ok(bound.collect())
}

/// Takes its port out of the bridge.
pub async fn release(ovs: Config, bound: &Bound) -> Result<(), String> {
    let client = connect(ovs).await?;
    let operation = Operation::mutate_row(bound.bridge_row, [Bridge::ports.delete([bound.port])]);
    transact(&client, vec![operation]).await
}

/// Adds it again, as it was.
pub async fn bind(ovs: Config, bound: &Bound) -> Result<(), String> {
    let client = connect(ovs).await?;
    let ids: BTreeMap<String, String> = [("iface-id".to_owned(), bound.logical_port.clone())].into();
    let name = || ("name".to_owned(), bound.device.as_str().into());
    let interface = Columns::from([name(), ("external_ids".to_owned(), ids.into())]);
    let port = Columns::from([name(), ("interfaces".to_owned(), Value::named_uuid("interface".to_owned()))]);
    let operations = vec![
        Operation::Insert {
            table: "Interface".to_owned(),
            row: interface,
            name: Some("interface".to_owned()),
        },
        Operation::Insert { table: "Port".to_owned(), row: port, name: Some("port".to_owned()) },
        Operation::Mutate {
            table: "Bridge".to_owned(),
            condition: vec![Clause::equal("name", bound.bridge.as_str())],
            mutations: vec![Mutation::new("ports", Mutator::Insert, Value::named_uuid("port".to_owned()))],
        },
    ];
    transact(&client, operations).await
}

#[cfg(test)]
impl Bound {
    /// One of that name.
    pub(crate) fn of_test(device: &str) -> Self {
        let uuid: Uuid = "00000000-0000-0000-0000-000000000000".parse().unwrap();
        let [device, logical_port, bridge] = [device, "metadata", "br-int"].map(str::to_owned);
        Self { device, logical_port, bridge, port: uuid, bridge_row: uuid }
    }
}
