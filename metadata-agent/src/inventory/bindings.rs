//! The Southbound's rows of ports, by how they are looked up: kept up to date change by change, so that an event costs the
//! same whether the rows are a host's or a region's.
use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use ovsdb_client::{Batch, Change, Uuid};

use super::rows::PortBinding;

/// Rows by logical port and by parent.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    ports: HashMap<String, (Uuid, Arc<PortBinding>)>,
    /// A trunk's subports, by their parent's logical port.
    subports: HashMap<String, BTreeMap<Uuid, Arc<PortBinding>>>,
    /// Ports outside of the switch, by the chassis that is responsible for them.
    external: HashMap<Uuid, BTreeMap<Uuid, Arc<PortBinding>>>,
    /// Metadata ports, by the network's row in Datapath_Binding.
    metadata_ports: HashMap<Uuid, BTreeMap<Uuid, Arc<PortBinding>>>,
}

/// Type of a port outside of the switch: of a NIC's virtual function, or of a machine without a hypervisor.
pub(super) const EXTERNAL: &str = "external";
/// Type of a metadata port.
pub(super) const LOCALPORT: &str = "localport";

impl Bindings {
    /// Follows the table through one batch. Tells whether one of the changes is about a port of which `concerns` holds,
    /// about a subport of such a one, or about a port that is here without being plugged.
    pub(super) fn apply(&mut self, batch: &Batch, concerns: impl Fn(&str) -> bool) -> bool {
        let changes = batch.of::<PortBinding>();
        // A port may have another row than before, and the end of the former one be told last.
        for Change { uuid, old, .. } in changes {
            if let Some(old) = old {
                self.remove(uuid, old);
            }
        }
        for Change { uuid, new, .. } in changes {
            if let Some(new) = new {
                self.insert(*uuid, new.clone());
            }
        }
        let is_about = |row: &Arc<PortBinding>| {
            concerns(&row.logical_port)
                || row.parent_port.as_deref().is_some_and(&concerns)
                || matches!(row.kind.as_str(), EXTERNAL | LOCALPORT)
        };
        changes.iter().flat_map(|change| [&change.old, &change.new]).flatten().any(is_about)
    }

    /// The row of a logical port.
    pub(super) fn port(&self, port: &str) -> Option<&PortBinding> {
        self.ports.get(port).map(|(_, row)| row.as_ref())
    }

    /// The rows of a trunk's subports.
    pub(super) fn subports(&self, parent: &str) -> impl Iterator<Item = &PortBinding> {
        self.subports.get(parent).into_iter().flat_map(BTreeMap::values).map(Arc::as_ref)
    }

    /// The ports outside of the switch that a chassis is responsible for.
    pub(super) fn external(&self, chassis: Uuid) -> impl Iterator<Item = &Arc<PortBinding>> {
        self.external.get(&chassis).into_iter().flat_map(BTreeMap::values)
    }

    /// The metadata port of a network, by its id and its row. A tenant may give a port of another network the id.
    pub(super) fn metadata_port(&self, network: &str, datapath: Uuid) -> Option<&PortBinding> {
        let ports = self.metadata_ports.get(&datapath)?.values().map(Arc::as_ref);
        let device = metadata_device(network);
        let is_its = |row: &&PortBinding| row.external_ids.get("neutron:device_id") == Some(&device);
        ports.filter(is_its).min_by_key(|row| &row.logical_port)
    }

    fn insert(&mut self, uuid: Uuid, row: Arc<PortBinding>) {
        if let Some(parent) = &row.parent_port {
            self.subports.entry(parent.clone()).or_default().insert(uuid, row.clone());
        }
        if let (EXTERNAL, Some(chassis)) = (row.kind.as_str(), row.chassis) {
            self.external.entry(chassis).or_default().insert(uuid, row.clone());
        }
        if row.kind == LOCALPORT {
            self.metadata_ports.entry(row.datapath).or_default().insert(uuid, row.clone());
        }
        self.ports.insert(row.logical_port.clone(), (uuid, row));
    }

    fn remove(&mut self, uuid: &Uuid, row: &PortBinding) {
        if let Some(parent) = &row.parent_port {
            remove(&mut self.subports, parent, uuid);
        }
        if let (EXTERNAL, Some(chassis)) = (row.kind.as_str(), row.chassis) {
            remove(&mut self.external, &chassis, uuid);
        }
        if row.kind == LOCALPORT {
            remove(&mut self.metadata_ports, &row.datapath, uuid);
        }
        // It may have another row by now.
        if self.ports.get(&row.logical_port).is_some_and(|(of, _)| of == uuid) {
            self.ports.remove(&row.logical_port);
        }
    }
}

/// Neutron's `device_id` of a network's metadata port (`OVN_METADATA_PREFIX` of neutron/common/ovn/constants.py).
pub(super) fn metadata_device(network: &str) -> String {
    format!("ovnmeta-{network}")
}

/// Removes a row from an index, and its key with the last one.
fn remove<K: Hash + Eq>(index: &mut HashMap<K, BTreeMap<Uuid, Arc<PortBinding>>>, key: &K, uuid: &Uuid) {
    if let Some(rows) = index.get_mut(key) {
        rows.remove(uuid);
        if rows.is_empty() {
            index.remove(key);
        }
    }
}

/// Rows that were not told by a database.
#[cfg(test)]
impl<'a> FromIterator<&'a PortBinding> for Bindings {
    fn from_iter<T: IntoIterator<Item = &'a PortBinding>>(rows: T) -> Self {
        let mut bindings = Self::default();
        for (number, row) in (0..).zip(rows) {
            bindings.insert(Uuid::from_u128(number), Arc::new(row.clone()));
        }
        bindings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::ids::Ids;

    fn row(name: &str, parent: Option<&str>) -> PortBinding {
        PortBinding {
            logical_port: name.into(),
            parent_port: parent.map(str::to_owned),
            ..PortBinding::default()
        }
    }

    #[test]
    fn rows_are_found_by_port_and_by_parent_until_they_go() {
        let (parent, subport) = (row("parent", None), row("sub", Some("parent")));
        let mut bindings: Bindings = [&parent, &subport].into_iter().collect();
        assert_eq!(bindings.port("parent"), Some(&parent));
        assert_eq!(bindings.subports("parent").collect::<Vec<_>>(), [&subport]);
        bindings.remove(&Uuid::from_u128(1), &subport);
        assert_eq!(bindings.subports("parent").count(), 0);
        assert_eq!((bindings.port("sub"), bindings.port("parent")), (None, Some(&parent)));
        assert!(bindings.subports.is_empty(), "nothing is kept for what is gone");
        bindings.remove(&Uuid::from_u128(7), &parent);
        assert_eq!(bindings.port("parent"), Some(&parent), "that was another row of the same port");
    }

    #[test]
    fn a_metadata_port_is_of_its_network_and_no_other() {
        let (red, blue) = (Uuid::from_u128(100), Uuid::from_u128(101));
        let of = |name: &str, datapath, kind: &str| PortBinding {
            datapath,
            kind: kind.into(),
            external_ids: [("neutron:device_id".to_owned(), "ovnmeta-red".to_owned())].into_iter().collect(),
            ..row(name, None)
        };
        let rows = [
            of("pretends", blue, LOCALPORT),
            of("no-metadata-port", red, ""),
            of("metadata", red, LOCALPORT),
            PortBinding { external_ids: Ids::default(), ..of("another", red, LOCALPORT) },
        ];
        let mut bindings: Bindings = rows.iter().collect();
        let found = |bindings: &Bindings, network, datapath| {
            bindings.metadata_port(network, datapath).map(|row| row.logical_port.clone())
        };
        assert_eq!(found(&bindings, "red", red).as_deref(), Some("metadata"));
        assert_eq!(found(&bindings, "blue", blue), None);
        bindings.remove(&Uuid::from_u128(2), &rows[2]);
        assert_eq!(found(&bindings, "red", red), None);
    }

    #[test]
    fn external_ports_are_those_of_their_chassis() {
        let (here, there) = (Uuid::from_u128(200), Uuid::from_u128(201));
        let external =
            |name: &str, chassis| PortBinding { kind: EXTERNAL.into(), chassis, ..row(name, None) };
        let rows = [external("a", Some(here)), external("b", Some(there)), external("c", None)];
        let mut bindings: Bindings = rows.iter().collect();
        let of = |bindings: &Bindings, chassis| -> Vec<String> {
            bindings.external(chassis).map(|row| row.logical_port.clone()).collect()
        };
        assert_eq!((of(&bindings, here), of(&bindings, there)), (vec!["a".to_owned()], vec!["b".to_owned()]));
        bindings.remove(&Uuid::from_u128(0), &rows[0]);
        assert!(of(&bindings, here).is_empty() && bindings.external.len() == 1);
    }
}
