//! Upkeep of the datapath: a look after it every few seconds, and the agent's own guest, which asks as others do.
use std::time::Instant;

use tracing::{error, info, warn};

use super::Control;
use crate::{
    datapath::{self, Family, Probe},
    directory::PROBE_ANSWER,
};

impl Control {
    /// Without its own guest the agent serves all others, and does not notice when they do not reach it.
    pub(super) fn start_probe(&mut self) {
        // Asked before, or a full node would make a device every few seconds in vain.
        let started = self.reconciler.check_room().and_then(|()| Probe::start(PROBE_ANSWER));
        let started = started.and_then(|probe| self.reconciler.serve_probe(&probe.device).map(|()| probe));
        match started {
            Ok(probe) => {
                self.probe = Some(probe);
                self.health.watched(None);
            }
            Err(error) => {
                if let Some(error) = self.health.watched(Some(error.to_string())) {
                    error!(error, "whether guests reach the service is not watched, trying again");
                }
            }
        }
    }

    /// Periodic upkeep of the datapath, and the news of what is not served.
    pub(super) fn look_after(&mut self) {
        // A name that cannot be given back costs the guests nothing: the rest is looked after all the same.
        let looked_after = self.reconciler.look_after(Instant::now());
        let problem = looked_after.and(self.service.keep_name()).err().map(|error| error.to_string());
        if let Some(error) = self.health.looked_after(problem) {
            error!(error, "the datapath cannot be looked after");
        }
        if self.probe.is_none() && self.serving.is_cancelled() {
            self.start_probe();
        }
        if let Some(probe) = &mut self.probe {
            probe.ask(self.family);
        }
        if self.nova.is_due(Instant::now()) {
            let nova = self.nova.clone();
            tokio::spawn(async move {
                // It is kept there.
                let _ = nova.check().await;
            });
        }
        // It was given to a successor that did not come.
        if !self.admin.is_open() && self.admin.reopen().is_ok() {
            info!("the operator's interface is open again");
        }
        self.tell_unserved();
        self.watchers.prune();
        if let Err(error) = self.record_frames() {
            warn!(%error, "the programs cannot be told which frames to record");
        }
    }

    /// Takes the outcome of one connection from inside. After a failure everything on its way is repaired.
    pub(super) fn probed(&mut self, result: Result<(), String>) {
        let problem = result.clone().err();
        let is_first = self.health.probed(self.family, result);
        let Some(problem) = problem else {
            let other = if self.service.has_ipv6() { Family::V6 } else { Family::V4 };
            self.family = if self.family == Family::V4 { other } else { Family::V4 };
            return;
        };
        // What repairing does not help against is said once, and stays in `show ready`.
        if is_first {
            warn!(problem, "guests do not reach the service: repairing its device");
        }
        let failed = self.repair().err().map(|error| error.to_string());
        if let Some(error) = self.health.repaired(failed) {
            error!(error, "the way to the service cannot be repaired");
        }
        if is_first && let Some(probe) = &mut self.probe {
            probe.ask(self.family);
        }
    }

    fn repair(&mut self) -> Result<(), datapath::Error> {
        let repaired = self.service.repair();
        // What is amiss may as well be with who asks.
        if let Some(error) = self.probe.as_ref().and_then(|probe| probe.repair().err()) {
            warn!(%error, "making the agent's own guest anew");
            self.probe = None;
            self.start_probe();
        }
        repaired.and(self.reconciler.look_after(Instant::now()))
    }
}

/// The next answer of the probe, if there is one.
pub(super) async fn next_answer(probe: &mut Option<Probe>) -> Result<(), String> {
    match probe {
        Some(probe) => probe.answer().await,
        None => std::future::pending().await,
    }
}
