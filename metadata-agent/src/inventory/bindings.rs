//! The Southbound's rows of ports, by how they are looked up: kept up to date change by change, so that an event costs the
//! same whether the rows are a host's or a region's.
use std::{
    collections::{BTreeMap, HashMap},
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
}

impl Bindings {
    /// Follows the table through one batch. Tells whether one of the changes is about a port of which `concerns` holds, or
    /// about a subport of such a one.
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
            concerns(&row.logical_port) || row.parent_port.as_deref().is_some_and(&concerns)
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

    fn insert(&mut self, uuid: Uuid, row: Arc<PortBinding>) {
        if let Some(parent) = &row.parent_port {
            self.subports.entry(parent.clone()).or_default().insert(uuid, row.clone());
        }
        self.ports.insert(row.logical_port.clone(), (uuid, row));
    }

    fn remove(&mut self, uuid: &Uuid, row: &PortBinding) {
        if let Some(parent) = &row.parent_port
            && let Some(subports) = self.subports.get_mut(parent)
        {
            subports.remove(uuid);
            if subports.is_empty() {
                self.subports.remove(parent);
            }
        }
        // It may have another row by now.
        if self.ports.get(&row.logical_port).is_some_and(|(of, _)| of == uuid) {
            self.ports.remove(&row.logical_port);
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
}
