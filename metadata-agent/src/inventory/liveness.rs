//! Neutron's view of this agent: the keys in this chassis' row of Chassis_Private by which `openstack network agent
//! list` knows it, and knows it to be alive.
//!
//! neutron-server raises NB_Global.nb_cfg, ovn-northd copies it to SB_Global.nb_cfg, and each agent copies it to its
//! chassis' row. The state is compared, not the events: a row that ovn-controller made anew lacks the keys, and gets
//! them again. Keys and ids as in neutron/common/ovn/constants.py and neutron/agent/ovn/metadata/agent.py.
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use tokio::time::Instant;
use uuid::{Uuid, uuid};

const ID: &str = "neutron:ovn-metadata-id";
const BRIDGE: &str = "neutron:ovn-bridge";
const SB_CFG: &str = "neutron:ovn-metadata-sb-cfg";
/// `OVN_METADATA_UUID_NAMESPACE`, for chassis whose system-id is no UUID.
const NAMESPACE: Uuid = uuid!("d34bf9f6-da32-4871-9af8-15a4626b41ab");
/// Answers to a new number are spread over this long, as Neutron's agents do: each of them is a write to one database.
const SPREAD: Duration = Duration::from_secs(10);
/// How long after a write that failed, or that nothing came of, the next is made.
const RETRY: Duration = Duration::from_secs(10);

/// What the local Open vSwitch says about this chassis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chassis {
    /// `external_ids:system-id`, the chassis' name.
    pub(super) name: String,
    /// `external_ids:ovn-bridge`.
    pub(super) bridge: String,
}

impl Chassis {
    /// The agent's id in Neutron, which must stay the same for the agent to stay the same.
    fn agent_id(&self) -> Uuid {
        let chassis =
            Uuid::try_parse(&self.name).unwrap_or_else(|_| Uuid::new_v5(&NAMESPACE, self.name.as_bytes()));
        Uuid::new_v5(&chassis, b"metadata_agent")
    }

    /// The keys that the row lacks or has otherwise. An id that is there is left, whatever it is, as Neutron does.
    fn missing(&self, row: &BTreeMap<String, String>, nb_cfg: i64) -> BTreeMap<String, String> {
        let mut wanted = BTreeMap::from([
            (BRIDGE.to_owned(), self.bridge.clone()),
            (SB_CFG.to_owned(), nb_cfg.to_string()),
        ]);
        if !row.contains_key(ID) {
            wanted.insert(ID.to_owned(), self.agent_id().to_string());
        }
        wanted.retain(|key, value| row.get(key) != Some(value));
        wanted
    }

    /// How long this chassis waits before it answers to a number: the same each time it is asked, and spread evenly.
    fn delay(&self, nb_cfg: i64) -> Duration {
        let mut hasher = DefaultHasher::new();
        (&self.name, nb_cfg).hash(&mut hasher);
        Duration::from_millis(hasher.finish() % SPREAD.as_millis() as u64)
    }
}

/// When to write what.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// The number that is to be answered, and when.
    due: Option<(i64, Instant)>,
    /// Writes are not repeated before this.
    not_before: Option<Instant>,
    /// Whether a first write was made; it is not delayed.
    registered: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Nothing before this.
    Wait(Instant),
    /// Set these keys.
    Write(BTreeMap<String, String>),
}

impl Liveness {
    /// Compares the row of this chassis with what it should say. Pure but for what it remembers.
    pub(super) fn step(
        &mut self,
        now: Instant,
        chassis: &Chassis,
        row: &BTreeMap<String, String>,
        nb_cfg: i64,
    ) -> Step {
        let missing = chassis.missing(row, nb_cfg);
        if missing.is_empty() {
            self.due = None;
            self.not_before = None;
            self.registered = true;
            return Step::Rest;
        }
        // Only a new number is answered with a delay; a row that knows nothing of us is told at once.
        let delayed =
            self.registered && missing.len() == 1 && row.contains_key(SB_CFG) && missing.contains_key(SB_CFG);
        let at = match self.due {
            Some((number, at)) if number == nb_cfg => at,
            _ if delayed => now + chassis.delay(nb_cfg),
            _ => now,
        };
        self.due = Some((nb_cfg, at));
        let at = self.not_before.map_or(at, |not_before| not_before.max(at));
        if at > now {
            return Step::Wait(at);
        }
        self.not_before = Some(now + RETRY);
        Step::Write(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chassis() -> Chassis {
        Chassis { name: "6c8f3fcb-8a0a-4f0c-8f35-8a9d3a6f7c11".into(), bridge: "br-int".into() }
    }

    #[test]
    fn ids_as_neutron_computes_them() {
        // python3: uuid.uuid5(uuid.UUID("6c8f3fcb-8a0a-4f0c-8f35-8a9d3a6f7c11"), "metadata_agent")
        assert_eq!(chassis().agent_id().to_string(), "95892dd1-e313-5aea-85e2-8d4040bbf874");
        // python3: uuid.uuid5(uuid.uuid5(uuid.UUID("d34bf9f6-da32-4871-9af8-15a4626b41ab"), "host1"), "metadata_agent")
        let named = Chassis { name: "host1".into(), ..chassis() };
        assert_eq!(named.agent_id().to_string(), "8c37653d-9269-5387-98e3-b27bd8651cd4");
    }

    #[test]
    fn registers_at_once_and_answers_later_numbers_with_a_delay() {
        let now = Instant::now();
        let mut liveness = Liveness::default();
        let mut row = BTreeMap::from([("other".to_owned(), "x".to_owned())]);
        let Step::Write(keys) = liveness.step(now, &chassis(), &row, 5) else { panic!("not at once") };
        assert_eq!(keys.len(), 3);
        assert_eq!(keys[SB_CFG], "5");
        row.extend(keys);
        assert_eq!(liveness.step(now, &chassis(), &row, 5), Step::Rest);

        let Step::Wait(at) = liveness.step(now, &chassis(), &row, 6) else { panic!("not delayed") };
        assert!(at > now && at < now + SPREAD);
        let later = at - Duration::from_millis(1);
        assert_eq!(
            liveness.step(later, &chassis(), &row, 6),
            Step::Wait(at),
            "asking again does not move it"
        );
        assert_eq!(
            liveness.step(at, &chassis(), &row, 6),
            Step::Write(BTreeMap::from([(SB_CFG.into(), "6".into())]))
        );
    }

    #[test]
    fn a_write_without_effect_is_repeated_but_not_at_once() {
        let now = Instant::now();
        let mut liveness = Liveness::default();
        assert!(matches!(liveness.step(now, &chassis(), &BTreeMap::new(), 5), Step::Write(_)));
        assert_eq!(liveness.step(now, &chassis(), &BTreeMap::new(), 5), Step::Wait(now + RETRY));
        assert!(matches!(liveness.step(now + RETRY, &chassis(), &BTreeMap::new(), 5), Step::Write(_)));
    }

    #[test]
    fn a_row_made_anew_is_told_at_once() {
        let now = Instant::now();
        let mut liveness = Liveness { registered: true, ..Liveness::default() };
        assert!(
            matches!(liveness.step(now, &chassis(), &BTreeMap::new(), 9), Step::Write(keys) if keys.len() == 3)
        );
    }

    #[test]
    fn an_id_that_is_there_is_left() {
        let row = BTreeMap::from([(ID.to_owned(), "theirs".to_owned())]);
        assert!(!chassis().missing(&row, 1).contains_key(ID));
    }
}
