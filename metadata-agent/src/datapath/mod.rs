//! The kernel's side: programs, maps, pins, and the service device they redirect to.
mod attach;
mod bpffs;
mod index;
mod netns;
mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
    programs::SchedClassifier,
};
use metadata_ebpf::{
    address::{MAX_PORTS, Tag},
    counter::Counter,
    map::{LAYOUT, Limit, Port, PortKey, PortSources},
};

use crate::config::AttachMode;

pub use index::{Assignment, Indexes};
pub use netns::Netns;
pub use service::ServiceDevice;

/// The compiled programs, an ELF object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("METADATA_DATAPATH"));

/// Maps that outlive the agent, so that a restarted one finds ports and sources as they were.
/// Folder of the pinned links, in that of the layout.
const LINKS: &str = "links";
const PINNED_MAPS: [&str; 4] = ["PORTS", "SOURCES", "COUNTERS", "LOGGING"];

/// What the kernel refused, and what that means.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The BPF file system cannot be mounted or used.
    #[error("cannot use a BPF file system at {path}: {error}", path = .path.display())]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// Why.
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
        /// Why.
        error: MapError,
    },
    /// A program cannot be attached.
    #[error("cannot attach to {device} (ifindex {ifindex}): {reason}")]
    Attach {
        /// Name of the device.
        device: String,
        /// Its interface index.
        ifindex: u32,
        /// Why, and what to do.
        reason: String,
        /// Whether the reason may be a kernel without that kind of attachment.
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
    /// A pin cannot be written or removed.
    #[error("pin {path}: {error}", path = .path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The service namespace or device cannot be made.
    #[error("service namespace {netns}: {what}: {error}")]
    Service {
        /// Name of the namespace.
        netns: String,
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// All indexes are in use.
    #[error("all {MAX_PORTS} ports that one host can serve are in use")]
    Full,
}

/// A network device as the attachment needs it: aya attaches by name, identity is by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub ifindex: u32,
    /// Name at the time of the last netlink message.
    pub name: String,
}

/// What one port may ask of the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// New connections.
    pub connections: Limit,
    /// ARP, neighbour discovery and echo requests.
    pub answers: Limit,
}

/// The loaded datapath. Control plane only: one owner, no locks.
pub struct Datapath {
    ebpf: Ebpf,
    ports: HashMap<MapData, PortKey, Port>,
    sources: Array<MapData, PortSources>,
    counters: PerCpuArray<MapData, u64>,
    logging: Array<MapData, u32>,
    attachment: attach::Attachment,
    service: Device,
    limits: Limits,
    maps_dir: PathBuf,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("maps_dir", &self.maps_dir).finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the programs over the pinned maps of `run_dir` (new ones the first time) and puts `to_guest` on the
    /// service device. Links that a former agent pinned get the new program in place, without a gap.
    pub fn open(run_dir: &Path, service: &Device, mode: AttachMode, limits: Limits) -> Result<Self, Error> {
        let root = bpffs::mount(&run_dir.join("bpf"))?;
        let maps_dir = root.join(layout());
        let links_dir = maps_dir.join(LINKS);
        std::fs::create_dir_all(&links_dir).map_err(|error| Error::Pin { path: links_dir.clone(), error })?;

        let mut loader = EbpfLoader::new();
        loader.override_global("SERVICE_IFINDEX", &service.ifindex, true);
        for map in PINNED_MAPS {
            loader.map_pin_path(map, maps_dir.join(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| Error::Load(error.into()))?;
        for name in ["from_guest", "to_guest"] {
            program(&mut ebpf, name)?.load().map_err(|error| Error::Load(error.into()))?;
        }
        let to_guest = program(&mut ebpf, "to_guest")?;
        let others = bpffs::folders(&root)?.into_iter().filter(|folder| *folder != maps_dir);
        let others: Vec<_> = others.map(|folder| folder.join(LINKS)).collect();
        let attachment = attach::Attachment::establish(mode, links_dir, &others, to_guest, service)?;
        Ok(Self {
            ports: typed(take(&mut ebpf, "PORTS")?, "PORTS")?,
            sources: typed(take(&mut ebpf, "SOURCES")?, "SOURCES")?,
            counters: typed(take(&mut ebpf, "COUNTERS")?, "COUNTERS")?,
            logging: typed(take(&mut ebpf, "LOGGING")?, "LOGGING")?,
            attachment,
            service: service.clone(),
            limits,
            ebpf,
            maps_dir,
        })
    }

    /// Removes what agents of other layouts of the maps left, programs included, also from taps that are not `served`.
    /// To be called when this one's programs are in place.
    pub fn remove_other_layouts(&self, served: &BTreeSet<u32>) -> Result<(), Error> {
        let Some(root) = self.maps_dir.parent() else { return Ok(()) };
        if bpffs::clear(root, Some(&self.maps_dir))? {
            attach::remove_filters(|ifindex| served.contains(&ifindex) || ifindex == self.service.ifindex)?;
        }
        Ok(())
    }

    /// Unpins everything below `run_dir`, takes the programs off, and unmounts our BPF file system.
    pub fn remove(run_dir: &Path) -> Result<(), Error> {
        attach::remove_filters(|_| false)?;
        bpffs::remove(&run_dir.join("bpf"))
    }

    /// The programs' log records (aya-log), for a task to read.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }

    /// Switches the programs' log records on or off.
    pub fn set_logging(&mut self, on: bool) -> Result<(), Error> {
        self.logging.set(0, u32::from(on), 0).map_err(|error| Error::Map { map: "LOGGING", error })
    }

    /// What the maps hold: the assignments of a former agent, and the generation each index had last.
    ///
    /// An agent that died between the two writes of an assignment left half of one, which nothing could use: removed.
    pub fn assignments(&mut self) -> Result<(BTreeMap<PortKey, Assignment>, Indexes), Error> {
        let mut owners = Vec::with_capacity(MAX_PORTS as usize);
        for index in 0..MAX_PORTS {
            let sources =
                self.sources.get(&index, 0).map_err(|error| Error::Map { map: "SOURCES", error })?;
            owners.push((PortKey { ifindex: sources.ifindex, vlan: sources.vlan }, sources.generation as u8));
        }
        let entries: Result<Vec<_>, _> = self.ports.iter().collect();
        let mut assigned = BTreeMap::new();
        for (key, port) in entries.map_err(|error| Error::Map { map: "PORTS", error })? {
            let assignment = Assignment { index: port.index, generation: port.generation as u8 };
            if owners.get(port.index as usize) == Some(&(key, assignment.generation)) {
                assigned.insert(key, assignment);
            } else {
                self.ports.remove(&key).map_err(|error| Error::Map { map: "PORTS", error })?;
            }
        }
        let generations = owners.into_iter().map(|(_, generation)| generation).collect();
        let indexes = Indexes::new(generations, assigned.values().map(|assignment| assignment.index));
        Ok((assigned, indexes))
    }

    /// Makes frames of `key` belong to the assignment. To be called before the program is attached.
    pub fn assign(&mut self, key: PortKey, assignment: Assignment) -> Result<(), Error> {
        let Assignment { index, generation } = assignment;
        self.sources
            .set(index, PortSources::assigned(key, generation), 0)
            .map_err(|error| Error::Map { map: "SOURCES", error })?;
        self.confirm(key, assignment)
    }

    /// Brings the limits of an assignment that is there up to date; what was learned behind it stays.
    pub fn confirm(&mut self, key: PortKey, assignment: Assignment) -> Result<(), Error> {
        let port = Port {
            index: assignment.index,
            generation: assignment.generation.into(),
            connections: self.limits.connections,
            answers: self.limits.answers,
        };
        self.ports.insert(key, port, 0).map_err(|error| Error::Map { map: "PORTS", error })
    }

    /// Ends an assignment: from now on nothing comes in for it, and replies to it have nowhere to go.
    pub fn release(&mut self, key: PortKey, assignment: Assignment) -> Result<(), Error> {
        // An entry that is not there is what is wanted, and aya has no error of its own for it.
        if self.ports.get(&key, 0).is_ok() {
            self.ports.remove(&key).map_err(|error| Error::Map { map: "PORTS", error })?;
        }
        self.sources
            .set(assignment.index, PortSources::released(assignment.generation), 0)
            .map_err(|error| Error::Map { map: "SOURCES", error })
    }

    /// Puts `from_guest` on a tap; does nothing when it is there.
    pub fn attach(&mut self, tap: &Device) -> Result<(), Error> {
        let from_guest = program(&mut self.ebpf, "from_guest")?;
        self.attachment.attach(from_guest, &tap.ifindex.to_string(), tap)
    }

    /// Puts `to_guest` on the service device again, if that is the device named.
    pub fn attach_service(&mut self, ifindex: u32) -> Result<(), Error> {
        if ifindex != self.service.ifindex {
            return Ok(());
        }
        let to_guest = program(&mut self.ebpf, "to_guest")?;
        self.attachment.attach(to_guest, "service", &self.service)
    }

    /// Takes `from_guest` off a device, which may be gone already.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        self.attachment.detach(ifindex)
    }

    /// Interface indexes of the taps that have a pinned link.
    pub fn attached(&self) -> Result<Vec<u32>, Error> {
        self.attachment.attached()
    }

    /// Whether others can remove the programs from devices: then netlink has to be watched for it.
    pub fn is_removable(&self) -> bool {
        self.attachment.is_removable()
    }

    /// The counters, summed over the processors.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, Error> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self.counters.get(&(*counter as u32), 0);
                let values = values.map_err(|error| Error::Map { map: "COUNTERS", error })?;
                Ok((*counter, values.iter().sum()))
            })
            .collect()
    }

    /// A reader of the sources for other threads.
    pub fn source_table(&self) -> Result<SourceTable, Error> {
        let failed = |error| Error::Map { map: "SOURCES", error };
        let data = MapData::from_pin(self.maps_dir.join("SOURCES")).map_err(failed)?;
        Ok(SourceTable(Array::try_from(Map::Array(data)).map_err(failed)?))
    }
}

/// Read access to the sources behind the ports.
pub struct SourceTable(Array<MapData, PortSources>);

impl std::fmt::Debug for SourceTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SourceTable")
    }
}

impl crate::proxy::directory::Sources for SourceTable {
    fn source(&self, tag: Tag) -> Option<IpAddr> {
        let port = self.0.get(&tag.index(), 0).ok()?;
        let source = port.sources.get(tag.source())?;
        (port.generation as u8 == tag.generation() && source.last_seen != 0).then(|| source.ip())
    }
}

/// Name of the folder of the pins, which changes with the layout of the maps.
fn layout() -> String {
    format!("layout-{LAYOUT}")
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf.program_mut(name);
    let program = program.ok_or_else(|| Error::Load(anyhow::anyhow!("the object has no program {name}")))?;
    program.try_into().map_err(|error: aya::programs::ProgramError| Error::Load(error.into()))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| Error::Load(anyhow::anyhow!("the object has no map {name}")))
}

fn typed<M: TryFrom<Map, Error = MapError>>(map: Map, name: &'static str) -> Result<M, Error> {
    M::try_from(map).map_err(|error| Error::Map { map: name, error })
}
