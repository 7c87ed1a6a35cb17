//! Rows of Port_Binding to ask the Southbound for. Pure, with the time passed in.
//!
//! A server walks the whole table for each change of a condition (58 to 79 ms of its only thread, of 100,000 rows), so that a
//! region could not plug more than a few ports a second if each was asked for by its name. What does not change is the
//! chassis: rows name it when the port is bound to it (`chassis`), should be (`requested_chassis`, which Neutron sets
//! before the port is plugged), and the same for the other side of a live migration. Only a port that is plugged and
//! has not come that way after a while is asked for by name, together with all others of which that is so. So is one that is being migrated live, for
//! the sake of its subports: their rows name one chassis at most, and the machine is on two. A network's metadata port names
//! no chassis: one is asked for by its network where a port without a tap needs it.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ovsdb_client::{Clause, Conditions, Function, Uuid};
use tokio::time::Instant;

use super::bindings::metadata_device;

/// The columns that name a chassis. Servers that lack one of them find nothing by it.
const CHASSIS_COLUMNS: [&str; 4] =
    ["chassis", "requested_chassis", "additional_chassis", "requested_additional_chassis"];
/// Timeout of a plugged port's row to come by its chassis: the time in which ovn-controller claims it, with some to
/// spare.
const PATIENCE: Duration = Duration::from_secs(2);
/// Number of names and networks of no use any more that are kept until something else changes: a condition with them costs the
/// server nothing, and changing it does.
const MOST_STALE: usize = 64;

/// State of the Southbound's row for a port that is plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    Missing,
    Here,
    /// Its row is here, and names another chassis besides: it is being migrated live.
    Moving,
}

/// Conditions of the monitor: those in force, and the ports that may have to be asked for by name.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    chassis: Option<Uuid>,
    names: BTreeSet<String>,
    /// Networks whose metadata ports are asked for.
    networks: BTreeSet<String>,
    /// Plugged ports without a row, and since when.
    missing: BTreeMap<String, Instant>,
    /// Everything, whatever is plugged.
    all: bool,
    /// Time at which the chassis' row was first looked for in vain.
    chassis_missing: Option<Instant>,
}

impl Subscription {
    /// With `all`, the whole table is asked for, once.
    pub(super) fn new(all: bool) -> Self {
        Self { all, ..Self::default() }
    }

    /// The conditions that the Southbound is asked with.
    pub(super) fn conditions(&self) -> Conditions {
        if self.all {
            return Conditions::All;
        }
        let by_chassis = self.chassis.into_iter().flat_map(|chassis| {
            CHASSIS_COLUMNS.map(|column| Clause::new(column, Function::Includes, chassis))
        });
        let by_name = self.names.iter().flat_map(|port| {
            ["logical_port", "parent_port"].map(|column| Clause::equal(column, port.as_str()))
        });
        let by_network = self.networks.iter().map(|network| {
            let id = BTreeMap::from([("neutron:device_id".to_owned(), metadata_device(network))]);
            Clause::new("external_ids", Function::Includes, id)
        });
        Conditions::any_of(by_chassis.chain(by_name).chain(by_network))
    }

    /// True if the Southbound has been asked for this very port, so that it has none if no row is here.
    pub(super) fn asks_for(&self, port: &str) -> bool {
        self.all || self.names.contains(port)
    }

    /// True if the rows of this chassis have been asked for.
    pub(super) fn asks_for_chassis(&self) -> bool {
        self.all || self.chassis.is_some()
    }

    /// True if the Southbound has been asked for the metadata port of this network.
    pub(super) fn asks_for_network(&self, network: &str) -> bool {
        self.all || self.networks.contains(network)
    }

    /// Takes what is plugged, of which `row` tells what has come, the networks of which the metadata port is
    /// needed, and the row of this chassis. Tells whether the conditions have changed by that, and when to ask again, if
    /// nothing happens before.
    pub(super) fn update(
        &mut self,
        now: Instant,
        plugged: &BTreeSet<String>,
        networks: &BTreeSet<String>,
        row: impl Fn(&str) -> Row,
        chassis: Option<Uuid>,
    ) -> (bool, Option<Instant>) {
        if self.all {
            return (false, None);
        }
        let mut changed = chassis.is_some() && chassis != self.chassis;
        if changed {
            self.chassis = chassis;
        }
        if !networks.is_subset(&self.networks) {
            self.networks.extend(networks.iter().cloned());
            changed = true;
        }
        // Without a chassis' row nothing comes that way, and nothing is waited for once it had its time.
        let patience = match (self.chassis, self.chassis_missing) {
            (Some(_), _) => PATIENCE,
            (None, None) => {
                self.chassis_missing = Some(now);
                PATIENCE
            }
            (None, Some(since)) => PATIENCE.saturating_sub(now.saturating_duration_since(since)),
        };
        let (mut missing, mut moving) = (BTreeSet::new(), Vec::new());
        for port in plugged.difference(&self.names) {
            match row(port) {
                Row::Here => {}
                Row::Missing => drop(missing.insert(port)),
                Row::Moving => moving.push(port.clone()),
            }
        }
        changed |= !moving.is_empty();
        self.missing.retain(|port, _| missing.contains(port));
        for port in missing {
            self.missing.entry(port.clone()).or_insert(now);
        }
        self.names.extend(moving);
        let is_due = |since: &Instant| now.saturating_duration_since(*since) >= patience;
        if self.missing.values().any(is_due) {
            // Those that would be next are asked for in the same breath.
            self.names.extend(std::mem::take(&mut self.missing).into_keys());
            changed = true;
        }
        let stale = self.names.difference(plugged).count() + self.networks.difference(networks).count();
        if (changed && stale > 0) || stale > MOST_STALE {
            self.names.retain(|port| plugged.contains(port));
            self.networks.clone_from(networks);
            changed = true;
        }
        (changed, self.missing.values().min().map(|since| *since + patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugged(ports: &[&str]) -> BTreeSet<String> {
        ports.iter().map(|port| (*port).to_owned()).collect()
    }

    fn none() -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn here(port: &str) -> Row {
        if port == "here" { Row::Here } else { Row::Missing }
    }

    fn chassis(number: u8) -> Option<Uuid> {
        Some(Uuid::from_bytes([number; 16]))
    }

    #[test]
    fn a_port_that_comes_by_its_chassis_changes_nothing() {
        let (mut subscription, now) = (Subscription::new(false), Instant::now());
        assert_eq!(subscription.conditions(), Conditions::None);
        assert_eq!(
            subscription.update(now, &plugged(&[]), &none(), |_| Row::Missing, chassis(1)),
            (true, None)
        );
        let conditions = subscription.conditions();
        for second in 1..600 {
            let now = now + Duration::from_secs(second);
            let ports = plugged(&[&format!("port-{second}")]);
            assert_eq!(subscription.update(now, &ports, &none(), |_| Row::Here, chassis(1)), (false, None));
        }
        assert_eq!(subscription.conditions(), conditions);
    }

    #[test]
    fn ports_that_do_not_come_are_asked_for_together() {
        let (mut subscription, start) = (Subscription::new(false), Instant::now());
        let at = |millisecond| start + Duration::from_millis(millisecond);
        subscription.update(at(0), &plugged(&[]), &none(), |_| Row::Missing, chassis(1));
        let (changed, again) =
            subscription.update(at(0), &plugged(&["a"]), &none(), |_| Row::Missing, chassis(1));
        assert_eq!((changed, again), (false, Some(at(0) + PATIENCE)));
        let ports = plugged(&["a", "b", "here"]);
        assert!(!subscription.update(at(1000), &ports, &none(), here, chassis(1)).0);
        assert!(!subscription.asks_for("a"));
        assert!(subscription.update(at(2000), &ports, &none(), here, chassis(1)).0);
        assert!(subscription.asks_for("a") && subscription.asks_for("b") && !subscription.asks_for("here"));
        assert_eq!(subscription.update(at(9000), &ports, &none(), here, chassis(1)), (false, None));
        // They are given up when something else changes, or when there are too many of them.
        assert!(!subscription.update(at(9001), &plugged(&["a"]), &none(), |_| Row::Here, chassis(1)).0);
        assert!(subscription.asks_for("b"));
        assert!(subscription.update(at(9002), &plugged(&["a"]), &none(), |_| Row::Here, chassis(2)).0);
        assert!(subscription.asks_for("a") && !subscription.asks_for("b"));
        let many: Vec<String> = (0..=MOST_STALE).map(|number| format!("port-{number}")).collect();
        let many = many.iter().map(String::as_str).collect::<Vec<_>>();
        subscription.update(at(10_000), &plugged(&many), &none(), |_| Row::Missing, chassis(2));
        assert!(subscription.update(at(20_000), &plugged(&many), &none(), |_| Row::Missing, chassis(2)).0);
        assert!(subscription.update(at(20_001), &plugged(&[]), &none(), |_| Row::Missing, chassis(2)).0);
        assert_eq!(subscription.names.len(), 0);
    }

    #[test]
    fn a_port_that_is_migrated_is_asked_for_by_name_until_it_is_unplugged() {
        let (mut subscription, now) = (Subscription::new(false), Instant::now());
        subscription.update(now, &plugged(&[]), &none(), |_| Row::Here, chassis(1));
        let (ports, moving) = (plugged(&["a", "b"]), |port: &str| match port {
            "a" => Row::Moving,
            _ => Row::Here,
        });
        assert_eq!(subscription.update(now, &ports, &none(), moving, chassis(1)), (true, None));
        assert!(subscription.asks_for("a") && !subscription.asks_for("b"));
        assert_eq!(subscription.update(now, &ports, &none(), moving, chassis(1)), (false, None));
        // It has arrived, and its subports' rows may name another chassis still.
        assert_eq!(subscription.update(now, &ports, &none(), |_| Row::Here, chassis(1)), (false, None));
        assert!(subscription.asks_for("a"));
        subscription.update(now, &plugged(&["b"]), &none(), |_| Row::Here, chassis(2));
        assert!(!subscription.asks_for("a"));
    }

    #[test]
    fn without_a_chassis_names_are_asked_for() {
        let (mut subscription, now) = (Subscription::new(false), Instant::now());
        let ports = plugged(&["a"]);
        assert_eq!(
            subscription.update(now, &ports, &none(), |_| Row::Missing, None),
            (false, Some(now + PATIENCE))
        );
        assert!(subscription.update(now + PATIENCE, &ports, &none(), |_| Row::Missing, None).0);
        // From now on nothing is waited for.
        let ports = plugged(&["a", "b"]);
        assert!(
            subscription
                .update(
                    now + 2 * PATIENCE,
                    &ports,
                    &none(),
                    |port| if port == "a" { Row::Here } else { Row::Missing },
                    None
                )
                .0
        );
        assert!(subscription.asks_for("b"));
    }

    #[test]
    fn everything_is_everything() {
        let mut subscription = Subscription::new(true);
        assert_eq!(subscription.conditions(), Conditions::All);
        assert_eq!(
            subscription.update(Instant::now(), &plugged(&["a"]), &none(), |_| Row::Missing, chassis(1)),
            (false, None)
        );
        assert!(subscription.asks_for("a"));
    }

    #[test]
    fn metadata_ports_are_asked_for_while_their_networks_need_them() {
        let (mut subscription, now) = (Subscription::new(false), Instant::now());
        subscription.update(now, &plugged(&[]), &none(), |_| Row::Missing, chassis(1));
        assert!(subscription.update(now, &plugged(&[]), &plugged(&["red"]), |_| Row::Here, chassis(1)).0);
        assert!(subscription.asks_for_network("red") && !subscription.asks_for_network("blue"));
        assert!(!subscription.update(now, &plugged(&[]), &plugged(&["red"]), |_| Row::Here, chassis(1)).0);
        // What is of no use any more costs nothing until something else changes.
        assert!(!subscription.update(now, &plugged(&[]), &none(), |_| Row::Here, chassis(1)).0);
        assert!(subscription.update(now, &plugged(&[]), &plugged(&["blue"]), |_| Row::Here, chassis(1)).0);
        assert!(!subscription.asks_for_network("red"));
    }
}
