//! One assignment of a port, and what is known of who is behind it.
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{identity::SignedIdentity, tally::Tally, tap::Tap};

/// Response to the probe.
pub const PROBE_ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

/// Identity behind a port, as far as it is known.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// Not yet; the text says what is missing.
    Pending(Arc<str>),
    /// This.
    Known(Arc<SignedIdentity>),
    /// The sources contradict each other, and choosing would hand out somebody's data.
    Conflict(Arc<str>),
}

/// One assignment of a port: as long as it lasts, a connection that came in through it stays what it is.
#[derive(Debug)]
pub struct Port {
    /// Neutron's port, for the log and for who is told why it is not served.
    pub id: String,
    /// The device, and what those behind it take of us now.
    pub tap: Arc<Tap>,
    /// Generation of the assignment.
    pub generation: u8,
    /// Identity behind the port; changes from pending to known and back, never from one instance to another.
    resolution: ArcSwap<Resolution>,
    resolved: Notify,
    /// True if nobody but the agent itself is behind it, who finds out by it whether the datapath works.
    pub is_probe: bool,
    /// Tally of its requests, in the process that has them.
    pub tally: Tally,
    /// Cancelled when the assignment ends, in the process that has its connections.
    pub gone: CancellationToken,
}

impl Port {
    /// An assignment that begins.
    pub fn new(id: String, tap: Arc<Tap>, generation: u8, resolution: Resolution) -> Self {
        Self {
            id,
            tap,
            generation,
            resolution: ArcSwap::from_pointee(resolution),
            resolved: Notify::new(),
            is_probe: false,
            tally: Tally::default(),
            gone: CancellationToken::new(),
        }
    }

    /// The port by which the agent looks after itself.
    pub fn probe(device: &str, tap: Arc<Tap>, generation: u8) -> Self {
        let nobody = Resolution::Pending("the agent itself is behind it".into());
        Self { is_probe: true, ..Self::new(device.to_owned(), tap, generation, nobody) }
    }

    /// Says who is behind it from now on. Control plane only.
    pub fn resolve(&self, resolution: Resolution) {
        self.resolution.store(Arc::new(resolution));
        self.resolved.notify_waiters();
    }

    /// Identity behind the port now. Never waits.
    pub fn resolution(&self) -> Resolution {
        Resolution::clone(&self.resolution.load())
    }

    /// The same, as one object for as long as it stays the same.
    pub(super) fn current(&self) -> Arc<Resolution> {
        self.resolution.load_full()
    }

    /// Identity behind the port, as soon as it is resolved.
    pub async fn resolved(&self) -> Resolution {
        loop {
            // It hears of what happens from here on, before it is awaited.
            let changed = self.resolved.notified();
            match self.resolution() {
                Resolution::Pending(_) => changed.await,
                resolution => return resolution,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_hears_of_the_resolution() {
        let port =
            Arc::new(Port::new("p".into(), Arc::new(Tap::new("tap0")), 3, Resolution::Pending("".into())));
        let waiting = tokio::spawn({
            let port = port.clone();
            async move { port.resolved().await }
        });
        tokio::task::yield_now().await;
        port.resolve(Resolution::Pending("still".into()));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        port.resolve(Resolution::Conflict("x".into()));
        assert!(matches!(waiting.await.unwrap(), Resolution::Conflict(_)));
        assert!(matches!(port.resolved().await, Resolution::Conflict(_)));
    }
}
