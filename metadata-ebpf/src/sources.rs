//! Learning and finding the sources behind a port.
//!
//! Finding is lock-free: it compares, and a wrong answer is impossible for a source that is not being replaced.
//! Learning holds the port's lock, so that two processors that see a new source at once give it one entry, not two.
use core::{
    arch::asm,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

use metadata_ebpf::{
    address::SOURCES_PER_PORT,
    counter::Counter,
    map::{LINK_LOCAL, LINK_LOCAL_MASK, Mac, OpenConnections, PortSources, SOURCE_IDLE_NS, Source},
    packet,
};

use crate::{lock::Held, maps, skb};

/// What is known about a source from the frame at hand.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) address: [u32; 4],
    pub(crate) mac: Mac,
    pub(crate) via: Mac,
    pub(crate) now: u64,
}

impl Seen {
    /// The source of a frame, by its address as the map holds it.
    #[inline(always)]
    pub(crate) fn of<const N: usize>(frame: &[u8; N], address: [u32; 4]) -> Self {
        let mac = Mac::new(packet::mac_source(frame));
        let via = Mac::new(packet::mac_destination(frame));
        Self { address, mac, via, now: skb::now() }
    }
}

/// The number of this source behind the port, learned if it is new. Notes the time and the way it came. `is_own` where
/// the address is one of the port itself: such a source displaces any other. One with a link-local address, behind which
/// nothing is routed, displaces those that are neither.
#[inline(always)]
pub(crate) fn find_or_learn(
    state: *mut PortSources,
    open: *const OpenConnections,
    seen: Seen,
    is_own: bool,
) -> Result<u32, Counter> {
    if let Some(number) = find(state, seen) {
        return Ok(number);
    }
    let lock = Held::take(state);
    // Somebody else may have learned it before we got the lock.
    let place = match find(state, seen) {
        Some(number) => Place { number, how: Place::KNOWN },
        None => learn(state, open, seen, is_own),
    };
    lock.release();
    // SAFETY: a value of an array map.
    let ifindex = unsafe { (*state).ifindex };
    match place.how {
        Place::KNOWN => return Ok(place.number),
        Place::NONE => return Err(Counter::SourcesExhausted),
        Place::RECLAIMED => maps::count(ifindex, Counter::SourceReclaimed as u32),
        _ => {}
    }
    maps::count(ifindex, Counter::SourceLearned as u32);
    Ok(place.number)
}

/// Where a source is, and how it got there: counted when the lock is released, since counting takes a helper.
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

/// The number of a source that is known. Notes the time and the way it came.
#[inline(always)]
pub(crate) fn find(state: *mut PortSources, seen: Seen) -> Option<u32> {
    for number in 0..SOURCES_PER_PORT {
        // SAFETY: `number` is within the array; other processors write the same words, hence the volatile accesses.
        unsafe {
            let entry = addr_of_mut!((*state).sources[number]);
            let [a, b, c, d] = seen.address;
            if read_volatile(addr_of_mut!((*entry).last_seen)) != 0
                && read_volatile(addr_of_mut!((*entry).address[3])) == d
                && read_volatile(addr_of_mut!((*entry).address[2])) == c
                && read_volatile(addr_of_mut!((*entry).address[1])) == b
                && read_volatile(addr_of_mut!((*entry).address[0])) == a
                && read_volatile(addr_of_mut!((*entry).mac)) == seen.mac
            {
                write_volatile(addr_of_mut!((*entry).via), seen.via);
                write_volatile(addr_of_mut!((*entry).last_seen), seen.now);
                return Some(number as u32);
            }
        }
    }
    None
}

/// Gives the source a free entry, else that of the least recently seen source of those that are idle, else of those that
/// it displaces. The lock is held.
///
/// The search has no branches: the verifier would follow each, and there are more of them than it has patience for.
#[inline(always)]
fn learn(state: *mut PortSources, open: *const OpenConnections, seen: Seen, is_own: bool) -> Place {
    // SAFETY: a value of an array map; the lock is held.
    let own = unsafe { (*state).own };
    let is_link_local = seen.address[0] & LINK_LOCAL_MASK == LINK_LOCAL;
    // A link-local source does not displace another one.
    let spared = u64::from(!is_own);
    let (mut idle, mut other) = (NOBODY, NOBODY);
    for number in 0..SOURCES_PER_PORT {
        // SAFETY: `number` is within both arrays; other processors and the agent write these words, hence the volatile
        // accesses.
        let (last_seen, connections, first_word) = unsafe {
            (
                read_volatile(addr_of_mut!((*state).sources[number].last_seen)),
                read_volatile(addr_of!((*open)[number])),
                read_volatile(addr_of_mut!((*state).sources[number].address[0])),
            )
        };
        // Earlier ones are smaller, and each knows its place.
        let key = (last_seen >> 10) << 4 | number as u64;
        let is_recent = is_less(seen.now, last_seen.wrapping_add(SOURCE_IDLE_NS));
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
        // SAFETY: as above.
        unsafe { (*state).exhausted += 1 };
        return Place { number: 0, how: Place::NONE };
    };
    let chosen = found as usize & (SOURCES_PER_PORT - 1);
    let is_free = found < SOURCES_PER_PORT as u64;
    let bit = 1_u32 << chosen;
    // SAFETY: `chosen` is within the array (the mask tells the verifier). Only the lock's holder writes an entry that nobody
    // can find; one who finds it half written, on a processor that reorders writes, mistakes a source for another one of
    // the same port.
    unsafe {
        (*state).own = if is_own { own | bit } else { own & !bit };
        let entry: *mut Source = addr_of_mut!((*state).sources[chosen]);
        write_volatile(addr_of_mut!((*entry).last_seen), 0);
        write_volatile(addr_of_mut!((*entry).address), seen.address);
        write_volatile(addr_of_mut!((*entry).mac), seen.mac);
        write_volatile(addr_of_mut!((*entry).via), seen.via);
        write_volatile(addr_of_mut!((*entry).last_seen), seen.now);
    }
    Place { number: chosen as u32, how: if is_free { Place::FREE } else { Place::RECLAIMED } }
}

/// Bit of a key that keeps its source from being chosen, and what is no key.
const NOBODY_BIT: u32 = 62;
const NOBODY: u64 = 1 << NOBODY_BIT;

/// 1 if `a` is less than `b`, which are both below 2^63, and 0 otherwise.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    let mut sign = a.wrapping_sub(b);
    // SAFETY: arithmetic on a register, which the compiler would make a branch of.
    unsafe { asm!("{sign} >>= 63", sign = inout(reg) sign, options(pure, nomem, nostack)) };
    sign
}

/// The lesser of two numbers below 2^63.
#[inline(always)]
fn least(a: u64, b: u64) -> u64 {
    b ^ ((a ^ b) & is_less(a, b).wrapping_neg())
}
