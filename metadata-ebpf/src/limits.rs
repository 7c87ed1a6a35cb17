//! Rate limits of one port: one time stamp for each kind of request, advanced under the port's lock.
#![forbid(unsafe_code)]
use metadata_ebpf::{counter::Counter, map::FrameLimit};

use crate::maps::{Meter, PortState};

/// One new connection of the port.
#[inline(always)]
pub(crate) fn connection(port: PortState, limit: FrameLimit, now: u64) -> Result<(), Counter> {
    admit(port, Meter::Connections, limit, now).ok_or(Counter::ConnectionsLimited)
}

/// One ARP, neighbour discovery or echo request of the port.
#[inline(always)]
pub(crate) fn answer(port: PortState, limit: FrameLimit, now: u64) -> Result<(), Counter> {
    admit(port, Meter::Answers, limit, now).ok_or(Counter::AnswersLimited)
}

#[inline(always)]
fn admit(port: PortState, meter: Meter, limit: FrameLimit, now: u64) -> Option<()> {
    if limit.interval == 0 {
        return Some(());
    }
    let mut port = port.lock();
    let next = limit.after(port.meter(meter), now);
    if let Some(next) = next {
        port.set_meter(meter, next);
    }
    port.release();
    next.map(drop)
}
