//! The end of the guest-facing half, in two steps: nothing new is taken, and then nobody is waited for.
#![forbid(unsafe_code)]
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;

/// Graceful shutdown of all workers.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Each answer is the last of its connection.
    pub(super) retire: CancellationToken,
    /// Connections without a request end.
    pub(super) stop: CancellationToken,
    outlived: Arc<AtomicBool>,
}

impl Shutdown {
    /// The listening sockets are somebody else's as well, who accepts from them when this process does not any more.
    pub fn outlive(&self) {
        self.outlived.store(true, Ordering::Relaxed);
    }

    /// Takes no new connection, and no request but the next one of each.
    pub fn retire(&self) {
        self.retire.cancel();
    }

    /// Ends what has no request under way as well.
    pub fn stop(&self) {
        self.retire.cancel();
        self.stop.cancel();
    }

    /// True if nothing new is taken any more.
    pub fn is_retiring(&self) -> bool {
        self.retire.is_cancelled()
    }

    /// The end of one connection, which may come before that of all.
    pub(super) fn child(&self) -> Self {
        let Self { retire, stop, outlived } = self;
        Self { retire: retire.child_token(), stop: stop.child_token(), outlived: outlived.clone() }
    }

    /// True if connections that are not accepted are somebody else's.
    pub(super) fn is_outlived(&self) -> bool {
        self.outlived.load(Ordering::Relaxed)
    }
}
