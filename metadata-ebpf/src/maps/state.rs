//! The state of a port, which other processors and the agent use meanwhile: every access to it, and its lock.
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings,
    helpers::generated::{bpf_spin_lock, bpf_spin_unlock},
};
use metadata_ebpf::{
    address::SOURCES_PER_PORT,
    map::{Mac, OpenSources, PortKey, PortSources, Source},
};

/// Keeps a number within the arrays, as the verifier sees.
const NUMBERS: usize = SOURCES_PER_PORT - 1;

/// The state of a port: a value of `SOURCES`.
#[derive(Clone, Copy)]
pub(crate) struct PortState(*mut PortSources);

impl PortState {
    /// # Safety
    ///
    /// It is a value of the map, whose memory stays valid, whatever it holds, for as long as the program runs.
    #[inline(always)]
    pub(super) unsafe fn new(value: *mut PortSources) -> Self {
        Self(value)
    }

    /// Interface index of the tap, 0 while the index is not assigned.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: a value of the map; the agent changes this and the three below while no entry of PORTS leads here.
        unsafe { (*self.0).ifindex }
    }

    /// VLAN id of the port, 0 for untagged.
    #[inline(always)]
    pub(crate) fn vlan(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0).vlan }
    }

    /// Key of the frames that belong to the port.
    #[inline(always)]
    pub(crate) fn key(self) -> PortKey {
        // SAFETY: as in `ifindex`.
        let mac: Mac = unsafe { (*self.0).mac };
        PortKey { ifindex: self.ifindex(), vlan: self.vlan(), mac }
    }

    /// Generation of the assignment.
    #[inline(always)]
    pub(crate) fn generation(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0).generation }
    }

    /// True if the assignment has ended.
    #[inline(always)]
    pub(crate) fn has_ended(self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0).ended != 0 }
    }

    /// A copy of a source; one that is replaced meanwhile is replaced by one behind the same tap.
    #[inline(always)]
    pub(crate) fn source(self, number: usize) -> Source {
        // SAFETY: the number is within the array.
        unsafe { (*self.0).sources[number & NUMBERS] }
    }

    /// The number of a source that is known. Notes when it was seen, and the way it came.
    #[inline(always)]
    pub(crate) fn find(self, seen: Source) -> Option<u32> {
        let [a, b, c, d] = seen.address;
        for number in 0..SOURCES_PER_PORT {
            let entry = self.entry(number);
            // SAFETY: within the array; other processors write the same words, hence the volatile accesses, here and below.
            unsafe {
                if read_volatile(addr_of!((*entry).last_seen)) != 0
                    && read_volatile(addr_of!((*entry).address[3])) == d
                    && read_volatile(addr_of!((*entry).address[2])) == c
                    && read_volatile(addr_of!((*entry).address[1])) == b
                    && read_volatile(addr_of!((*entry).address[0])) == a
                    && read_volatile(addr_of!((*entry).mac)) == seen.mac
                {
                    write_volatile(addr_of_mut!((*entry).via), seen.via);
                    write_volatile(addr_of_mut!((*entry).last_seen), seen.last_seen);
                    return Some(number as u32);
                }
            }
        }
        None
    }

    /// Time at which a source was last seen, 0 if there is none.
    #[inline(always)]
    pub(crate) fn last_seen(self, number: usize) -> u64 {
        let entry = self.entry(number);
        // SAFETY: as in `find`.
        unsafe { read_volatile(addr_of!((*entry).last_seen)) }
    }

    /// The first word of a source's address.
    #[inline(always)]
    pub(crate) fn first_word(self, number: usize) -> u32 {
        let entry = self.entry(number);
        // SAFETY: as in `find`.
        unsafe { read_volatile(addr_of!((*entry).address[0])) }
    }

    #[inline(always)]
    fn entry(self, number: usize) -> *mut Source {
        // SAFETY: the number is within the array.
        unsafe { addr_of_mut!((*self.0).sources[number & NUMBERS]) }
    }

    /// Waits for the lock.
    #[inline(always)]
    pub(crate) fn lock(self) -> Locked {
        // SAFETY: the lock is at this place of the value, which the verifier checks.
        let lock = unsafe { addr_of_mut!((*self.0).lock) }.cast();
        // SAFETY: as above.
        unsafe { bpf_spin_lock(lock) };
        Locked { state: self, lock }
    }
}

/// Meters of a port: the things that have a rate.
#[derive(Clone, Copy)]
pub(crate) enum Meter {
    Connections,
    Answers,
}

/// The state of a port whose lock is held. The verifier allows no helper while it is, and insists that it is released:
/// interrupts are off, so that its holder is never taken from its processor.
#[must_use]
pub(crate) struct Locked {
    state: PortState,
    lock: *mut bindings::bpf_spin_lock,
}

impl Locked {
    #[inline(always)]
    pub(crate) fn release(self) {
        // SAFETY: as in `lock`.
        unsafe { bpf_spin_unlock(self.lock) };
    }

    /// State of a rate.
    #[inline(always)]
    pub(crate) fn meter(&self, meter: Meter) -> u64 {
        // SAFETY: a word of the port whose lock is held; so are those below.
        unsafe { *self.word(meter) }
    }

    #[inline(always)]
    pub(crate) fn set_meter(&mut self, meter: Meter, state: u64) {
        // SAFETY: as above.
        unsafe { *self.word(meter) = state };
    }

    #[inline(always)]
    fn word(&self, meter: Meter) -> *mut u64 {
        let state = self.state.0;
        // SAFETY: places in a value of the map.
        unsafe {
            match meter {
                Meter::Connections => addr_of_mut!((*state).connections),
                Meter::Answers => addr_of_mut!((*state).answers),
            }
        }
    }

    /// A bit for each source that has an address of the port's own.
    #[inline(always)]
    pub(crate) fn own(&self) -> u32 {
        // SAFETY: as in `meter`.
        unsafe { (*self.state.0).own }
    }

    #[inline(always)]
    pub(crate) fn set_own(&mut self, own: u32) {
        // SAFETY: as in `meter`.
        unsafe { (*self.state.0).own = own };
    }

    /// Counts a source that was refused.
    #[inline(always)]
    pub(crate) fn count_refused(&mut self) {
        // SAFETY: as in `meter`.
        unsafe { (*self.state.0).exhausted += 1 };
    }

    /// Puts a source in the place of another. Only the lock's holder writes an entry that nobody can find; one who finds it
    /// half written, on a processor that reorders writes, mistakes a source for another one of the same port.
    #[inline(always)]
    pub(crate) fn replace(&mut self, number: usize, source: &Source) {
        let entry = self.state.entry(number);
        // SAFETY: as in `find`.
        unsafe {
            write_volatile(addr_of_mut!((*entry).last_seen), 0);
            write_volatile(addr_of_mut!((*entry).address), source.address);
            write_volatile(addr_of_mut!((*entry).mac), source.mac);
            write_volatile(addr_of_mut!((*entry).via), source.via);
            write_volatile(addr_of_mut!((*entry).last_seen), source.last_seen);
        }
    }
}

/// Connections that each source of a port has open, and the sources' addresses: a value of `OPEN`. The agent changes the
/// former meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Open(*mut OpenSources);

impl Open {
    /// # Safety
    ///
    /// It is a value of the map.
    #[inline(always)]
    pub(super) unsafe fn new(value: *mut OpenSources) -> Self {
        Self(value)
    }

    /// Of one source.
    #[inline(always)]
    pub(crate) fn of(self, number: usize) -> u32 {
        // SAFETY: the number is within the array.
        unsafe { read_volatile(addr_of!((*self.0).connections[number & NUMBERS])) }
    }

    /// Tells the agent the address of a source.
    #[inline(always)]
    pub(crate) fn tell(self, number: usize, source: &Source) {
        // SAFETY: as above.
        unsafe { write_volatile(addr_of_mut!((*self.0).addresses[number & NUMBERS]), source.address) }
    }
}
