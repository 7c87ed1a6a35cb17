//! Signals that tell this command to end: what was begun has to be undone first.
use std::{cell::RefCell, io, time::Duration};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// Time for the runtime to look at what has come.
const LOOK: Duration = Duration::from_millis(1);

/// From its making on, the signals no longer end this process. Programs that it starts have them as ever.
pub(super) struct Interrupts<'a> {
    runtime: &'a Runtime,
    signals: RefCell<[(Signal, &'static str); 3]>,
}

impl<'a> Interrupts<'a> {
    pub(super) fn catch(runtime: &'a Runtime) -> io::Result<Self> {
        let _entered = runtime.enter();
        let signals = [
            (signal(SignalKind::interrupt())?, "SIGINT"),
            (signal(SignalKind::hangup())?, "SIGHUP"),
            (signal(SignalKind::terminate())?, "SIGTERM"),
        ];
        Ok(Self { runtime, signals: RefCell::new(signals) })
    }

    /// Fails if one has come since it was asked for last.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut signals = self.signals.borrow_mut();
        let [(interrupt, _), (hangup, _), (terminate, _)] = &mut *signals;
        let come = async {
            tokio::select! {
                _ = interrupt.recv() => 0,
                _ = hangup.recv() => 1,
                _ = terminate.recv() => 2,
            }
        };
        let come = self.runtime.block_on(async { timeout(LOOK, come).await });
        match come {
            Ok(number) => Err(format!("interrupted by {}", signals[number].1)),
            Err(_) => Ok(()),
        }
    }
}
