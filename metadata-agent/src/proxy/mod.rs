//! The guest-facing half: one listening socket in, requests to Nova out.
//!
//! It is given a socket, a way to look up a source, the directory of ports with their identities, and an upstream. It
//! has no secret (signatures come with the identities), touches no device, no map but the sources', and no database:
//! the seam along which it can become a process of its own.
mod answer;
pub mod directory;
mod forward;
mod server;
mod upstream;

pub use server::{Limits, Proxy};
pub use upstream::Upstream;
