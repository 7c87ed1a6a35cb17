//! Common parts of the tests: real servers, certificates, a database, and a client's events.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is what they are for"
)]
mod cluster;
mod events;
mod failures;
mod items;
mod pki;
mod relay;
mod server;
mod tools;

use std::time::Duration;

pub use cluster::Cluster;
pub use events::*;
pub use failures::Failures;
pub use items::*;
pub use pki::Pki;
pub use relay::Relay;
pub use server::Server;
pub use tools::{TempDir, free_port, run};

/// For whatever a test waits for; the machine may be busy.
pub const WAIT: Duration = Duration::from_secs(60);
