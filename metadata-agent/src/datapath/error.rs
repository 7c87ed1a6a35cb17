//! Errors of the datapath, with what each means to an operator.
use std::{io, path::PathBuf};

use aya::maps::MapError;
use metadata_ebpf::address::MAX_PORTS;

/// An operation that the kernel refused, and what that means.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The BPF file system cannot be mounted or used.
    #[error("cannot use a BPF file system at {path}: {error}", path = .path.display())]
    Bpffs {
        /// The mount point.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The programs or maps were refused.
    #[error("the kernel refused the datapath programs, which need Linux 5.10 or later: {0:#}")]
    Load(anyhow::Error),
    /// A map operation failed.
    #[error("map {map}: {error}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The error.
        error: MapError,
    },
    /// The memory that guest-facing process and programs share cannot be had.
    #[error("the map OPEN cannot be given to the guest-facing process: {0}")]
    Shared(io::Error),
    /// A program cannot be attached.
    #[error("cannot attach to {device} (ifindex {ifindex}): {reason}")]
    Attach {
        /// Name of the device.
        device: String,
        /// Its interface index.
        ifindex: u32,
        /// The reason, and what to do.
        reason: String,
        /// True if the reason may be a kernel without that kind of attachment.
        unsupported: bool,
    },
    /// The kernel has no TCX, and nothing else is allowed.
    #[error(
        "this kernel has no TCX links, which came with Linux 6.6: leave out [metadata_ebpf] attach = tcx, and filters of a \
         clsact qdisc are used"
    )]
    NoTcx,
    /// The programs of another version hold their devices by links, which come before our filters.
    #[error(
        "{path} is the link of an agent of another version, which filters of a clsact qdisc cannot succeed: start this \
         one with [metadata_ebpf] attach = tcx, or run `metadata-agent cleanup` before"
    , path = .path.display())]
    Links {
        /// The pin.
        path: PathBuf,
    },
    /// The network devices cannot be listed.
    #[error("cannot list the network devices: {0}")]
    Devices(io::Error),
    /// A network's device cannot be set up.
    #[error("cannot set up the network's device with ifindex {ifindex}: {error}")]
    Network {
        /// Its interface index.
        ifindex: u32,
        /// The error.
        error: io::Error,
    },
    /// A pin cannot be written or removed.
    #[error("pin {path}: {error}", path = .path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The service namespace or device cannot be made.
    #[error("service namespace {netns}: {what}: {error}")]
    Service {
        /// Name of the namespace.
        netns: String,
        /// The operation.
        what: &'static str,
        /// The error.
        error: io::Error,
    },
    /// The agent's own guest cannot be made.
    #[error("the probe of the datapath: {what}: {error}")]
    Probe {
        /// The operation.
        what: &'static str,
        /// The error.
        error: io::Error,
    },
    /// All indexes are in use.
    #[error("all {} ports that one host can serve are in use", MAX_PORTS - 1)]
    Full,
}
