//! A node that changes hands: from Neutron's own metadata agent for OVN to this one, and back.
//!
//! `incumbent` finds what the other agent has on this host, `plan` decides what is to be done, which is plain data, and
//! `steps` does it, and undoes it when something fails or a signal comes (`interrupt`). `haproxy` ends one of its processes.
#![forbid(unsafe_code)]
mod haproxy;
mod incumbent;
mod interrupt;
mod plan;
mod steps;

pub use incumbent::{Found, Incumbent, Provision, find};
pub use plan::{Commands, Plan, Ports, Step, back, forward};
pub use steps::{Failure, Host, Unfinished, carry_out};
