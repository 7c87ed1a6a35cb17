//! The maps and load-time constants of the programs, behind the functions that use them.
use aya_ebpf::{
    Global, btf_maps,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray},
};
use metadata_ebpf::{
    address::MAX_PORTS,
    counter,
    map::{Port, PortKey, PortSources},
};

#[map]
static PORTS: HashMap<PortKey, Port> = HashMap::with_max_entries(MAX_PORTS, 0);

/// With a description of its values, by which the kernel finds the lock in them.
#[btf_map]
static SOURCES: btf_maps::Array<PortSources, { MAX_PORTS as usize }> = btf_maps::Array::new();

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::CAPACITY, 0);

/// One word: not zero while the agent wants log records of the frames that are ours.
#[map]
static LOGGING: Array<u32> = Array::with_max_entries(1, 0);

/// Interface index of the host end of the service device.
#[unsafe(no_mangle)]
static SERVICE_IFINDEX: Global<u32> = Global::new(0);

/// The port that frames of this device and VLAN belong to.
///
/// The entry may be deleted, and reused for another key, while it is looked at: what it leads to has to be compared with
/// the key.
#[inline(always)]
pub(crate) fn port(key: PortKey) -> Option<&'static Port> {
    // SAFETY: the memory of a map value stays valid, whatever it holds, for as long as the program runs.
    unsafe { PORTS.get(key) }
}

/// The sources of a port; shared with other processors.
#[inline(always)]
pub(crate) fn sources(index: u32) -> Option<*mut PortSources> {
    SOURCES.get_ptr_mut(index)
}

/// Counts an outcome, given by a counter's number.
#[inline(always)]
pub(crate) fn count(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this processor's own copy; a program is not preempted by another one of the same processor.
        unsafe { *value += 1 };
    }
}

/// Whether log records are wanted.
#[inline(always)]
pub(crate) fn logging() -> bool {
    LOGGING.get(0).is_some_and(|on| *on != 0)
}

/// Interface index of the host end of the service device.
#[inline(always)]
pub(crate) fn service_ifindex() -> u32 {
    SERVICE_IFINDEX.load()
}
