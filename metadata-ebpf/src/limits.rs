//! What one port may ask for: one time stamp for each kind of request, advanced by compare-and-swap.
use core::ptr::{addr_of_mut, read_volatile};

use metadata_ebpf::{
    counter::Counter,
    map::{Limit, PortSources},
};

use crate::atomic;

/// Tries to advance a time stamp that other processors advance too. Losing that often means that the port is being
/// flooded from several processors, and then one frame less is right.
const ATTEMPTS: usize = 8;

/// One new connection of the port.
#[inline(always)]
pub(crate) fn connection(port: *mut PortSources, limit: Limit, now: u64) -> Result<(), Counter> {
    // SAFETY: `port` is a value of the SOURCES map.
    admit(unsafe { addr_of_mut!((*port).connections) }, limit, now).ok_or(Counter::ConnectionsLimited)
}

/// One ARP, neighbour discovery or echo request of the port.
#[inline(always)]
pub(crate) fn answer(port: *mut PortSources, limit: Limit, now: u64) -> Result<(), Counter> {
    // SAFETY: `port` is a value of the SOURCES map.
    admit(unsafe { addr_of_mut!((*port).answers) }, limit, now).ok_or(Counter::AnswersLimited)
}

#[inline(always)]
fn admit(state: *mut u64, limit: Limit, now: u64) -> Option<()> {
    if limit.interval == 0 {
        return Some(());
    }
    for _ in 0..ATTEMPTS {
        // SAFETY: a word of a map value; other processors change it, hence volatile and the exchange.
        let (held, swapped) = unsafe {
            let held = read_volatile(state);
            (held, atomic::compare_exchange(state, held, limit.after(held, now)?))
        };
        if swapped == held {
            return Some(());
        }
    }
    None
}
