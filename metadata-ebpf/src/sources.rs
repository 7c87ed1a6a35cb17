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

use crate::{atomic, maps};

/// Tries to get a port's lock. Its holder runs some hundred instructions and cannot be preempted, so this is ample.
const LOCK_ATTEMPTS: usize = 64;

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
    if !acquire(port) {
        return Err(Counter::SourcesContended);
    }
    // Somebody else may have learned it before we got the lock.
    let result = match find(port, seen) {
        Some(number) => Ok(number),
        None => learn(port, seen),
    };
    // SAFETY: `port` is a value of the SOURCES map.
    unsafe { atomic::compare_exchange(addr_of_mut!((*port).lock), 1, 0) };
    result
}

#[inline(always)]
fn acquire(port: *mut PortSources) -> bool {
    for _ in 0..LOCK_ATTEMPTS {
        // SAFETY: `port` is a value of the SOURCES map.
        if unsafe { atomic::compare_exchange(addr_of_mut!((*port).lock), 0, 1) } == 0 {
            return true;
        }
    }
    false
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
fn learn(port: *mut PortSources, seen: Seen) -> Result<u32, Counter> {
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
    if oldest != 0 {
        if seen.now.saturating_sub(oldest) < SOURCE_IDLE_NS {
            return Err(Counter::SourcesExhausted);
        }
        maps::count(Counter::SourceReclaimed as u32);
    }
    // SAFETY: `chosen` is within the array (the mask tells the verifier); only the lock's holder writes these words
    // of an entry that nobody can find, and the exchanges order them for readers without the lock.
    unsafe {
        let entry: *mut Source = addr_of_mut!((*port).sources[chosen & (SOURCES_PER_PORT - 1)]);
        atomic::exchange(addr_of_mut!((*entry).last_seen), 0);
        write_volatile(addr_of_mut!((*entry).address), seen.address);
        write_volatile(addr_of_mut!((*entry).mac), seen.mac);
        write_volatile(addr_of_mut!((*entry).via), seen.via);
        atomic::exchange(addr_of_mut!((*entry).last_seen), seen.now);
    }
    maps::count(Counter::SourceLearned as u32);
    Ok(chosen as u32)
}
