//! Common ground of the datapath programs and the agent: addresses, map layouts, counters, and the packet logic itself.
//!
//! Everything here is plain `no_std` Rust without a pointer in it, so it runs under `cargo test` on the host and under
//! the verifier in the kernel alike.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod address;
pub mod counter;
pub mod map;
pub mod packet;

#[cfg(feature = "user")]
#[allow(unsafe_code, reason = "what aya is promised of the map types")]
mod user {
    //! `aya::Pod` for the map types: each is `repr(C)`, made of integers only, and without padding, which the
    //! assertions next to their definitions check.
    use crate::map::{Control, Network, OpenSources, Port, PortCounts, PortKey, PortSources};

    // SAFETY: `repr(C)`, integers only, no padding (size asserted in `map`): any bytes are a valid value.
    unsafe impl aya::Pod for PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Port {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortSources {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OpenSources {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Network {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortCounts {}
}
