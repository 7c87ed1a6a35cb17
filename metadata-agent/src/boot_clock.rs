//! The time since the host was booted, suspensions included (CLOCK_BOOTTIME): one clock for all processes of a boot, which
//! goes on over restarts of the agent, and which nobody steps.
#![forbid(unsafe_code)]
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Now. A clock that cannot be read is at its end: what has a time is over then.
pub(crate) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}
