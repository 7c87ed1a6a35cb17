//! The log of the datapath: for which ports and until when frames are recorded, and the task that tells of them.
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metadata_ebpf::{
    address::Tag,
    map::{FrameLimit, RECORD_ALL, RECORD_DROPPED, RECORD_PORT},
};
use serde_json::json;
use tracing::{info, warn};

use super::watched;
use crate::{
    datapath::{Action, Frame, Records, device_name},
    directory::{Directory, Port},
    link::PortNumber,
    watchers::{Watched, Watchers},
};

/// Most frames that are told of in a second, of all processors together: a host may have hundreds of them.
const MOST: FrameLimit = FrameLimit::new(1000, 1000);

/// Budget by [`MOST`]: its use, and the frames that were left out for it.
#[derive(Debug)]
struct Budget {
    began: Instant,
    state: u64,
    left_out: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { began: now, state: 0, left_out: 0 }
    }

    /// Keeps count of frames that the programs left out.
    fn note(&mut self, left_out: u64) {
        self.left_out = self.left_out.saturating_add(left_out);
    }

    /// The number of frames that were left out before this one, if it is told of.
    fn admits(&mut self, now: Instant) -> Option<u64> {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX / 2);
        match MOST.after(self.state, now) {
            Some(next) => {
                self.state = next;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.note(1);
                None
            }
        }
    }
}

/// Part of the datapath that is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logged {
    /// Only these ports, or everything.
    pub(super) ports: Option<BTreeSet<PortNumber>>,
    /// End of the logging.
    pub(super) until: Instant,
}

/// A frame that is told of.
struct Wanted {
    port: Option<Arc<Port>>,
    tap: String,
    is_logged: bool,
    is_watched: bool,
}

/// Interest in frames, which the control plane changes and the task reads.
#[derive(Debug, Clone, Default)]
pub(super) struct FrameLog {
    logged: Arc<Mutex<Option<Logged>>>,
    watchers: Watchers,
}

impl FrameLog {
    /// Begins to tell of frames.
    pub(super) fn start(mut records: Records, directory: Arc<Directory>, watchers: Watchers) -> Self {
        let log = Self { logged: Arc::default(), watchers };
        let task = log.clone();
        tokio::spawn(async move {
            let mut budget = Budget::new(Instant::now());
            loop {
                match records.next().await {
                    Ok(mut frame) => {
                        budget.note(frame.left_out);
                        // Those of others take nothing of the budget, and do not have the count.
                        let Some(wanted) = task.wanted_frame(&frame, &directory) else { continue };
                        if let Some(left_out) = budget.admits(Instant::now()) {
                            frame.left_out = left_out;
                            task.tell(&frame, &wanted);
                        }
                    }
                    Err(error) => {
                        warn!(%error, "records of the datapath cannot be read");
                        return;
                    }
                }
            }
        });
        log
    }

    /// Logs these ports until then; nothing from now on without.
    pub(super) fn set(&self, logged: Option<Logged>) {
        *self.logged() = logged;
    }

    /// Frames that the programs are to record. The assignment of a port is found by its id.
    pub(super) fn wanted(&self, now: Instant, find: impl Fn(&str) -> Option<PortNumber>) -> u32 {
        let mut logged = self.logged();
        if logged.as_ref().is_some_and(|logged| logged.until <= now) {
            *logged = None;
            info!(target: "datapath", "frames are not logged any more: the time for it is over");
        }
        recorded(logged.as_ref(), &self.watchers.watched(), find)
    }

    /// Whom a frame is told to, if to anybody.
    fn wanted_frame(&self, frame: &Frame, directory: &Directory) -> Option<Wanted> {
        let is_logged = self.logged().as_ref().is_some_and(|logged| {
            let is_of_port = logged.ports.as_ref().is_none_or(|ports| {
                frame
                    .port
                    .is_some_and(|(index, generation)| ports.contains(&PortNumber { index, generation }))
            });
            is_of_port && Instant::now() < logged.until
        });
        let may_be_watched = frame.action == Action::Dropped && self.watchers.any();
        if !is_logged && !may_be_watched {
            return None;
        }
        let port = frame.port.and_then(|(index, generation)| directory.port(Tag::new(generation, index, 0)));
        let tap = match &port {
            Some(port) => port.tap.to_string(),
            None => device_name(frame.ifindex),
        };
        let id = port.as_ref().map(|port| port.id.as_str());
        let is_watched = may_be_watched && self.watchers.is_watched(id, &tap);
        (is_logged || is_watched).then_some(Wanted { port, tap, is_logged, is_watched })
    }

    fn tell(&self, frame: &Frame, wanted: &Wanted) {
        let Wanted { port, tap, is_logged, is_watched } = wanted;
        if *is_watched {
            self.watchers.publish(&json!({
                "kind": "drop",
                "time": watched::now(),
                "outcome": frame.outcome.name(),
                "tap": tap,
                "vlan": frame.vlan,
                "port": port.as_ref().map(|port| port.id.as_str()),
                "frame": frame.headers.to_string(),
                "bytes": frame.len,
                "left_out": frame.left_out,
            }));
        }
        if !is_logged {
            return;
        }
        info!(
            target: "datapath",
            outcome = frame.outcome.name(),
            action = frame.action.name(),
            %tap,
            vlan = (frame.vlan != 0).then_some(frame.vlan),
            port = port.as_ref().map(|port| port.id.as_str()),
            frame = %frame.headers,
            bytes = frame.len,
            left_out = (frame.left_out != 0).then_some(frame.left_out),
            "frame"
        );
    }

    fn logged(&self) -> MutexGuard<'_, Option<Logged>> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frames that are to be recorded for the log and for those who watch, as the programs understand it. Those of one port alone if
/// nobody is told of others: each processor records a bounded number, which frames of others would use up.
fn recorded(logged: Option<&Logged>, watched: &Watched, find: impl Fn(&str) -> Option<PortNumber>) -> u32 {
    let kinds = match (logged, watched) {
        (Some(_), _) => RECORD_ALL,
        (None, Watched::Nothing) => return 0,
        (None, _) => RECORD_DROPPED,
    };
    let of_log = logged.map_or(Some(BTreeSet::new()), |logged| logged.ports.clone());
    let of_watchers = match watched {
        Watched::Nothing => Some(BTreeSet::new()),
        Watched::Everything => None,
        // A device has frames of no port as well.
        Watched::Of(words) => words.iter().map(|word| find(word)).collect(),
    };
    let (Some(of_log), Some(of_watchers)) = (of_log, of_watchers) else { return kinds };
    match of_log.union(&of_watchers).collect::<Vec<_>>()[..] {
        [port] => kinds | (port.index + 1) & RECORD_PORT,
        _ => kinds,
    }
}

/// End of logging for `seconds`.
pub(super) fn end(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_one_port_alone_are_recorded_if_nobody_is_told_of_others() {
        let numbers = [PortNumber { index: 6, generation: 1 }, PortNumber { index: 8, generation: 1 }];
        let find = |word: &str| Some(numbers[["six", "eight"].iter().position(|name| *name == word)?]);
        let of = |words: &[&str]| Watched::Of(words.iter().map(|word| (*word).to_owned()).collect());
        let logged = |ports: &[usize]| {
            let ports = Some(ports.iter().map(|index| numbers[*index]).collect());
            Some(Logged { ports, until: Instant::now() })
        };
        let all = Some(Logged { ports: None, until: Instant::now() });
        let is = |logged: &Option<Logged>, watched: &Watched, expected| {
            assert_eq!(recorded(logged.as_ref(), watched, find), expected, "{logged:?}, {watched:?}");
        };
        is(&None, &Watched::Nothing, 0);
        is(&None, &Watched::Everything, RECORD_DROPPED);
        is(&None, &of(&["six"]), RECORD_DROPPED | 7);
        is(&None, &of(&["six", "eight"]), RECORD_DROPPED);
        is(&None, &of(&["tap6"]), RECORD_DROPPED);
        is(&None, &of(&["six", "tap6"]), RECORD_DROPPED);
        is(&logged(&[0]), &Watched::Nothing, RECORD_ALL | 7);
        is(&logged(&[0]), &of(&["six"]), RECORD_ALL | 7);
        is(&logged(&[0]), &of(&["eight"]), RECORD_ALL);
        is(&logged(&[0]), &Watched::Everything, RECORD_ALL);
        is(&logged(&[0, 1]), &Watched::Nothing, RECORD_ALL);
        is(&all, &of(&["six"]), RECORD_ALL);
    }

    #[test]
    fn so_many_frames_are_told_of_and_the_others_are_counted() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        let told = (0..5000).filter(|_| budget.admits(now).is_some()).count();
        assert_eq!(told, 1000);
        budget.note(7);
        assert_eq!(budget.admits(now + Duration::from_secs(1)), Some(4007));
        assert_eq!(budget.admits(now + Duration::from_secs(1)), Some(0));
    }
}
