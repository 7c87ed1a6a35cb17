//! Memory of the map `OPEN`, which the programs and the guest-facing process have in common: the sources' addresses, and the
//! counters of their open connections.
#![allow(unsafe_code, reason = "the memory of a map is shared with the kernel")]
use std::{
    io,
    net::IpAddr,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use metadata_ebpf::{
    address::{MAX_PORTS, SOURCES_PER_PORT, Tag},
    map::{OpenSources, Source},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::directory::Sources;

/// The sources behind the ports, and the counters of their open connections.
#[derive(Debug)]
pub struct SourceTable {
    /// Of this process and, while another one's connections end, of that one.
    shared: Shared,
    /// Of this process alone: a quarter of a MiB.
    own: Vec<AtomicU32>,
    /// Held while both are being changed, and by who compares them.
    both: RwLock<()>,
}

impl SourceTable {
    /// Over the map `OPEN`. Connections of a former process have ended with it, unless it `lingers`.
    pub fn open(map: &impl AsFd, lingers: bool) -> io::Result<Self> {
        let own = (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        let table = Self { shared: Shared::of(map)?, own, both: RwLock::default() };
        if !lingers {
            table.settle();
        }
        Ok(table)
    }

    /// Forgets the connections that a former process did not live to close. To be called when it is gone.
    pub fn settle(&self) {
        let _both = self.both.write().unwrap_or_else(PoisonError::into_inner);
        for (number, own) in self.own.iter().enumerate() {
            let own = own.load(Ordering::Relaxed);
            let shared = self.shared.counter(number);
            // A page that nobody counts in is only read.
            if shared.load(Ordering::Relaxed) != own {
                shared.store(own, Ordering::Relaxed);
            }
        }
    }

    /// Changes the counters of a source, this process' and that of all.
    fn change(&self, tag: Tag, change: fn(u32) -> u32) {
        let _both = self.both.read().unwrap_or_else(PoisonError::into_inner);
        let number = number(tag);
        let both = [Some(self.shared.counter(number)), self.own.get(number)];
        for counter in both.into_iter().flatten() {
            counter.update(Ordering::Relaxed, Ordering::Relaxed, change);
        }
    }
}

impl Sources for SourceTable {
    fn source(&self, tag: Tag) -> Option<IpAddr> {
        let address = self.shared.address(number(tag));
        (address != [0; 4]).then(|| Source { address, ..Source::FREE }.ip())
    }

    fn opened(&self, tag: Tag) {
        self.change(tag, |count| count.wrapping_add(1));
    }

    /// Not below nothing: who comes after a process that lingers may have settled what that one closes.
    fn closed(&self, tag: Tag) {
        self.change(tag, |count| count.saturating_sub(1));
    }
}

/// The mapping. It stays for as long as the process runs.
#[derive(Debug)]
struct Shared(NonNull<AtomicU32>);

const COUNTERS: usize = MAX_PORTS as usize * SOURCES_PER_PORT;
const BYTES: NonZeroUsize =
    NonZeroUsize::MIN.saturating_add(MAX_PORTS as usize * size_of::<OpenSources>() - 1);

/// Words of a port's value, and of its counters, which come first.
const WORDS: usize = size_of::<OpenSources>() / size_of::<AtomicU32>();
const ADDRESSES: usize = std::mem::offset_of!(OpenSources, addresses) / size_of::<AtomicU32>();

// SAFETY: what is behind the pointer is atomic, and lasts until it is dropped.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// The place of a source among all.
fn number(tag: Tag) -> usize {
    (tag.index() as usize * SOURCES_PER_PORT + tag.source()) % COUNTERS
}

impl Shared {
    fn of(map: &impl AsFd) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at a place of the kernel's choice, of a map whose values have that many bytes together,
        // which the kernel does not round up. A smaller one is refused (`array_map_mmap` in kernel/bpf/arraymap.c).
        let memory = unsafe { mmap(None, BYTES, protection, MapFlags::MAP_SHARED, map.as_fd(), 0) };
        Ok(Self(memory?.cast()))
    }

    fn counter(&self, number: usize) -> &AtomicU32 {
        self.word(number / SOURCES_PER_PORT, number % SOURCES_PER_PORT)
    }

    fn address(&self, number: usize) -> [u32; 4] {
        let (port, source) = (number / SOURCES_PER_PORT, number % SOURCES_PER_PORT);
        std::array::from_fn(|word| self.word(port, ADDRESSES + 4 * source + word).load(Ordering::Relaxed))
    }

    fn word(&self, port: usize, word: usize) -> &AtomicU32 {
        let at = port % MAX_PORTS as usize * WORDS + word % WORDS;
        // SAFETY: within the mapping, which others change as a whole word only.
        unsafe { self.0.add(at).as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made; nobody has a reference into it that outlives us.
        let unmapped = unsafe { munmap(self.0.cast(), BYTES.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
