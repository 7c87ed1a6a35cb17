//! Sources behind the ports, as other threads look them up, and the counters of their open connections.
#![allow(unsafe_code, reason = "the memory of a map is shared with the kernel")]
use std::{
    net::IpAddr,
    num::NonZeroUsize,
    os::fd::AsFd as _,
    path::Path,
    ptr::NonNull,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use aya::maps::{Array, Map, MapData};
use metadata_ebpf::{
    address::{MAX_PORTS, SOURCES_PER_PORT, Tag},
    map::PortSources,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{
    Error,
    tables::{failed, pinned},
};
use crate::directory::Sources;

/// The sources behind the ports, and the counters of their open connections.
pub struct SourceTable {
    sources: Array<MapData, PortSources>,
    /// Of this agent and, while one is being succeeded, of that one.
    open: OpenCounters,
    /// Of this agent alone: a quarter of a MiB.
    own: Vec<AtomicU32>,
    /// Held while both are being changed, and by who compares them.
    both: RwLock<()>,
}

impl std::fmt::Debug for SourceTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SourceTable")
    }
}

impl SourceTable {
    /// Over the maps pinned in `folder`. Connections of a former agent have ended with it, unless it `lingers`.
    pub(super) fn open(folder: &Path, lingers: bool) -> Result<Self, Error> {
        let sources = Array::try_from(Map::Array(pinned(folder, "SOURCES")?));
        let sources = sources.map_err(|error| failed("SOURCES", error))?;
        let open = OpenCounters::of(&pinned(folder, "OPEN")?)?;
        let own = (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        let table = Self { sources, open, own, both: RwLock::default() };
        if !lingers {
            table.settle();
        }
        Ok(table)
    }

    /// Forgets the connections that a former agent did not live to close. To be called when it is gone.
    pub fn settle(&self) {
        let _both = self.both.write().unwrap_or_else(PoisonError::into_inner);
        for (number, own) in self.own.iter().enumerate() {
            let own = own.load(Ordering::Relaxed);
            let shared = self.open.counter(number);
            // A page that nobody counts in is only read.
            if shared.load(Ordering::Relaxed) != own {
                shared.store(own, Ordering::Relaxed);
            }
        }
    }

    /// Changes the counters of a source, this agent's and that of all.
    fn change(&self, tag: Tag, change: fn(&AtomicU32) -> u32) {
        let _both = self.both.read().unwrap_or_else(PoisonError::into_inner);
        let number = number(tag);
        change(self.open.counter(number));
        self.own.get(number).map(change);
    }
}

impl Sources for SourceTable {
    fn source(&self, tag: Tag) -> Option<IpAddr> {
        let port = self.sources.get(&tag.index(), 0).ok()?;
        let source = port.sources.get(tag.source())?;
        (port.generation as u8 == tag.generation() && source.last_seen != 0).then(|| source.ip())
    }

    fn opened(&self, tag: Tag) {
        self.change(tag, |counter| counter.fetch_add(1, Ordering::Relaxed));
    }

    fn closed(&self, tag: Tag) {
        self.change(tag, |counter| counter.fetch_sub(1, Ordering::Relaxed));
    }
}

/// The memory of the map `OPEN`, which the programs read. It stays for as long as the agent runs.
struct OpenCounters(NonNull<AtomicU32>);

const COUNTERS: usize = MAX_PORTS as usize * SOURCES_PER_PORT;
const BYTES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(COUNTERS * size_of::<AtomicU32>() - 1);

// SAFETY: what is behind the pointer is atomic, and lasts until it is dropped.
unsafe impl Send for OpenCounters {}
// SAFETY: as above.
unsafe impl Sync for OpenCounters {}

/// The place of a source's counter.
fn number(tag: Tag) -> usize {
    (tag.index() as usize * SOURCES_PER_PORT + tag.source()) % COUNTERS
}

impl OpenCounters {
    fn of(map: &MapData) -> Result<Self, Error> {
        let fd = map.fd().as_fd();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at a place of the kernel's choice, of a map whose values have that many bytes together:
        // each has 64, which the kernel does not round up.
        let memory = unsafe { mmap(None, BYTES, protection, MapFlags::MAP_SHARED, fd, 0) };
        Ok(Self(memory.map_err(|errno| Error::Shared(errno.into()))?.cast()))
    }

    fn counter(&self, number: usize) -> &AtomicU32 {
        // SAFETY: within the mapping; the kernel's programs only read it.
        unsafe { self.0.add(number % COUNTERS).as_ref() }
    }
}

impl Drop for OpenCounters {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made; nobody has a reference into it that outlives us.
        let unmapped = unsafe { munmap(self.0.cast(), BYTES.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
