//! Ports that have no tap yet and may be about to get one: they are waited for, before they count as ports without a tap.
use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::inventory::{join::Tapless, vif::OtherWay};

/// Time for which a port may be about to get a tap.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ports whose taps may be about to be heard of, and since when.
#[derive(Debug, Default)]
pub(in crate::inventory) struct Doubts(BTreeMap<String, Instant>);

impl Doubts {
    /// Leaves those that are reached through the switch, once that is certain.
    pub(in crate::inventory) fn settle<'a>(
        &mut self,
        now: Instant,
        mut tapless: Vec<Tapless<'a>>,
    ) -> Vec<Tapless<'a>> {
        let former = std::mem::take(&mut self.0);
        tapless.retain(|Tapless { binding, no_tap, .. }| match no_tap.way {
            OtherWay::None => false,
            OtherWay::Switch => true,
            OtherWay::SwitchPerhaps => {
                let port = &binding.logical_port;
                let since = former.get(port).copied().unwrap_or(now);
                self.0.insert(port.clone(), since);
                now.saturating_duration_since(since) >= PATIENCE
            }
        });
        tapless
    }
}
