//! The guest-facing half: listening sockets in, requests to Nova out. It is a process of its own (`cli/proxy.rs`).
//!
//! It is given sockets, the directory of ports with their identities, and connections to Nova. It has no secret (signatures
//! come with the identities), touches no device, no map but the memory of `OPEN`, and no database, makes no socket, opens no
//! file, and knows nothing of the control plane.
//!
//! ```text
//! server      accepts, identifies       connection one guest's conversation
//! receive     bytes, when they come     forward    what of a request goes to Nova
//! answer      what we say ourselves     upstream   endpoints, pools, retries, TLS
//! seat        what a connection holds   shares     who gives way to whom
//! closing     until it is acknowledged  shutdown   how all of it ends
//! outcome     what became of a request  access     a line for each
//! metrics     the numbers               token      session tokens (IMDSv2)
//! errand      requests of the agent's own    watch      requests as they end
//! tick        a timer for all               pulse     workers that are stuck
//! turn        one time for all that is decided between two waits
//! ```
#![forbid(unsafe_code)]
mod access;
mod answer;
mod closing;
mod connection;
mod errand;
mod forward;
#[cfg(test)]
mod fuzz;
mod metrics;
mod outcome;
mod pulse;
mod receive;
mod seat;
mod server;
mod shares;
mod shutdown;
mod tick;
mod token;
mod turn;
mod upstream;
mod watch;

pub use metrics::Metrics;
pub use pulse::Pulses;
pub use seat::held;
pub use server::{Proxy, Workers};
pub use shutdown::Shutdown;
pub use upstream::{Dial, NovaClient, Observer};
pub use watch::Watch;
