//! What one port may ask for: one time stamp for each kind of request, advanced under the port's lock.
use core::ptr::addr_of_mut;

use metadata_ebpf::{
    counter::Counter,
    map::{Limit, PortSources},
};

use crate::lock::Held;

/// One new connection of the port.
#[inline(always)]
pub(crate) fn connection(port: *mut PortSources, limit: Limit, now: u64) -> Result<(), Counter> {
    // SAFETY: `port` is a value of the SOURCES map.
    admit(port, unsafe { addr_of_mut!((*port).connections) }, limit, now).ok_or(Counter::ConnectionsLimited)
}

/// One ARP, neighbour discovery or echo request of the port.
#[inline(always)]
pub(crate) fn answer(port: *mut PortSources, limit: Limit, now: u64) -> Result<(), Counter> {
    // SAFETY: `port` is a value of the SOURCES map.
    admit(port, unsafe { addr_of_mut!((*port).answers) }, limit, now).ok_or(Counter::AnswersLimited)
}

#[inline(always)]
fn admit(port: *mut PortSources, state: *mut u64, limit: Limit, now: u64) -> Option<()> {
    if limit.interval == 0 {
        return Some(());
    }
    let lock = Held::take(port);
    // SAFETY: a word of the port whose lock is held.
    let next = unsafe { limit.after(*state, now) };
    if let Some(next) = next {
        // SAFETY: as above.
        unsafe { *state = next };
    }
    lock.release();
    next.map(drop)
}
