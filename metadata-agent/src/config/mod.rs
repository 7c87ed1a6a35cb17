//! The agent's settings: Neutron's options under their own names, ours in `[metadata_ebpf]`.
#![forbid(unsafe_code)]
mod defaults;
mod endpoints;
mod ini;
mod limits;
mod nova;
mod options;
#[cfg(test)]
mod oslo;
mod ovn;
mod printed;
mod references;
mod rules;
mod setting;
mod table;
#[cfg(test)]
mod tests;
mod tokens;
mod words;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use endpoints::Endpoint;
use ini::{Ini, Origin, Value};
pub use limits::{Limits, RequestLimits, WindowLimit};
pub use nova::{ClientCertificate, NovaOptions, NovaTls};
use options::Options;
pub use printed::{effective, options_table, sample};
pub use rules::{EVERY_PATH, TokenMode};
use serde::{Deserialize, Serialize};
pub use setting::Secret;
pub use table::GUEST_USER;
use table::OWN;
pub use tokens::Tokens;

/// Everything an operator can set.
#[derive(Debug, Clone)]
pub struct Config {
    /// The files that were read, those of folders included, in their order.
    pub files: Vec<PathBuf>,
    /// Digest of their names and contents, by which one reading is told from another.
    pub digest: Vec<u8>,
    /// Options that are set to something else than their default, each as the file has it; no secret is in them.
    pub differing: Vec<String>,
    /// `[DEFAULT] debug`: log more.
    pub debug: bool,
    /// `[metadata_ebpf] log_format`: form of a line of the log.
    pub log_format: LogFormat,
    /// Nova, to which requests go.
    pub nova: NovaOptions,
    /// Source of ports and identities.
    pub source: SourceOptions,
    /// `[metadata_ebpf] netns`: name of the service namespace, under /run/netns.
    pub netns: String,
    /// `[metadata_ebpf] run_dir`: pins, admin socket, lock.
    pub run_dir: PathBuf,
    /// `metadata-agent` below `[DEFAULT] state_path`: what outlives a restart of the host.
    pub state_dir: PathBuf,
    /// `[metadata_ebpf] attach`.
    pub attach: AttachMode,
    /// `[metadata_ebpf] lease`: how long after the agent's last sign of life the programs let frames pass.
    pub lease: Duration,
    /// `[metadata_ebpf] connection_rate` and `connection_burst`: new connections of a port.
    pub connections: Rate,
    /// `[metadata_ebpf] answer_rate` and `answer_burst`: ARP, neighbour discovery and echo requests of a port.
    pub answers: Rate,
    /// `[metadata_ebpf] workers`: threads that serve guests.
    pub workers: usize,
    /// `[metadata_ebpf] guest_user`: user of the process that guests talk to.
    pub guest_user: String,
    /// `[metadata_ebpf] confinement_required`: whether not to serve at all with a process that is not wholly confined.
    pub confinement_required: bool,
    /// Limits on guests.
    pub limits: Limits,
    /// `[metadata_ebpf] admin_listen`: where else than on its socket the admin interface may be read.
    pub admin_listen: Option<SocketAddr>,
    /// Session tokens, and what else a guest's request has to be like.
    pub tokens: Tokens,
}

/// A configuration file or folder that the command line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `--config-file`.
    File(PathBuf),
    /// `--config-dir`.
    Folder(PathBuf),
}

/// Form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// Words, and fields by their names.
    Text,
    /// An object of JSON, with the fields beside `timestamp`, `level`, `target` and `message`.
    Json,
}

/// Kind of attachment of the eBPF programs to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links, Linux 6.6 and later.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// A rate with a burst, per port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Events a second; 0 for no limit.
    pub rate: u32,
    /// Events at once.
    pub burst: u32,
}

/// The control plane.
#[derive(Debug, Clone)]
pub enum SourceOptions {
    /// The local Open vSwitch and OVN's Southbound.
    Ovn {
        /// `[ovs] ovsdb_connection`.
        ovs: Box<ovsdb_client::Config>,
        /// `[ovn] ovn_sb_connection` and the options that go with it.
        southbound: Box<ovsdb_client::Config>,
        /// `[DEFAULT] agent_down_time`: how long neutron-server waits for a sign of life.
        down_time: Duration,
        /// `[metadata_ebpf] southbound_monitor_all`: follow all rows of ports, and not those of this chassis.
        monitor_all: bool,
        /// `[metadata_ebpf] network_devices`: serve ports without a tap, by a device for each network that has any.
        network_devices: bool,
    },
    /// `[metadata_ebpf] inventory`: a file that names taps and their identities.
    Static(PathBuf),
}

/// An error in the settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or parsed.
    #[error(transparent)]
    File(#[from] ini::Error),
    /// The folder of `--config-dir` cannot be listed.
    #[error("cannot list the configuration folder {path}: {error}", path = .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error.
        error: std::io::Error,
    },
    /// An option's value is not usable.
    #[error("{origin}: [{section}] {option} = {value:?}: {problem}")]
    Value {
        /// Its origin.
        origin: Origin,
        /// Its section.
        section: &'static str,
        /// Its name.
        option: &'static str,
        /// Its text; empty for secrets.
        value: String,
        /// Explanation: what is wrong, and what would be right.
        problem: String,
    },
    /// A reference in an option's value leads nowhere. The value is not shown: it may be the secret.
    #[error(
        "{origin}: [{section}] {option} has a reference to an option that is not set, or to itself; a dollar sign is \
         written $$, and a reference with letters or a dot behind it ${{name}}"
    )]
    Reference {
        /// Its origin.
        origin: Origin,
        /// Its section.
        section: &'static str,
        /// Its name.
        option: &'static str,
    },
    /// An option in our own section that does not exist.
    #[error("{origin}: [{OWN}] has no option {option:?}; it has: {known}")]
    Unknown {
        /// Its origin.
        origin: Origin,
        /// Its name.
        option: String,
        /// The names there are.
        known: String,
    },
    /// An option that must be set is not.
    #[error("[{section}] {option} is not set in any configuration file: {remedy}")]
    Missing {
        /// Its section.
        section: &'static str,
        /// Its name.
        option: &'static str,
        /// Remedy.
        remedy: &'static str,
    },
}

impl Error {
    /// True if the same would be found again: files may be about to be written, what they say is meant.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::File(ini::Error::Read { .. }) | Self::Folder { .. })
    }

    fn missing<K>(setting: &setting::Setting<K>, remedy: &'static str) -> Self {
        Self::Missing { section: setting.section, option: setting.name, remedy }
    }

    fn new(section: &'static str, option: &'static str, value: Value, problem: String) -> Self {
        Self::Value { origin: value.origin, section, option, value: value.text, problem }
    }
}

impl Config {
    /// Reads files and folders in their order, as oslo.config does.
    pub fn read(places: &[Place]) -> Result<Self, Error> {
        Self::from_ini(&Options::new(&read(places)?))
    }

    /// Warnings: settings that are no error and yet hardly meant.
    pub fn warnings(&self) -> Vec<&'static str> {
        let empty = self.nova.secret.is_empty().then_some(
            "[DEFAULT] metadata_proxy_shared_secret is empty: whoever reaches Nova's metadata port can ask for any \
             instance's; set it to the same secret here and in nova's [neutron]",
        );
        let at_once = self.tokens.are_required_at_once().then_some(
            "[metadata_ebpf] session tokens are required and token_required_after is 0: boot clients that know no tokens, as \
             cloud-init on OpenStack, go on without user data; set it to longer than a boot takes",
        );
        empty.into_iter().chain(at_once).collect()
    }

    fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        options.check_own()?;
        let source = match options.get(&table::INVENTORY)? {
            Some(path) => SourceOptions::Static(path),
            None => ovn::source(options)?,
        };
        let config = Self {
            files: options.files(),
            digest: options.digest(),
            differing: Vec::new(),
            state_dir: options.get(&table::STATE_PATH)?.join("metadata-agent"),
            debug: options.get(&table::DEBUG)?,
            nova: NovaOptions::from_ini(options)?,
            source,
            netns: options.get(&table::NETNS)?,
            run_dir: options.get(&table::RUN_DIR)?,
            attach: options.get(&table::ATTACH)?,
            log_format: options.get(&table::LOG_FORMAT)?,
            lease: options.get(&table::LEASE)?,
            connections: options.rate(&table::CONNECTION_RATE, &table::CONNECTION_BURST)?,
            answers: options.rate(&table::ANSWER_RATE, &table::ANSWER_BURST)?,
            workers: options.get(&table::WORKERS)?,
            guest_user: options.get(&table::USER)?,
            confinement_required: options.get(&table::CONFINEMENT_REQUIRED)?,
            limits: limits::limits(options)?,
            admin_listen: options.get(&table::ADMIN_LISTEN)?,
            tokens: Tokens::from_ini(options)?,
        };
        // When all options were read.
        Ok(Self { differing: options.differing(), ..config })
    }
}

fn read(places: &[Place]) -> Result<Ini, Error> {
    let mut ini = Ini::default();
    for place in places {
        match place {
            Place::File(file) => ini.read(file)?,
            Place::Folder(folder) => {
                for file in &files(folder)? {
                    ini.read(file)?;
                }
            }
        }
    }
    Ok(ini)
}

/// `*.conf`, sorted, without those whose name begins with a dot.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut files = list().map_err(|error| Error::Folder { path: folder.into(), error })?;
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        name.ends_with(b".conf") && !name.starts_with(b".")
    });
    files.sort();
    Ok(files)
}
