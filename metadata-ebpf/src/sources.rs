//! Learning and finding the sources behind a port.
//!
//! Finding is lock-free: it compares, and a wrong answer is impossible for a source that is not being replaced.
//! Learning holds the port's lock, so that two processors that see a new source at once give it one entry, not two.
use core::ptr::{addr_of_mut, read_volatile, write_volatile};

use metadata_ebpf::{
    address::SOURCES_PER_PORT,
    counter::Counter,
    map::{Mac, PortSources, SOURCE_IDLE_NS, Source},
};

use crate::{lock::Held, maps};

/// What is known about a source from the frame at hand.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) address: [u32; 4],
    pub(crate) mac: Mac,
    pub(crate) via: Mac,
    pub(crate) now: u64,
}

/// The number of this source behind the port, learned if it is new. Notes the time and the way it came.
#[inline(always)]
pub(crate) fn find_or_learn(port: *mut PortSources, seen: Seen) -> Result<u32, Counter> {
    if let Some(number) = find(port, seen) {
        return Ok(number);
    }
    let lock = Held::take(port);
    // Somebody else may have learned it before we got the lock.
    let place = match find(port, seen) {
        Some(number) => Place { number, how: Place::KNOWN },
        None => learn(port, seen),
    };
    lock.release();
    match place.how {
        Place::KNOWN => return Ok(place.number),
        Place::NONE => return Err(Counter::SourcesExhausted),
        Place::RECLAIMED => maps::count(Counter::SourceReclaimed as u32),
        _ => {}
    }
    maps::count(Counter::SourceLearned as u32);
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
pub(crate) fn find(port: *mut PortSources, seen: Seen) -> Option<u32> {
    for number in 0..SOURCES_PER_PORT {
        // SAFETY: `number` is within the array; other processors write the same words, hence the volatile accesses.
        unsafe {
            let entry = addr_of_mut!((*port).sources[number]);
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

/// Gives the source a free entry, else the one that has been idle the longest. The lock is held.
#[inline(always)]
fn learn(port: *mut PortSources, seen: Seen) -> Place {
    let mut oldest = u64::MAX;
    let mut chosen = 0;
    for number in 0..SOURCES_PER_PORT {
        // SAFETY: as in `find`.
        let last_seen = unsafe { read_volatile(addr_of_mut!((*port).sources[number].last_seen)) };
        if last_seen < oldest {
            oldest = last_seen;
            chosen = number;
        }
    }
    if oldest != 0 && seen.now.saturating_sub(oldest) < SOURCE_IDLE_NS {
        return Place { number: 0, how: Place::NONE };
    }
    // SAFETY: `chosen` is within the array (the mask tells the verifier). Only the lock's holder writes an entry that nobody
    // can find; one who finds it half written, on a processor that reorders writes, mistakes a source for another one of
    // the same port.
    unsafe {
        let entry: *mut Source = addr_of_mut!((*port).sources[chosen & (SOURCES_PER_PORT - 1)]);
        write_volatile(addr_of_mut!((*entry).last_seen), 0);
        write_volatile(addr_of_mut!((*entry).address), seen.address);
        write_volatile(addr_of_mut!((*entry).mac), seen.mac);
        write_volatile(addr_of_mut!((*entry).via), seen.via);
        write_volatile(addr_of_mut!((*entry).last_seen), seen.now);
    }
    Place { number: chosen as u32, how: if oldest == 0 { Place::FREE } else { Place::RECLAIMED } }
}
