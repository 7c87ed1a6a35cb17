//! Devices of networks that somebody deleted behind Open vSwitch's back, which it does not make anew by itself. Pure, with the
//! time passed in.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

/// Time for which a device may be away at first: ovs-vswitchd that is restarted makes it anew. It doubles with each try.
const PATIENCE: Duration = Duration::from_secs(10);
/// Number of times that it does.
const MOST_DOUBLED: u32 = 5;
/// Time for which its port is gone: ovs-vswitchd that finds it removed and added again in one go keeps the broken one.
const PAUSE: Duration = Duration::from_secs(1);

/// The networks whose devices were here once: one that never was may be in another namespace, where no other one would come
/// from either.
#[derive(Debug, Default)]
pub(super) struct LostDevices(BTreeMap<String, State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    tries: u32,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Here,
    Missing { since: Instant },
    Removing,
    Removed { at: Instant },
}

impl LostDevices {
    /// Takes the networks that need a device, and those whose device has an Interface, each with true if this host has the
    /// device. Those that are to have none for now are returned.
    pub(super) fn update(
        &mut self,
        now: Instant,
        needed: &BTreeSet<String>,
        devices: &BTreeMap<String, bool>,
    ) -> BTreeSet<&str> {
        self.0.retain(|network, _| needed.contains(network));
        let elapsed = |since| now.saturating_duration_since(since);
        for (network, is_here) in devices {
            if *is_here {
                self.0.insert(network.clone(), State { phase: Phase::Here, tries: 0 });
            }
        }
        for (network, State { phase, tries }) in &mut self.0 {
            let patience = PATIENCE * 2_u32.pow((*tries).min(MOST_DOUBLED));
            let has_interface = devices.contains_key(network);
            *phase = match *phase {
                Phase::Here if devices.get(network) == Some(&false) => Phase::Missing { since: now },
                Phase::Missing { since } if has_interface && elapsed(since) >= patience => {
                    *tries += 1;
                    Phase::Removing
                }
                Phase::Removing if !has_interface => Phase::Removed { at: now },
                Phase::Removed { at } if elapsed(at) >= PAUSE => Phase::Missing { since: now },
                other => other,
            };
        }
        let is_unwanted = |state: &State| matches!(state.phase, Phase::Removing | Phase::Removed { .. });
        self.0.iter().filter(|(_, state)| is_unwanted(state)).map(|(network, _)| network.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_here_is_made_anew() {
        let (mut lost, start) = (LostDevices::default(), Instant::now());
        let needed = BTreeSet::from(["net".to_owned()]);
        let mut is_unwanted = |second, device: Option<bool>| {
            let devices = device.map(|is_here| ("net".to_owned(), is_here)).into_iter().collect();
            !lost.update(start + Duration::from_secs(second), &needed, &devices).is_empty()
        };
        let (none, lacking, whole) = (None, Some(false), Some(true));
        assert!(!is_unwanted(0, lacking) && !is_unwanted(9, lacking), "it has not been here yet");
        assert!(!is_unwanted(10, whole));
        assert!(!is_unwanted(11, lacking) && !is_unwanted(12, whole), "it was away for a moment");
        assert!(!is_unwanted(13, lacking) && is_unwanted(23, lacking) && is_unwanted(24, lacking));
        assert!(is_unwanted(25, none) && !is_unwanted(26, none), "it is wanted after a pause");
        // In vain, and again later.
        assert!(!is_unwanted(27, lacking) && !is_unwanted(45, lacking) && is_unwanted(46, lacking));
        assert!(is_unwanted(47, none) && !is_unwanted(48, none) && !is_unwanted(49, whole));
        assert!(!is_unwanted(50, lacking) && is_unwanted(60, lacking), "it is as patient as at first");
    }

    #[test]
    fn what_is_needed_no_more_is_forgotten() {
        let (mut lost, start) = (LostDevices::default(), Instant::now());
        let (needed, at) = (BTreeSet::from(["net".to_owned()]), |second| start + Duration::from_secs(second));
        let device = |is_here| BTreeMap::from([("net".to_owned(), is_here)]);
        lost.update(at(0), &needed, &device(true));
        lost.update(at(1), &needed, &device(false));
        assert_eq!(lost.update(at(11), &needed, &device(false)).len(), 1);
        assert!(lost.update(at(12), &BTreeSet::new(), &BTreeMap::new()).is_empty());
        assert!(lost.update(at(13), &needed, &device(false)).is_empty());
    }
}
