//! The other agent's things on this host, as `neutron-ovn-metadata-agent` and the extension `metadata` of
//! `neutron-ovn-agent` make them (neutron, `agent/ovn/metadata/agent.py`): processes, and for each network a namespace
//! `ovnmeta-NETWORK` with haproxy in it, and a pair of devices whose outer end is a port of Open vSwitch.
use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use nix::net::if_::if_nametoindex;

use super::haproxy;
use crate::{datapath::NAMESPACES, inventory::Bound};

const PREFIX: &str = "ovnmeta-";
/// Names of its programs.
const PROGRAMS: [&str; 2] = [METADATA_AGENT, OVN_AGENT];
const METADATA_AGENT: &str = "neutron-ovn-metadata-agent";
const OVN_AGENT: &str = "neutron-ovn-agent";
/// The socket that haproxy talks to, `metadata_proxy_socket`, ends so unless it was renamed.
const SOCKET: &str = "/metadata_proxy";
/// 169.254.169.254:80 as /proc/net/tcp has it, listening.
const LISTENER: [&str; 3] = ["FEA9FEA9:0050", "00000000:0000", "0A"];

/// A process of the other agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incumbent {
    /// Its process.
    pub process: u32,
    /// Its program's name.
    pub program: &'static str,
    /// The unit of systemd that it runs in, if it is none of a container's.
    pub unit: Option<String>,
}

impl Incumbent {
    /// An agent that has other extensions besides metadata.
    pub fn does_more(&self) -> bool {
        self.program == OVN_AGENT
    }
}

/// Parts that serve one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provision {
    /// The network.
    pub network: String,
    /// Processes of haproxy in its namespace.
    pub haproxies: Vec<u32>,
    /// Other processes in its namespace, which are nobody's that we know: process and name.
    pub strangers: Vec<(u32, String)>,
    /// True if haproxy listens at the metadata address.
    pub listens: bool,
    /// Its port of Open vSwitch.
    pub bound: Option<Bound>,
}

impl Provision {
    /// Name of its namespace.
    pub fn namespace(&self) -> String {
        format!("{PREFIX}{}", self.network)
    }

    /// Name of the outer end of its pair of devices.
    pub fn device(&self) -> String {
        device(&self.network)
    }
}

/// Everything that was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// Processes in this host's network namespace.
    pub agents: Vec<Incumbent>,
    /// True if somebody listens at the socket that haproxy talks to.
    pub has_socket: bool,
    /// By network.
    pub provisions: BTreeMap<String, Provision>,
}

impl Found {
    /// True if it serves metadata, as far as can be seen. A process may be out of sight: in another process namespace.
    pub fn serves(&self) -> bool {
        self.has_socket || self.agents.iter().any(|agent| !agent.does_more())
    }
}

/// `tap` and the first ten characters of the network, and which end it is.
fn device(network: &str) -> String {
    let id: String = network.chars().take(10).collect();
    format!("tap{id}0")
}

/// True if this network namespace has a device of that name. /sys may be another one's.
pub(super) fn has_device(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// Looks at processes and namespaces. `bound` are interfaces of the local Open vSwitch by name; only what is bound there
/// or has its device in this namespace is of this host.
pub fn find(mut bound: BTreeMap<String, Bound>) -> io::Result<Found> {
    let own = fs::metadata("/proc/self/ns/net")?;
    let mut found =
        Found { has_socket: has_socket(&fs::read_to_string("/proc/net/unix")?), ..Found::default() };
    let mut inside: BTreeMap<(u64, u64), Vec<u32>> = BTreeMap::new();
    for process in processes()? {
        let folder = PathBuf::from(format!("/proc/{process}"));
        // One that has ended is none.
        let Ok(namespace) = fs::metadata(folder.join("ns/net")) else { continue };
        if (namespace.dev(), namespace.ino()) == (own.dev(), own.ino()) {
            let command = fs::read(folder.join("cmdline")).unwrap_or_default();
            let Some(program) = program(&command) else { continue };
            let unit = unit(&fs::read_to_string(folder.join("cgroup")).unwrap_or_default());
            found.agents.push(Incumbent { process, program, unit });
        } else {
            inside.entry((namespace.dev(), namespace.ino())).or_default().push(process);
        }
    }
    let entries = match fs::read_dir(NAMESPACES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(network) = name.strip_prefix(PREFIX) else { continue };
        let bound = bound.remove(&device(network));
        if bound.is_none() && !has_device(&device(network)) {
            continue;
        }
        let Ok(file) = fs::metadata(entry.path()) else { continue };
        let within = inside.remove(&(file.dev(), file.ino())).unwrap_or_default();
        let provision = Provision { bound, ..provision(network, &within) };
        found.provisions.insert(network.to_owned(), provision);
    }
    Ok(found)
}

fn provision(network: &str, processes: &[u32]) -> Provision {
    let mut provision = Provision {
        network: network.to_owned(),
        haproxies: Vec::new(),
        strangers: Vec::new(),
        listens: false,
        bound: None,
    };
    for process in processes {
        let read = |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
        match read("comm").trim_end() {
            haproxy::NAME => {
                provision.haproxies.push(*process);
                provision.listens |= listens(&read("net/tcp"));
            }
            other => provision.strangers.push((*process, other.to_owned())),
        }
    }
    provision
}

fn processes() -> io::Result<Vec<u32>> {
    let names = fs::read_dir("/proc")?.map(|entry| Ok(entry?.file_name()));
    let names: Vec<_> = names.collect::<io::Result<_>>()?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// The program of a command line: by itself, as the script of an interpreter, or as it names itself
/// (`neutron-ovn-agent: worker`). A line that names it elsewhere is a bystander's.
fn program(command: &[u8]) -> Option<&'static str> {
    let mut words = command.split(|byte| *byte == 0 || *byte == b' ').filter(|word| !word.is_empty());
    let first = file_name(words.next()?);
    let name = if is_interpreter(first) { file_name(script(words)?) } else { first };
    let name = name.strip_suffix(b":").unwrap_or(name);
    PROGRAMS.into_iter().find(|program| program.as_bytes() == name)
}

fn file_name(word: &[u8]) -> &[u8] {
    word.rsplit(|byte| *byte == b'/').next().unwrap_or(word)
}

fn is_interpreter(name: &[u8]) -> bool {
    name.starts_with(b"python") || [&b"sh"[..], b"bash", b"dash"].contains(&name)
}

/// The first word that is no option, behind those that have no script: a command (-c) or a module (-m).
fn script<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    loop {
        match words.next()? {
            b"-c" | b"-m" => return None,
            // These two of Python's have an argument of their own.
            b"-W" | b"-X" => drop(words.next()),
            option if option.starts_with(b"-") => {}
            word => return Some(word),
        }
    }
}

/// The service of systemd that a process is in. What a container's processes are in is a scope, or no service of its own.
fn unit(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| line.rsplit_once("system.slice/").map(|(_, path)| path))?;
    let name = path.split('/').next()?;
    (name.ends_with(".service")
        && !path.contains("libpod")
        && !path.contains("docker")
        && name != "docker.service")
        .then(|| name.to_owned())
}

fn has_socket(table: &str) -> bool {
    // Flags with __SO_ACCEPTCON.
    table.lines().any(|line| line.split_whitespace().nth(3) == Some("00010000") && line.ends_with(SOCKET))
}

fn listens(table: &str) -> bool {
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().skip(1).take(3).collect();
        words == LISTENER
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_command_lines() {
        for (command, program_of) in [
            (
                &b"/usr/bin/python3\0/usr/bin/neutron-ovn-metadata-agent\0--config-file\0x\0"[..],
                Some(METADATA_AGENT),
            ),
            (b"neutron-ovn-metadata-agent (/usr/bin/python3 ...)\0", Some(METADATA_AGENT)),
            (b"neutron-ovn-agent: worker\0", Some(OVN_AGENT)),
            (b"/bin/sh\0-x\0/opt/neutron-ovn-agent\0", Some(OVN_AGENT)),
            (b"vi\0-u\0NONE\0/usr/bin/neutron-ovn-metadata-agent\0", None),
            (b"/usr/bin/neutron-ovn-metadata-agent.bak\0", None),
            (
                b"/usr/bin/python3.11\0-s\0-E\0-W\0ignore\0/usr/bin/neutron-ovn-metadata-agent\0",
                Some(METADATA_AGENT),
            ),
            (b"journalctl\0-u\0neutron-ovn-metadata-agent\0", None),
            (b"systemctl\0status\0neutron-ovn-metadata-agent\0", None),
            (b"less\0/usr/bin/neutron-ovn-metadata-agent\0", None),
            (b"python3\0/usr/bin/pdb\0/usr/bin/neutron-ovn-metadata-agent\0", None),
            (b"sh\0-c\0neutron-ovn-metadata-agent --version\0", None),
            (b"python3\0", None),
            (b"", None),
        ] {
            assert_eq!(program(command), program_of, "{}", String::from_utf8_lossy(command));
        }
    }

    #[test]
    fn units_are_those_of_the_host() {
        let unit = |cgroup: &str| unit(cgroup).unwrap_or_default();
        assert_eq!(
            unit("0::/system.slice/neutron-ovn-metadata-agent.service\n"),
            "neutron-ovn-metadata-agent.service"
        );
        for container in [
            "0::/system.slice/docker-0123.scope\n",
            "0::/system.slice/kolla-neutron_ovn_metadata_agent-container.service/libpod-payload-01\n",
            "0::/machine.slice/libpod-0123.scope/container\n",
            "0::/user.slice/user-0.slice/session-1.scope\n",
        ] {
            assert_eq!(unit(container), "", "{container}");
        }
    }

    #[test]
    fn sockets_and_listeners_are_found() {
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            ffff: 00000003 00000000 00000000 0001 03 1 /var/lib/neutron/metadata_proxy\n";
        assert!(!has_socket(table));
        assert!(has_socket(&table.replace("00000000 0001 03", "00010000 0001 01")));
        let line = "   0: FEA9FEA9:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n";
        assert!(listens(line) && !listens(&line.replace(" 0A ", " 01 ")) && !listens(""));
    }

    #[test]
    fn the_device_is_named_as_neutron_does() {
        assert_eq!(device("0c6a1b2e-5f7d-4c1a-9c55-0d7c1b2e3f4a"), "tap0c6a1b2e-50");
    }
}
