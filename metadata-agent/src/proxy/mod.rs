//! The guest-facing half: one listening socket in, requests to Nova out.
//!
//! It is given a socket, the directory of ports with their identities, and an upstream. It has no secret (signatures come
//! with the identities), touches no device, no map but the sources', and no database, and knows nothing of the control
//! plane: the seam along which it can become a process of its own.
//!
//! ```text
//! server      accepts, identifies       connection one guest's conversation
//! receive     bytes, when they come     forward    what of a request goes to Nova
//! answer      what we say ourselves     upstream   endpoints, pools, retries, TLS
//! seat        what a connection holds   shares     who gives way to whom
//! closing     until it is acknowledged  handshake  how a listener ends
//! shutdown    how all of it ends
//! outcome     what became of a request  access     a line for each
//! metrics     the numbers               notice     warnings, one a minute
//! token       session tokens (IMDSv2)
//! ```
#![forbid(unsafe_code)]
mod access;
mod answer;
mod closing;
mod connection;
mod forward;
#[cfg(test)]
mod fuzz;
mod handshake;
mod metrics;
mod notice;
mod outcome;
mod receive;
mod seat;
mod server;
mod shares;
mod shutdown;
mod token;
mod upstream;

pub use metrics::Metrics;
pub use server::{Proxy, Workers};
pub use shutdown::Shutdown;
pub use upstream::{Nova, Observer, TlsError};
