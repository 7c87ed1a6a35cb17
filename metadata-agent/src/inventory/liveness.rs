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
/// Key of a neutron-ovn-agent. Where a row has it, Neutron 2025.2 and later lists the neutron-ovn-agent that wrote it,
/// and no metadata agent (`ChassisOVNAgentWriteEvent` of
/// neutron/plugins/ml2/drivers/ovn/mech_driver/ovsdb/ovsdb_monitor.py).
const OVN_AGENT_ID: &str = "neutron:ovn-neutron-agent-id";

/// This chassis, as the local Open vSwitch describes it.
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

    /// Delay of this chassis' answer to a number: different for each, and spread evenly.
    fn delay(&self, nb_cfg: i64, spread: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        (&self.name, nb_cfg).hash(&mut hasher);
        let share = hasher.finish() >> 32;
        spread.mul_f64(share as f64 / f64::from(u32::MAX))
    }
}

/// Time over which answers to a new number are spread: all chassis answer, each by a write to one database. Neutron takes an
/// agent for dead after `down_time` without an answer (`ChassisAgentEvent` of neutron/agent/ovn/metadata/agent.py).
pub(super) fn spread(down_time: Duration) -> Duration {
    (down_time / 3).clamp(Duration::from_secs(3), Duration::from_secs(10))
}

/// True if Neutron lists another agent in this one's place.
pub(super) fn is_hidden(row: &BTreeMap<String, String>) -> bool {
    row.contains_key(OVN_AGENT_ID)
}

/// Schedule of the writes by which Neutron sees that the agent lives.
#[derive(Debug)]
pub(super) struct Liveness {
    /// Time over which answers to a number are spread, and after which a write that nothing came of is made again.
    spread: Duration,
    /// Time at which a number is to be answered: the one that is current then.
    due: Option<Instant>,
    /// The number last written, and when that may be repeated.
    written: Option<(i64, Instant)>,
    /// True if a first write was made; it is not delayed.
    registered: bool,
}

/// The next action.
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
    pub(super) fn new(spread: Duration) -> Self {
        Self { spread, due: None, written: None, registered: false }
    }

    /// Compares the row of this chassis with what it should say. Pure but for what it remembers.
    pub(super) fn step(
        &mut self,
        now: Instant,
        chassis: &Chassis,
        row: &BTreeMap<String, String>,
        nb_cfg: i64,
    ) -> Step {
        let answered = row.get(SB_CFG).and_then(|text| text.parse::<i64>().ok());
        if self.written.is_some_and(|(number, _)| answered == Some(number)) {
            (self.due, self.written) = (None, None);
        }
        let missing = chassis.missing(row, nb_cfg);
        if missing.is_empty() {
            (self.due, self.written) = (None, None);
            self.registered = true;
            return Step::Rest;
        }
        // Only a new number is answered with a delay; a row that knows nothing of us is told at once. Numbers may follow
        // each other faster than they are answered: the delay of the first one counts.
        let delayed = self.registered && answered.is_some() && missing.keys().eq([SB_CFG]);
        let delay = if delayed { chassis.delay(nb_cfg, self.spread) } else { Duration::ZERO };
        let at = self.due.map_or(now + delay, |due| due.min(now + delay));
        self.due = Some(at);
        let at = self.written.map_or(at, |(_, again)| again.max(at));
        if at > now {
            return Step::Wait(at);
        }
        self.written = Some((nb_cfg, now + self.spread));
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

    const SPREAD: Duration = Duration::from_secs(10);

    fn write(number: i64) -> Step {
        Step::Write(BTreeMap::from([(SB_CFG.to_owned(), number.to_string())]))
    }

    /// One that has written its keys, with the number 5.
    fn registered(now: Instant) -> (Liveness, BTreeMap<String, String>) {
        let mut liveness = Liveness::new(SPREAD);
        let mut row = BTreeMap::from([("other".to_owned(), "x".to_owned())]);
        let Step::Write(keys) = liveness.step(now, &chassis(), &row, 5) else { panic!("not at once") };
        assert_eq!((keys.len(), keys[SB_CFG].as_str()), (3, "5"));
        row.extend(keys);
        assert_eq!(liveness.step(now, &chassis(), &row, 5), Step::Rest);
        (liveness, row)
    }

    #[test]
    fn registers_at_once_and_answers_later_numbers_with_a_delay() {
        let now = Instant::now();
        let (mut liveness, row) = registered(now);
        let Step::Wait(at) = liveness.step(now, &chassis(), &row, 6) else { panic!("not delayed") };
        assert!(at > now && at <= now + SPREAD);
        let later = at - Duration::from_millis(1);
        assert_eq!(
            liveness.step(later, &chassis(), &row, 6),
            Step::Wait(at),
            "asking again does not move it"
        );
        assert_eq!(liveness.step(at, &chassis(), &row, 6), write(6));
    }

    #[test]
    fn numbers_in_quick_succession_put_no_answer_off() {
        let mut now = Instant::now();
        let (mut liveness, mut row) = registered(now);
        let (mut answered, mut slowest) = (now, Duration::ZERO);
        for number in 6..1000 {
            now += Duration::from_millis(700);
            if let Step::Write(keys) = liveness.step(now, &chassis(), &row, number) {
                slowest = slowest.max(now - answered);
                answered = now;
                // The row follows when the next number is there already.
                row.extend(keys);
            }
        }
        assert!(slowest <= SPREAD + Duration::from_millis(1400), "{slowest:?}");
        assert!(answered > now - SPREAD);
    }

    #[test]
    fn answers_leave_neutron_time() {
        let seconds = |down| spread(Duration::from_secs(down)).as_secs();
        assert_eq!([1, 10, 21, 75, 600].map(seconds), [3, 3, 7, 10, 10]);
    }

    #[test]
    fn a_write_without_effect_is_repeated_but_not_at_once() {
        let now = Instant::now();
        let mut liveness = Liveness::new(SPREAD);
        assert!(matches!(liveness.step(now, &chassis(), &BTreeMap::new(), 5), Step::Write(_)));
        assert_eq!(liveness.step(now, &chassis(), &BTreeMap::new(), 6), Step::Wait(now + SPREAD));
        assert!(matches!(liveness.step(now + SPREAD, &chassis(), &BTreeMap::new(), 6), Step::Write(_)));
    }

    #[test]
    fn a_row_made_anew_is_told_at_once() {
        let now = Instant::now();
        let (mut liveness, row) = registered(now);
        assert!(matches!(liveness.step(now, &chassis(), &row, 6), Step::Wait(_)));
        let step = liveness.step(now, &chassis(), &BTreeMap::new(), 6);
        assert!(matches!(step, Step::Write(keys) if keys.len() == 3));
    }

    #[test]
    fn an_id_that_is_there_is_left() {
        let row = BTreeMap::from([(ID.to_owned(), "theirs".to_owned())]);
        assert!(!chassis().missing(&row, 1).contains_key(ID));
    }
}
