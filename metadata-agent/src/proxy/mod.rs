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
//! gauge       how many there are        rate       how much in time
//! tap         what one tap takes        seat       what one connection holds
//! shares      who gives way to whom     closing    until an answer is acknowledged
//! access      a line for each request   metrics    the numbers
//! directory   who is behind which tag   handshake  how a listener ends
//! notice      warnings, one a minute
//! ```
mod access;
mod answer;
mod closing;
mod connection;
pub mod directory;
mod forward;
#[cfg(test)]
mod fuzz;
mod gauge;
mod handshake;
mod metrics;
mod notice;
mod rate;
mod receive;
mod seat;
mod server;
mod shares;
mod tap;
mod upstream;
mod wire;

pub use metrics::Metrics;
pub use server::{PROBE_ANSWER, Proxy, Workers};
pub use tap::Tap;
pub use upstream::{Nova, Observer, TlsError};
