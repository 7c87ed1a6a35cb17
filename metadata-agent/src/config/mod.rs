//! The agent's settings: Neutron's options under their own names, ours in `[metadata_ebpf]`.
mod ini;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use ini::{DEFAULT, Ini, Origin, Value};

/// Our section.
const SECTION: &str = "metadata_ebpf";

/// Everything an operator can set.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[DEFAULT] debug`: log more.
    pub debug: bool,
    /// Where requests go.
    pub nova: Nova,
    /// Where ports and identities come from.
    pub source: Source,
    /// `[metadata_ebpf] netns`: name of the service namespace, under /run/netns.
    pub netns: String,
    /// `[metadata_ebpf] run_dir`: pins, admin socket, lock.
    pub run_dir: PathBuf,
    /// `metadata-agent` below `[DEFAULT] state_path`: what outlives a restart of the host.
    pub state_dir: PathBuf,
    /// `[metadata_ebpf] attach`.
    pub attach: AttachMode,
    /// `[metadata_ebpf] connection_rate` and `connection_burst`: new connections of a port.
    pub connections: Rate,
    /// `[metadata_ebpf] answer_rate` and `answer_burst`: ARP, neighbour discovery and echo requests of a port.
    pub answers: Rate,
    /// `[metadata_ebpf] workers`: threads that serve guests.
    pub workers: usize,
    /// `[metadata_ebpf] unknown_identity_hold`: how long a request of an unknown guest waits for its identity.
    pub hold: Duration,
}

/// How the eBPF programs are put on devices.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Events a second; 0 for no limit.
    pub rate: u32,
    /// Events at once.
    pub burst: u32,
}

/// How to reach nova-metadata.
#[derive(Debug, Clone)]
pub struct Nova {
    /// `nova_metadata_host`.
    pub host: String,
    /// `nova_metadata_port`.
    pub port: u16,
    /// `metadata_proxy_shared_secret`.
    pub secret: Secret,
    /// `[metadata_ebpf] nova_connect_timeout`.
    pub connect_timeout: Duration,
    /// `[metadata_ebpf] nova_response_timeout`: until the head of the answer is there.
    pub response_timeout: Duration,
}

/// The control plane.
#[derive(Debug, Clone)]
pub enum Source {
    /// The local Open vSwitch and OVN's Southbound.
    Ovn {
        /// `[ovs] ovsdb_connection`.
        ovs: Box<ovsdb_client::Config>,
        /// `[ovn] ovn_sb_connection` and the options that go with it.
        southbound: Box<ovsdb_client::Config>,
    },
    /// `[metadata_ebpf] inventory`: a file that names taps and their identities.
    Static(PathBuf),
}

/// A text that never appears in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(empty)" } else { "(set)" })
    }
}

/// What is wrong with the settings.
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
        /// Why.
        error: std::io::Error,
    },
    /// An option's value is not usable.
    #[error("{origin}: [{section}] {option} = {value:?}: {problem}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// Its section.
        section: &'static str,
        /// Its name.
        option: &'static str,
        /// What it says; empty for secrets.
        value: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// An option in our own section that does not exist.
    #[error("{origin}: [{SECTION}] has no option {option:?}; it has: {known}")]
    Unknown {
        /// Where it stands.
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
        /// What to do.
        remedy: &'static str,
    },
}

impl Error {
    fn new(section: &'static str, option: &'static str, value: Value, problem: String) -> Self {
        Self::Value { origin: value.origin, section, option, value: value.text, problem }
    }
}

/// Options of `[metadata_ebpf]`.
const OWN: &[&str] = &[
    "netns",
    "run_dir",
    "inventory",
    "workers",
    "attach",
    "connection_rate",
    "connection_burst",
    "answer_rate",
    "answer_burst",
    "unknown_identity_hold",
    "nova_connect_timeout",
    "nova_response_timeout",
];

impl Config {
    /// Reads the files in their order, then those of the folders (`*.conf`, sorted), as oslo.config does.
    pub fn read(files: &[PathBuf], folders: &[PathBuf]) -> Result<Self, Error> {
        let mut ini = Ini::default();
        for file in files {
            ini.read(file)?;
        }
        for folder in folders {
            let list = || -> std::io::Result<Vec<PathBuf>> {
                std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
            };
            let mut entries = list().map_err(|error| Error::Folder { path: folder.clone(), error })?;
            entries.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
            entries.sort();
            for file in &entries {
                ini.read(file)?;
            }
        }
        Self::from_ini(&Options(&ini))
    }

    fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        options.check_own()?;
        let source = match options.text(SECTION, "inventory") {
            Some(value) => Source::Static(absolute(SECTION, "inventory", &value)?),
            None => ovn(options)?,
        };
        let run_dir = match options.text(SECTION, "run_dir") {
            Some(value) => absolute(SECTION, "run_dir", &value)?,
            None => "/run/metadata-agent".into(),
        };
        let state_dir = match options.text(DEFAULT, "state_path") {
            Some(value) => absolute(DEFAULT, "state_path", &value)?,
            None => "/var/lib/neutron".into(),
        };
        Ok(Self {
            state_dir: state_dir.join("metadata-agent"),
            debug: options.parse(DEFAULT, "debug", false, boolean)?,
            nova: Nova::from_ini(options)?,
            source,
            netns: options.parse(SECTION, "netns", "metadata".to_owned(), netns_name)?,
            run_dir,
            attach: options.parse(SECTION, "attach", AttachMode::Auto, attach_mode)?,
            connections: options.rate(
                "connection_rate",
                "connection_burst",
                Rate { rate: 100, burst: 200 },
            )?,
            answers: options.rate("answer_rate", "answer_burst", Rate { rate: 100, burst: 200 })?,
            workers: options.parse(SECTION, "workers", 2, |text| number(text, 1, 256))?,
            hold: options.parse(SECTION, "unknown_identity_hold", Duration::from_secs(8), seconds)?,
        })
    }
}

fn ovn(options: &Options<'_>) -> Result<Source, Error> {
    let probe = options.parse("ovn", "ovsdb_probe_interval", Duration::from_secs(60), milliseconds)?;
    let client = |section, option, default: &str, database| {
        let value = options.text(section, option).unwrap_or_else(|| Value::default(default));
        let remotes = remotes(&value.text).map_err(|problem| Error::new(section, option, value, problem))?;
        let mut config = ovsdb_client::Config::new(remotes, database);
        config.probe_interval = probe;
        Ok::<_, Error>(Box::new(config))
    };
    let ovs = client("ovs", "ovsdb_connection", "unix:/run/openvswitch/db.sock", "Open_vSwitch")?;
    let mut southbound = client("ovn", "ovn_sb_connection", "tcp:127.0.0.1:6642", "OVN_Southbound")?;
    southbound.backoff_max =
        options.parse("ovn", "ovsdb_retry_max_interval", southbound.backoff_max, seconds)?;
    if southbound.remotes.as_slice().iter().any(|remote| matches!(remote, ovsdb_client::Remote::Ssl(_))) {
        let file = |option| match options.text("ovn", option).filter(|value| !value.text.is_empty()) {
            Some(value) => absolute("ovn", option, &value),
            None => Err(Error::Missing {
                section: "ovn",
                option,
                remedy: "ovn_sb_connection has an ssl: remote, which needs a key, a certificate and a CA file",
            }),
        };
        southbound.tls = Some(ovsdb_client::TlsConfig {
            private_key: file("ovn_sb_private_key")?,
            certificate: file("ovn_sb_certificate")?,
            ca_certificates: file("ovn_sb_ca_cert")?,
            verify_hostname: false,
        });
    }
    Ok(Source::Ovn { ovs, southbound })
}

/// One or several remotes; a list may go on over several lines.
fn remotes(text: &str) -> Result<ovsdb_client::Remotes, String> {
    let joined: String = text.split_whitespace().collect();
    joined.parse().map_err(|error: ovsdb_client::RemoteError| error.to_string())
}

impl Nova {
    fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        options.parse(DEFAULT, "nova_metadata_protocol", (), |text| match text {
            "http" => Ok(()),
            "https" => Err("https to nova is not supported yet; use http".into()),
            _ => Err("expected http".into()),
        })?;
        let secret =
            options.text(DEFAULT, "metadata_proxy_shared_secret").filter(|value| !value.text.is_empty());
        let secret = secret.ok_or(Error::Missing {
            section: DEFAULT,
            option: "metadata_proxy_shared_secret",
            remedy: "set it to the value of nova's [neutron] metadata_proxy_shared_secret",
        })?;
        Ok(Self {
            host: options.parse(DEFAULT, "nova_metadata_host", "127.0.0.1".to_owned(), host)?,
            port: options.parse(DEFAULT, "nova_metadata_port", 8775, |text| number(text, 1, 65535))? as u16,
            secret: Secret(secret.text),
            connect_timeout: options.parse(
                SECTION,
                "nova_connect_timeout",
                Duration::from_secs(5),
                seconds,
            )?,
            response_timeout: options.parse(
                SECTION,
                "nova_response_timeout",
                Duration::from_secs(60),
                seconds,
            )?,
        })
    }

    /// Host and port as they stand in a Host header.
    pub fn authority(&self) -> String {
        let host = &self.host;
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }
}

/// Typed access to options, with errors that name the place.
struct Options<'a>(&'a Ini);

impl Options<'_> {
    fn text(&self, section: &str, option: &str) -> Option<Value> {
        self.0.get(section, option)
    }

    fn parse<T>(
        &self,
        section: &'static str,
        option: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Error> {
        let Some(value) = self.text(section, option) else { return Ok(default) };
        parse(value.text.trim()).map_err(|problem| Error::new(section, option, value, problem))
    }

    fn rate(&self, rate: &'static str, burst: &'static str, default: Rate) -> Result<Rate, Error> {
        Ok(Rate {
            rate: self.parse(SECTION, rate, default.rate, |text| Ok(number(text, 0, 1_000_000)? as u32))?,
            burst: self.parse(
                SECTION,
                burst,
                default.burst,
                |text| Ok(number(text, 1, 1_000_000)? as u32),
            )?,
        })
    }

    /// Other services' sections may hold what they like, ours may not: a misspelt option would silently not count.
    fn check_own(&self) -> Result<(), Error> {
        for (option, origin) in self.0.options(SECTION) {
            if !OWN.contains(&option) {
                return Err(Error::Unknown {
                    origin: origin.clone(),
                    option: option.to_owned(),
                    known: OWN.join(", "),
                });
            }
        }
        Ok(())
    }
}

fn absolute(section: &'static str, option: &'static str, value: &Value) -> Result<PathBuf, Error> {
    let path = Path::new(&value.text);
    if path.is_absolute() {
        return Ok(path.into());
    }
    Err(Error::new(section, option, value.clone(), "expected an absolute path".into()))
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

fn number(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let value = text.parse().ok().filter(|value| (least..=most).contains(value));
    value.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value: Option<f64> = text.parse().ok().filter(|value| (0.0..=86_400.0).contains(value));
    value.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds, 0 to 86400".into())
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let value = text.parse().ok().filter(|value| *value <= 86_400_000);
    value.map(Duration::from_millis).ok_or_else(|| "expected milliseconds, 0 to 86400000".into())
}

fn attach_mode(text: &str) -> Result<AttachMode, String> {
    match text {
        "auto" => Ok(AttachMode::Auto),
        "tcx" => Ok(AttachMode::Tcx),
        "clsact" => Ok(AttachMode::Clsact),
        _ => Err("expected auto, tcx or clsact".into()),
    }
}

fn netns_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && text.len() < 64 && !text.starts_with('.') && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected a file name of letters, digits, '-', '_' and '.'".into())
    }
}

fn host(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if !text.is_empty() && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected one host name or address".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Error> {
        let mut ini = Ini::default();
        ini.parse(Path::new("test.ini"), text)?;
        Config::from_ini(&Options(&ini))
    }

    const SECRET: &str = "metadata_proxy_shared_secret = s3cret\n";

    #[test]
    fn neutrons_file_as_it_is() {
        let text = "[DEFAULT]\nnova_metadata_host = 10.0.0.5\nnova_metadata_port = 8775\n\
            metadata_proxy_shared_secret = s3cret\ndebug = True\nmetadata_workers = 4\nstate_path = /var/lib/neutron\n\
            [ovs]\novsdb_connection = tcp:127.0.0.1:6640\n[ovn]\novn_sb_connection = tcp:10.0.0.9:6642,\n  tcp:10.0.0.10:6642\novsdb_probe_interval = 30000\n\
            [agent]\nroot_helper = sudo\n";
        let config = read(text).unwrap();
        assert_eq!(config.nova.authority(), "10.0.0.5:8775");
        assert!(config.debug);
        let Source::Ovn { ovs, southbound } = &config.source else { panic!("not OVN") };
        assert_eq!(ovs.remotes, "tcp:127.0.0.1:6640".parse().unwrap());
        assert_eq!(southbound.remotes, "tcp:10.0.0.9:6642,tcp:10.0.0.10:6642".parse().unwrap());
        assert_eq!(southbound.probe_interval, Duration::from_secs(30));
        assert_eq!(config.state_dir, Path::new("/var/lib/neutron/metadata-agent"));
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn defaults() {
        let config = read(SECRET).unwrap();
        assert_eq!(config.run_dir, Path::new("/run/metadata-agent"));
        assert_eq!(config.netns, "metadata");
        assert_eq!(config.hold, Duration::from_secs(8));
        assert_eq!(config.nova.authority(), "127.0.0.1:8775");
    }

    #[test]
    fn errors_name_place_and_remedy() {
        let cases = [
            ("", "metadata_proxy_shared_secret is not set in any configuration file: set it to"),
            (
                "nova_metadata_port = 99999\n",
                "test.ini:2: [DEFAULT] nova_metadata_port = \"99999\": expected a whole",
            ),
            ("debug = maybe\n", "test.ini:2: [DEFAULT] debug = \"maybe\": expected true or false"),
            (
                "[metadata_ebpf]\nnetsn = x\n",
                "test.ini:3: [metadata_ebpf] has no option \"netsn\"; it has: netns",
            ),
            (
                "[metadata_ebpf]\nrun_dir = x\n",
                "test.ini:3: [metadata_ebpf] run_dir = \"x\": expected an absolute path",
            ),
            (
                "[metadata_ebpf]\nnetns = a/b\n",
                "test.ini:3: [metadata_ebpf] netns = \"a/b\": expected a file name",
            ),
            (
                "[ovn]\novn_sb_connection = udp:1.2.3.4:5\n",
                "test.ini:3: [ovn] ovn_sb_connection = \"udp:1.2.3.4:5\": ",
            ),
            ("[ovn]\novn_sb_connection = ssl:1.2.3.4:5\n", "[ovn] ovn_sb_private_key is not set"),
            ("[metadata_ebpf]\nunknown_identity_hold = -1\n", "expected seconds"),
        ];
        for (text, expected) in cases {
            let text = if text.is_empty() { String::new() } else { format!("{SECRET}{text}") };
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
