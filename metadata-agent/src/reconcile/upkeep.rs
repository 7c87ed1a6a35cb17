//! Upkeep of what is served: programs that somebody removed, keys of tokens, and ports with too many sources.
use std::{collections::BTreeSet, time::Instant};

use tracing::{error, warn};

use super::Reconciler;
use crate::{
    boot_clock,
    datapath::{Device, Error},
};

/// Batch size of asking the kernel about taps: each is a moment in which the control plane does nothing else.
const AT_A_TIME: usize = 512;

impl Reconciler {
    /// Asks the kernel whether each tap still has the program, and notes those that have not for the next
    /// [`Self::apply`]. Also what is to be done now and then: the sign of life to the programs, pins, sources that were
    /// refused, assignments whose end is over.
    ///
    /// The programs hear that the agent lives, and indexes come back, whatever was done to pins and devices.
    pub fn look_after(&mut self, now: Instant) -> Result<(), Error> {
        let renewed = self.datapath.renew();
        self.release_ended(now);
        self.renew_token_keys();
        let programs = if self.is_disturbed { self.take_back() } else { Ok(()) }.and(self.keep_programs());
        let told = self.tell_exhausted();
        renewed.and(programs).and(told)
    }

    fn renew_token_keys(&mut self) {
        let renewed = self.issuer.tokens.as_mut().map(|tokens| tokens.renew_key(boot_clock::now()));
        match renewed {
            Some(Ok(true)) => {
                for served in self.served.values_mut() {
                    served.resolve(&self.issuer);
                }
                self.publish();
            }
            Some(Err(error)) => error!(%error, "the key for session tokens stays as it is"),
            _ => {}
        }
    }

    /// Puts this agent's program on the service device again, and tells the programs what it tells them: a successor that did not
    /// come to serve has done both. What fails is tried again with each look.
    pub fn take_back(&mut self) -> Result<(), Error> {
        self.is_disturbed = true;
        self.datapath.attach_service()?;
        self.datapath.renew()?;
        self.is_disturbed = false;
        Ok(())
    }

    fn keep_programs(&mut self) -> Result<(), Error> {
        self.datapath.keep_pinned()?;
        if self.datapath.service_lacks_program()? {
            warn!("somebody removed the program of the service device or its pin, putting it back");
            self.datapath.attach_service()?;
        }
        let attached =
            self.served.values().filter(|served| served.attached.is_ok()).map(|served| served.device());
        let probe = self.probe.iter().map(|probe| &probe.device);
        let mut taps: Vec<Device> = attached.chain(probe).cloned().collect();
        taps.dedup();
        // All others wait while some are looked at.
        let count = taps.len().max(1);
        taps.rotate_left(self.looked_at % count);
        taps.truncate(AT_A_TIME);
        self.looked_at = (self.looked_at + AT_A_TIME) % count;
        let lacking: BTreeSet<u32> = self.datapath.lacking(&taps)?.into_iter().collect();
        if let Some(first) = taps.iter().find(|tap| lacking.contains(&tap.ifindex)) {
            let taps = lacking.len();
            warn!(taps, first = first.name, "somebody removed the program or its pin, putting it back");
        }
        for served in self.served.values_mut().filter(|served| lacking.contains(&served.device().ifindex)) {
            served.attached = Err("somebody removed the program".to_owned());
        }
        match self.probe.as_ref().filter(|probe| lacking.contains(&probe.device.ifindex)) {
            Some(probe) => self.datapath.attach(&probe.device),
            None => Ok(()),
        }
    }

    /// Says once for each port that it had too many sources.
    fn tell_exhausted(&mut self) -> Result<(), Error> {
        for served in self.served.values_mut().filter(|served| !served.told_exhausted) {
            if self.datapath.exhausted(served.assignment)? > 0 {
                served.told_exhausted = true;
                warn!(
                    tap = served.device().name,
                    port = served.wanted.port,
                    "more sources at once than the port has places for: connections of some of them have to wait; its own \
                     addresses are not concerned"
                );
            }
        }
        Ok(())
    }
}
