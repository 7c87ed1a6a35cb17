//! The log of the datapath: for which ports and until when frames are recorded, and the task that tells of them.
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metadata_ebpf::{
    address::Tag,
    map::{RECORD_ALL, RECORD_DROPPED, RECORD_PORT},
};
use serde_json::json;
use tracing::{info, warn};

use super::watched;
use crate::{
    datapath::{Action, Frame, Records, device_name},
    directory::Directory,
    link::PortNumber,
    watchers::Watchers,
};

/// What of the datapath is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logged {
    /// Only these ports, or everything.
    pub(super) ports: Option<BTreeSet<PortNumber>>,
    /// When it ends.
    pub(super) until: Instant,
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
            loop {
                match records.next().await {
                    Ok(frame) => task.tell(&frame, &directory),
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

    /// What the programs are to record.
    pub(super) fn wanted(&self, now: Instant) -> u32 {
        let mut logged = self.logged();
        if logged.as_ref().is_some_and(|logged| logged.until <= now) {
            *logged = None;
            info!(target: "datapath", "frames are not logged any more: the time for it is over");
        }
        match logged
            .as_ref()
            .map(|logged| logged.ports.as_ref().map(|ports| ports.iter().collect::<Vec<_>>()))
        {
            None if self.watchers.any() => RECORD_DROPPED,
            None => 0,
            Some(Some(ports)) if ports.len() == 1 && !self.watchers.any() => {
                RECORD_ALL | (ports[0].index + 1) & RECORD_PORT
            }
            Some(_) => RECORD_ALL,
        }
    }

    fn tell(&self, frame: &Frame, directory: &Directory) {
        let is_logged = self.logged().as_ref().is_some_and(|logged| {
            let is_of_port = logged.ports.as_ref().is_none_or(|ports| {
                frame
                    .port
                    .is_some_and(|(index, generation)| ports.contains(&PortNumber { index, generation }))
            });
            is_of_port && Instant::now() < logged.until
        });
        let is_watched = frame.action == Action::Dropped && self.watchers.any();
        if !is_logged && !is_watched {
            return;
        }
        let port = frame.port.and_then(|(index, generation)| directory.port(Tag::new(generation, index, 0)));
        let tap = match &port {
            Some(port) => port.tap.to_string(),
            None => device_name(frame.ifindex),
        };
        if is_watched {
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

/// When logging for that long ends.
pub(super) fn end(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}
