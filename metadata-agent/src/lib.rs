//! The metadata agent: serves instance metadata to the guests of a hypervisor.
//!
//! Data flows one way. Sources (`inventory`) → desired ports → `reconcile` → kernel (`datapath`) and `directory`;
//! a connection → tag → identity (`directory`) → request → Nova (`proxy`).
pub mod admin;
mod boot_clock;
pub mod cli;
pub mod config;
pub mod control;
pub mod datapath;
mod descriptors;
pub mod directory;
mod error_chain;
mod files;
pub mod health;
pub mod inventory;
#[cfg(test)]
mod layers;
mod log_writer;
pub mod logging;
mod meminfo;
pub mod memory;
pub mod metrics;
pub mod proxy;
pub mod reconcile;
pub mod startup;
pub mod takeover;
pub mod tokens;
pub mod version;
