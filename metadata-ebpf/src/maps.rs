//! The maps and load-time constants of the programs, behind the functions that use them.
#![allow(unsafe_code, reason = "maps are memory that the kernel shares")]
mod state;

use core::{
    arch::asm,
    ptr::{addr_of_mut, write_volatile},
};

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use metadata_ebpf::{
    address::MAX_PORTS,
    counter,
    map::{
        self, Control, FrameRecord, Network, OpenSources, Port, PortCounts, PortKey, PortSources,
        RECORD_LIMIT, Recorded,
    },
};

pub(crate) use self::state::{Locked, Meter, Open, PortState};

#[map]
static PORTS: HashMap<PortKey, Port> = HashMap::with_max_entries(MAX_PORTS, 0);

/// With a description of its values, by which the kernel finds the lock in them.
#[btf_map]
static SOURCES: btf_maps::Array<PortSources, { MAX_PORTS as usize }> = btf_maps::Array::new();

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::CAPACITY, 0);

#[map]
static PORT_COUNTERS: Array<PortCounts> = Array::with_max_entries(MAX_PORTS, 0);

/// Records of frames, while an operator wants them. They are for the agent that has loaded the programs: its own, and not
/// pinned.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(64 << 10, 0);

#[map]
static RECORDED: PerCpuArray<Recorded> = PerCpuArray::with_max_entries(1, 0);

#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// In the memory of the process that guests talk to as well (BPF_F_MMAPABLE, Linux 5.5, commit fc9702273e2e): counting a
/// connection, and telling whose it is, costs that process no system call, and it may make none of `bpf`.
#[map]
static OPEN: Array<OpenSources> = Array::with_max_entries(MAX_PORTS, BPF_F_MMAPABLE);

/// Memory for the networks that there are: most hosts have none.
#[map]
static NETWORKS: HashMap<u32, Network> = HashMap::with_max_entries(MAX_PORTS, BPF_F_NO_PREALLOC);

/// Interface index of the host end of the service device.
#[unsafe(no_mangle)]
static SERVICE_IFINDEX: Global<u32> = Global::new(0);

/// Number of the service namespace in that of the taps; -1 where it has none.
#[unsafe(no_mangle)]
static SERVICE_NAMESPACE: Global<i32> = Global::new(-1);

/// The port that frames of this device and VLAN belong to.
///
/// The entry may be deleted, and reused for another key, while it is looked at: what it leads to has to be compared with
/// the key.
#[inline(always)]
pub(crate) fn port(key: PortKey) -> Option<&'static Port> {
    // SAFETY: the memory of a map value stays valid, whatever it holds, for as long as the program runs.
    unsafe { PORTS.get(key) }
}

/// The metadata port that a network's device is bound to.
#[inline(always)]
pub(crate) fn network(ifindex: u32) -> Option<&'static Network> {
    // SAFETY: as in `port`; an entry that is deleted meanwhile may become that of another network, whose ports are not
    // found behind this device.
    unsafe { NETWORKS.get(ifindex) }
}

/// The state of a port.
#[inline(always)]
pub(crate) fn state(index: u32) -> Option<PortState> {
    // SAFETY: a value of the map.
    Some(unsafe { PortState::new(SOURCES.get_ptr_mut(index)?) })
}

/// Stands for no port where a port's index would.
pub(crate) const NOBODY: u32 = u32::MAX;

/// Counts an outcome, given by a counter's number, of a frame from or to the guest of that device, and of the port with that
/// index if it is somebody's. The agent's own guest asks all day, which would be all that a quiet node counts.
#[inline(always)]
pub(crate) fn count(ifindex: u32, port: u32, counter: u32) {
    if control().is_some_and(|control| control.probe == ifindex) {
        return;
    }
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this processor's own copy; a program is not preempted by another one of the same processor.
        unsafe { *value += 1 };
    }
    if let Some(counts) = PORT_COUNTERS.get_ptr_mut(port) {
        let place = counter as usize & (counter::CAPACITY as usize - 1);
        // SAFETY: a value of the map, within its array; other processors and the agent use it by whole words only. Core has
        // no atomic addition for this target, since not all of them came with the first kernels; this one, BPF_XADD, did.
        unsafe {
            let frames = addr_of_mut!((*counts).frames[place]);
            asm!("lock *(u64 *)({frames} + 0) += {one}", frames = in(reg) frames, one = in(reg) 1_u64, options(nostack));
        }
    }
}

/// Notes when a frame of a port was dropped last, and with which outcome.
#[inline(always)]
pub(crate) fn note_dropped(port: u32, counter: u32, now: u64) {
    if let Some(counts) = PORT_COUNTERS.get_ptr_mut(port) {
        // SAFETY: as in `count`; of two frames that are dropped at once either is the last.
        unsafe {
            write_volatile(addr_of_mut!((*counts).dropped_as), counter.into());
            write_volatile(addr_of_mut!((*counts).dropped_at), now);
        }
    }
}

/// True if frames of that port and fate are to be recorded.
#[inline(always)]
pub(crate) fn is_recorded(ifindex: u32, port: u32, is_dropped: bool) -> bool {
    control().is_some_and(|control| {
        map::is_recorded(control.logging, port, is_dropped) && control.probe != ifindex
    })
}

/// Count of the frames that were left out before one more record, if that fits into what a processor may make of them.
#[inline(always)]
pub(crate) fn may_record(now: u64) -> Option<&'static mut u64> {
    let recorded = RECORDED.get_ptr_mut(0)?;
    // SAFETY: this processor's own copy, which this program alone has until it ends.
    let recorded = unsafe { &mut *recorded };
    match RECORD_LIMIT.after(recorded.state, now) {
        Some(next) => {
            recorded.state = next;
            Some(&mut recorded.left_out)
        }
        None => {
            recorded.left_out += 1;
            None
        }
    }
}

/// Room for a record, which has to be submitted.
#[inline(always)]
pub(crate) fn new_record() -> Option<RingBufEntry<FrameRecord>> {
    RECORDS.reserve::<FrameRecord>(0)
}

/// Control: the agent's word about itself.
#[inline(always)]
pub(crate) fn control() -> Option<&'static Control> {
    CONTROL.get(0)
}

/// True if the agent leaves for good.
#[inline(always)]
pub(crate) fn is_leaving() -> bool {
    control().is_some_and(|control| control.leaving != 0)
}

/// Connections that each source of a port has open.
#[inline(always)]
pub(crate) fn open(index: u32) -> Option<Open> {
    // SAFETY: a value of the map.
    Some(unsafe { Open::new(OPEN.get_ptr_mut(index)?) })
}

/// Interface index of the host end of the service device.
#[inline(always)]
pub(crate) fn service_ifindex() -> u32 {
    SERVICE_IFINDEX.load()
}

/// Number of the service namespace in that of the taps; negative where it has none.
#[inline(always)]
pub(crate) fn service_namespace() -> i32 {
    SERVICE_NAMESPACE.load()
}
