//! The ports outside of the switch that this chassis is responsible for, through moments in which its own row is made anew.
//! Pure, with the time passed in.
use std::{sync::Arc, time::Duration};

use ovsdb_client::Uuid;
use tokio::time::Instant;

use super::{bindings::Bindings, rows::PortBinding};

/// Time for which ports are kept whose rows have lost this chassis together with the chassis' own row: until that is there
/// again, and from then until OVN has chosen a chassis for them.
const GONE: Duration = Duration::from_secs(30);
const BACK: Duration = Duration::from_secs(10);

/// Ports of this chassis.
#[derive(Debug, Default)]
pub(super) struct External {
    chassis: Option<Uuid>,
    /// Time at which the chassis' row was last lost, or another one came.
    changed: Option<Instant>,
    ports: Vec<Arc<PortBinding>>,
}

impl External {
    /// Takes the row of this chassis and those of ports, and tells which ports are its own.
    ///
    /// A row that names another chassis is that one's at once. One that names none, or is not here any more, was taken from
    /// this chassis, unless it was the chassis that went.
    pub(super) fn update(
        &mut self,
        now: Instant,
        chassis: Option<Uuid>,
        bindings: &Bindings,
    ) -> &[Arc<PortBinding>] {
        if chassis != self.chassis {
            // Who had no ports yet has none to keep.
            self.changed = (!self.ports.is_empty()).then_some(now);
            self.chassis = chassis;
        }
        let grace = if chassis.is_some() { BACK } else { GONE };
        let is_new = self.changed.is_some_and(|changed| now.saturating_duration_since(changed) < grace);
        let mut ports: Vec<_> =
            chassis.into_iter().flat_map(|chassis| bindings.external(chassis)).cloned().collect();
        let is_free = |row: &Arc<PortBinding>| {
            bindings.port(&row.logical_port).is_none_or(|now| now.kind == row.kind && now.chassis.is_none())
        };
        ports.extend(std::mem::take(&mut self.ports).into_iter().filter(|row| is_new && is_free(row)));
        self.ports = ports;
        &self.ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::bindings::EXTERNAL;

    fn bindings(chassis: Option<u128>) -> Bindings {
        let row = PortBinding {
            logical_port: "port".into(),
            kind: EXTERNAL.into(),
            chassis: chassis.map(Uuid::from_u128),
            ..PortBinding::default()
        };
        [&row].into_iter().collect()
    }

    /// Number of ports after each step: seconds, the chassis' row, the rows of the port.
    fn counts(steps: &[(u64, Option<u128>, Bindings)]) -> Vec<usize> {
        let (mut external, start) = (External::default(), Instant::now());
        let step = |(at, chassis, bindings): &(u64, Option<u128>, Bindings)| {
            external.update(start + Duration::from_secs(*at), chassis.map(Uuid::from_u128), bindings).len()
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn what_is_given_to_another_chassis_is_left_at_once() {
        let here = || (20, Some(1), bindings(Some(1)));
        let first = || (0, Some(1), bindings(None));
        assert_eq!(counts(&[first(), here(), (21, Some(1), bindings(Some(2)))]), [0, 1, 0]);
        assert_eq!(counts(&[first(), here(), (21, Some(1), bindings(None))]), [0, 1, 0]);
        assert_eq!(counts(&[first(), here(), (21, Some(1), Bindings::default())]), [0, 1, 0]);
        // However young the agent is.
        let begins = || (0, Some(1), bindings(Some(1)));
        assert_eq!(
            counts(&[(0, None, Bindings::default()), begins(), (1, Some(1), Bindings::default())]),
            [0, 1, 0]
        );
    }

    #[test]
    fn a_chassis_that_is_made_anew_keeps_its_ports_until_they_are_chosen_again() {
        let here = || (20, Some(1), bindings(Some(1)));
        let lost = || (21, None, Bindings::default());
        assert_eq!(
            counts(&[here(), lost(), (25, Some(2), bindings(None)), (26, Some(2), bindings(Some(2)))]),
            [1; 4]
        );
        assert_eq!(counts(&[here(), lost(), (25, Some(2), bindings(Some(3)))]), [1, 1, 0]);
        assert_eq!(
            counts(&[here(), lost(), (25, Some(2), bindings(None)), (36, Some(2), bindings(None))]),
            [1, 1, 1, 0]
        );
        assert_eq!(counts(&[here(), lost(), (52, None, Bindings::default())]), [1, 1, 0]);
    }
}
