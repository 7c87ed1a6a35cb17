//! Learning and finding the sources behind a port.
//!
//! Finding is lock-free: it compares, and a wrong answer is impossible for a source that is not being replaced.
//! Learning holds the port's lock, so that two processors that see a new source at once give it one entry, not two.
#![forbid(unsafe_code)]
use metadata_ebpf::{
    address::SOURCES_PER_PORT,
    counter::Counter,
    map::{LINK_LOCAL, LINK_LOCAL_MASK, Mac, SOURCE_IDLE_NS, Source},
    packet,
};

use crate::{
    branchless::{is_less, least},
    maps::{self, Locked, Open, PortState},
    skb,
};

/// The source of a frame, by its address as the map holds it.
#[inline(always)]
pub(crate) fn seen<const N: usize>(frame: &[u8; N], address: [u32; 4]) -> Source {
    let mac = Mac::new(packet::mac_source(frame));
    let via = Mac::new(packet::mac_destination(frame));
    Source { last_seen: skb::now(), address, mac, via }
}

/// The number of this source behind the port with that index and state, learned if it is new. Notes the time and the way it came. `is_own` where
/// the address is one of the port itself: such a source displaces any other. One with a link-local address, behind which
/// nothing is routed, displaces those that are neither.
#[inline(always)]
pub(crate) fn find_or_learn(
    port: u32,
    state: PortState,
    open: Open,
    seen: Source,
    is_own: bool,
) -> Result<u32, Counter> {
    if let Some(number) = state.find(seen) {
        return Ok(number);
    }
    let mut locked = state.lock();
    // Somebody else may have learned it before we got the lock.
    let place = match state.find(seen) {
        Some(number) => Place { number, how: Place::KNOWN },
        None => learn(state, &mut locked, open, seen, is_own),
    };
    locked.release();
    let ifindex = state.ifindex();
    match place.how {
        Place::KNOWN => return Ok(place.number),
        Place::NONE => return Err(Counter::SourcesExhausted),
        Place::RECLAIMED => maps::count(ifindex, port, Counter::SourceReclaimed as u32),
        _ => {}
    }
    maps::count(ifindex, port, Counter::SourceLearned as u32);
    Ok(place.number)
}

/// Place of a source, and how it got there: counted when the lock is released, since counting takes a helper.
struct Place {
    number: u32,
    how: u32,
}

impl Place {
    const KNOWN: u32 = 0;
    const FREE: u32 = 1;
    const RECLAIMED: u32 = 2;
    const NONE: u32 = 3;
}

/// Gives the source a free entry, else that of the least recently seen source of those that are idle, else of those that
/// it displaces.
///
/// The search has no branches: the verifier would follow each, and there are more of them than it has patience for.
#[inline(always)]
fn learn(state: PortState, locked: &mut Locked, open: Open, seen: Source, is_own: bool) -> Place {
    let own = locked.own();
    let is_link_local = seen.address[0] & LINK_LOCAL_MASK == LINK_LOCAL;
    // A link-local source does not displace another one.
    let spared = u64::from(!is_own);
    let (mut idle, mut other) = (NOBODY, NOBODY);
    for number in 0..SOURCES_PER_PORT {
        let last_seen = state.last_seen(number);
        let connections = open.of(number);
        let first_word = state.first_word(number);
        // Earlier ones are smaller, and each knows its place.
        let key = (last_seen >> 10) << 4 | number as u64;
        let is_recent = is_less(seen.last_seen, last_seen.wrapping_add(SOURCE_IDLE_NS));
        let is_busy = is_less(0, last_seen) & (is_less(0, connections.into()) | is_recent);
        let is_global = is_less(0, ((first_word & LINK_LOCAL_MASK) ^ LINK_LOCAL).into());
        let is_of_port = u64::from(own >> number) & 1 | (is_global ^ 1) & spared;
        idle = least(idle, key | is_busy << NOBODY_BIT);
        other = least(other, key | is_of_port << NOBODY_BIT);
    }
    let found = if idle < NOBODY {
        idle
    } else if (is_own || is_link_local) && other < NOBODY {
        other
    } else {
        locked.count_refused();
        return Place { number: 0, how: Place::NONE };
    };
    let chosen = found as usize & (SOURCES_PER_PORT - 1);
    let is_free = found < SOURCES_PER_PORT as u64;
    let bit = 1_u32 << chosen;
    locked.set_own(if is_own { own | bit } else { own & !bit });
    locked.replace(chosen, &seen);
    open.tell(chosen, &seen);
    Place { number: chosen as u32, how: if is_free { Place::FREE } else { Place::RECLAIMED } }
}

/// Bit of a key that keeps its source from being chosen, and what is no key.
const NOBODY_BIT: u32 = 62;
const NOBODY: u64 = 1 << NOBODY_BIT;
