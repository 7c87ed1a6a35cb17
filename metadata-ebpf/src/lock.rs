//! The lock of a port's value in `SOURCES`.
use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use metadata_ebpf::map::PortSources;

/// A lock that is held. The verifier allows no helper while it is, and insists that it is released: interrupts are off,
/// so that its holder is never taken from its processor.
#[must_use]
pub(crate) struct Held(*mut aya_ebpf::bindings::bpf_spin_lock);

impl Held {
    /// Waits for the lock of `port`, a value of the SOURCES map.
    #[inline(always)]
    pub(crate) fn take(port: *mut PortSources) -> Self {
        // SAFETY: the lock is at this place of the value, which the verifier checks.
        let lock = unsafe { addr_of_mut!((*port).lock) }.cast();
        // SAFETY: as above.
        unsafe { bpf_spin_lock(lock) };
        Self(lock)
    }

    #[inline(always)]
    pub(crate) fn release(self) {
        // SAFETY: as in `take`.
        unsafe { bpf_spin_unlock(self.0) };
    }
}
