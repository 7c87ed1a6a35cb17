//! The keys of `external_ids` that are used, and no others: a port has a dozen, and a node may have a thousand ports.
use std::collections::BTreeMap;

use ovsdb_client::{ColumnType, Datum, Value};
use serde::Deserializer;

/// Key by which an interface is this agent's own; its value is the network.
pub(super) const NETWORK_KEY: &str = "metadata-agent-network";

/// Of interfaces, by Nova, libvirt and this agent, and of ports, by Neutron.
const USED: [&str; 9] = [
    "iface-id",
    "vm-uuid",
    "vm-id",
    "attached-mac",
    NETWORK_KEY,
    "neutron:device_id",
    "neutron:project_id",
    "neutron:network_name",
    "neutron:cidrs",
];

/// Column `external_ids` of an interface or a port, as far as it is used: a column that is read, and not written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ids(Vec<(&'static str, String)>);

impl Ids {
    pub(super) fn get(&self, key: &str) -> Option<&String> {
        self.0.iter().find(|(of, _)| *of == key).map(|(_, value)| value)
    }

    pub(super) fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }
}

impl FromIterator<(String, String)> for Ids {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let used = pairs.into_iter().filter_map(|(key, value)| {
            let key = USED.iter().find(|used| **used == key)?;
            Some((*key, value))
        });
        let mut ids: Vec<_> = used.collect();
        ids.sort_unstable();
        ids.shrink_to_fit();
        Self(ids)
    }
}

impl Datum for Ids {
    fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::parse(deserializer)?.into_iter().collect())
    }

    fn apply_difference(&mut self, difference: Self) {
        let map = |ids: Self| ids.0.into_iter().map(|(key, value)| (key.to_owned(), value));
        let mut all: BTreeMap<String, String> = map(std::mem::take(self)).collect();
        all.apply_difference(map(difference).collect());
        *self = all.into_iter().collect();
    }

    fn accepts(column: &ColumnType) -> bool {
        BTreeMap::<String, String>::accepts(column)
    }

    fn describe() -> String {
        BTreeMap::<String, String>::describe()
    }

    fn to_value(&self) -> Value {
        let map: BTreeMap<_, _> =
            self.0.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        map.to_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(pairs: &[(&str, &str)]) -> Ids {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn differences_are_those_of_a_map_and_other_keys_are_not_kept() {
        let mut row = ids(&[("iface-id", "port"), ("vm-uuid", "vm"), ("iface-status", "active")]);
        assert_eq!(row.get("iface-status"), None);
        // A value that is there goes, another one comes in its place, and a key that is not kept is no change.
        row.apply_difference(ids(&[("vm-uuid", "vm"), ("iface-id", "other"), ("iface-status", "active")]));
        assert_eq!(row, ids(&[("iface-id", "other")]));
        row.apply_difference(ids(&[("vm-uuid", "another")]));
        assert_eq!(row, ids(&[("vm-uuid", "another"), ("iface-id", "other")]));
        let read = Ids::parse(&mut serde_json::Deserializer::from_str(
            "[\"map\",[[\"neutron:mtu\",\"\"],[\"neutron:cidrs\",\"10.0.0.5/24\"]]]",
        ));
        assert_eq!(read.unwrap(), ids(&[("neutron:cidrs", "10.0.0.5/24")]));
    }
}
