//! The metadata agent: serves instance metadata to the guests of a hypervisor.
//!
//! Data flows one way. Sources (`inventory`) → desired ports → `reconcile` → kernel (`datapath`) and `directory`;
//! a connection → tag → identity (`directory`) → request → Nova (`proxy`). The latter is a process of its own, which the
//! other one starts (`supervisor`), feeds (`link`) and makes connections for (`nova`).
pub mod admin;
mod boot_clock;
pub mod cli;
pub mod config;
pub mod confinement;
pub mod control;
pub mod datapath;
mod descriptors;
pub mod directory;
mod error_chain;
pub mod explain;
mod files;
mod handshakes;
pub mod health;
pub mod inventory;
#[cfg(test)]
mod layers;
pub mod link;
mod log_format;
mod log_writer;
pub mod logging;
mod meminfo;
pub mod memory;
pub mod metrics;
pub mod migration;
pub mod mounts;
mod notice;
pub mod nova;
pub mod open_sources;
pub mod packets;
mod panics;
pub mod proxy;
mod race;
pub mod reconcile;
pub mod startup;
pub mod supervisor;
pub mod takeover;
mod tls;
pub mod tokens;
pub mod version;
mod watchdog;
pub mod watchers;
