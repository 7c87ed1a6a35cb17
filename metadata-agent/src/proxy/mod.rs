//! The guest-facing half: one listening socket in, requests to Nova out.
//!
//! It is given a socket, a way to look up a source, the directory of ports with their identities, and an upstream. It
//! has no secret (signatures come with the identities), touches no device, no map but the sources', and no database:
//! the seam along which it can become a process of its own.
//!
//! ```text
//! server      accepts, identifies, limits          connection   one guest's conversation
//! wire        HTTP/1.1 as bytes, strictly          forward      what of a request goes to Nova
//! answer      what we say ourselves                upstream     endpoints, pools, retries, TLS
//! limits      what a port may take      rate       how that is counted
//! access      a line for each request   metrics    the numbers
//! directory   who is behind which tag   handshake  how a listener ends
//! ```
mod access;
mod answer;
mod connection;
pub mod directory;
mod forward;
#[cfg(test)]
mod fuzz;
mod handshake;
mod limits;
mod metrics;
mod rate;
mod receive;
mod server;
mod upstream;
mod wire;

pub use limits::{Limits, RequestLimits, Usage};
pub use metrics::Metrics;
pub use rate::WindowLimit;
pub use server::{PROBE_ANSWER, Proxy, Workers};
pub use upstream::{Nova, Observer, TlsError};
