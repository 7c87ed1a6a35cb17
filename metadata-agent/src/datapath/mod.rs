//! The kernel's side: programs, maps, pins, and the service device they redirect to.
mod announce;
mod attach;
mod bpffs;
mod device;
mod error;
mod headers;
mod index;
mod netlink;
mod netns;
mod networks;
mod probe;
mod records;
mod service;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};
use metadata_ebpf::{
    counter::Counter,
    map::{LAYOUT, Network, Port, PortKey},
};
use tables::{PINNED, Tables, pinned};
use tracing::info;

use crate::config::AttachMode;

pub use announce::announce;
pub use bpffs::has_pins;
pub use device::{Device, DeviceKind, device_name};
pub use error::Error;
pub use headers::Headers;
pub use index::{Assignment, Indexes};
pub use netlink::remove_device;
pub use netns::{FOLDER as NAMESPACES, Netns};
pub use probe::{Family, Probe};
pub use records::{Action, Frame, Records};
pub use service::{ServiceDevice, listen};
pub use tables::Adopted;

/// The compiled programs, an ELF object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("METADATA_DATAPATH"));

/// Folder of the pinned links, in that of the layout.
const LINKS: &str = "links";

/// Grace period of connections through whoever served a node before this agent came.
const FOREIGN: Duration = Duration::from_secs(60);

/// The maps that give synthetic addresses their meaning, by their number in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapsId(u32);

impl std::fmt::Display for MapsId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "metadata-agent maps {}", self.0)
    }
}

/// Frames of one port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortFrames {
    /// Numbers of them by their outcome, as far as there were any since the port is served.
    pub frames: Vec<(Counter, u64)>,
    /// Outcome of the last one that was dropped, and how long ago that was.
    pub dropped: Option<(Counter, Duration)>,
}

/// A source of a port, as the programs have learned it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSeen {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: String,
    /// Time since its last frame.
    pub age: Duration,
}

/// The loaded datapath. Control plane only: one owner, no locks.
pub struct Datapath {
    ebpf: Ebpf,
    tables: Tables,
    attachment: attach::Attachment,
    service: Device,
    lease: Duration,
    /// Time until which segments of connections that are not ours pass on taps that were there before us.
    foreign_until: u64,
    maps_dir: PathBuf,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("maps_dir", &self.maps_dir).finish_non_exhaustive()
    }
}

impl Datapath {
    /// Id of the maps that an agent with this `run_dir` and this layout finds: none if it will make new ones.
    ///
    /// The meaning of a synthetic address is in the map `SOURCES`, and the map's number in the kernel stands for that:
    /// it is given to no other map for as long as the machine is up (`bpf_map_alloc_id` counts on).
    pub fn former_maps(run_dir: &Path) -> Result<Option<MapsId>, Error> {
        let folder = bpffs::mount(&run_dir.join("bpf"))?.join(layout());
        if !folder.join("SOURCES").exists() {
            return Ok(None);
        }
        maps_id(&folder).map(Some)
    }

    /// Loads the programs over the pinned maps of `run_dir` (new ones the first time) and puts `to_guest` on the
    /// service device. Links that a former agent pinned get the new program in place, without a gap.
    ///
    /// The programs are in force for `lease` after this was last renewed.
    pub fn open(
        run_dir: &Path,
        service: &ServiceDevice,
        mode: AttachMode,
        lease: Duration,
    ) -> Result<Self, Error> {
        let root = bpffs::mount(&run_dir.join("bpf"))?;
        let maps_dir = root.join(layout());
        let links_dir = maps_dir.join(LINKS);
        std::fs::create_dir_all(&links_dir).map_err(|error| Error::Pin { path: links_dir.clone(), error })?;

        let device = &service.host_end;
        let mut loader = EbpfLoader::new();
        loader.override_global("SERVICE_IFINDEX", &device.ifindex, true);
        loader.override_global("SERVICE_NAMESPACE", &service.number, true);
        for map in PINNED {
            loader.map_pin_path(map, maps_dir.join(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| Error::Load(error.into()))?;
        for name in ["from_guest", "from_network", "to_guest"] {
            program(&mut ebpf, name)?.load().map_err(|error| Error::Load(error.into()))?;
        }
        let to_guest = program(&mut ebpf, "to_guest")?;
        let others = bpffs::folders(&root)?.into_iter().filter(|folder| *folder != maps_dir);
        let others: Vec<_> = others.map(|folder| folder.join(LINKS)).collect();
        let attachment = attach::Attachment::establish(mode, links_dir, &others, to_guest, device)?;
        let mut tables = Tables::take(&mut ebpf, &maps_dir)?;
        let has_lapsed = tables.has_lapsed()?;
        let foreign_until = if service.succeeds && !has_lapsed { 0 } else { tables::monotonic(FOREIGN) };
        if has_lapsed {
            // Before the programs that are on the taps hear that there is an agent again.
            tables.pass_foreign(foreign_until)?;
        }
        let mut datapath =
            Self { tables, attachment, service: device.clone(), lease, foreign_until, ebpf, maps_dir };
        let ipv6 = service.has_ipv6();
        datapath.tables.say(|control| control.ipv6 = ipv6.into())?;
        datapath.renew()?;
        Ok(datapath)
    }

    /// The maps that the programs have.
    pub fn maps_id(&self) -> Result<MapsId, Error> {
        maps_id(&self.maps_dir)
    }

    /// Gives a sign of life: without one for the length of the lease, the programs let frames pass.
    pub fn renew(&mut self) -> Result<(), Error> {
        let until = tables::monotonic(self.lease);
        self.tables.say(|control| control.alive_until = until)
    }

    /// Lets new connections pass from now on, to whoever serves them next, while those under way go on.
    pub fn leave(&mut self) -> Result<(), Error> {
        self.tables.say(|control| control.leaving = 1)
    }

    /// Puts back what somebody took out of the BPF file system, that file system included: the maps are held here as
    /// well, and the links by the attachment.
    pub fn keep_pinned(&mut self) -> Result<(), Error> {
        if let Some(run_dir) = self.maps_dir.parent().and_then(Path::parent) {
            bpffs::mount(&run_dir.join("bpf"))?;
        }
        let links_dir = self.maps_dir.join(LINKS);
        std::fs::create_dir_all(&links_dir).map_err(|error| Error::Pin { path: links_dir, error })?;
        if self.tables.pin_again(&self.maps_dir)? {
            info!(folder = %self.maps_dir.display(), "somebody removed pins of the maps, pinned them again");
        }
        Ok(())
    }

    /// Removes what agents of other layouts of the maps left, programs included, also from taps that are not `served`.
    /// To be called when this one's programs are in place.
    pub fn remove_other_layouts(&self, served: &BTreeSet<u32>) -> Result<(), Error> {
        let Some(root) = self.maps_dir.parent() else { return Ok(()) };
        if bpffs::clear(root, Some(&self.maps_dir), |link| self.attachment.end(link))? {
            attach::remove_filters(|ifindex| served.contains(&ifindex) || ifindex == self.service.ifindex)?;
        }
        Ok(())
    }

    /// Unpins everything below `run_dir`, takes the programs off, and unmounts our BPF file system.
    pub fn remove(run_dir: &Path) -> Result<(), Error> {
        attach::remove_filters(|_| false)?;
        bpffs::remove(&run_dir.join("bpf"))
    }

    /// The programs' records of frames, for a task to read. Within a runtime, and once.
    pub fn records(&mut self) -> Result<Records, Error> {
        Records::take(&mut self.ebpf, &self.maps_dir)
    }

    /// Says which frames the programs are to record (see `metadata_ebpf::map::is_recorded`).
    pub fn set_recorded(&mut self, recorded: u32) -> Result<(), Error> {
        self.tables.say_if_new(|control| control.logging = recorded)
    }

    /// The assignments of a former agent, and what is left to assign.
    pub fn assignments(&mut self) -> Result<(BTreeMap<PortKey, Adopted>, Indexes), Error> {
        self.tables.assignments()
    }

    /// Notes which device is the agent's own guest, whose frames are not counted.
    pub fn set_probe(&mut self, device: &Device) -> Result<(), Error> {
        self.tables.say(|control| control.probe = device.ifindex)
    }

    /// Begins an assignment, to which nothing leads yet.
    pub fn begin(&mut self, key: PortKey, assignment: Assignment) -> Result<(), Error> {
        self.tables.begin(key, assignment)
    }

    /// Makes frames of `key` belong to a port, or changes what is known about it. To be called before the program is
    /// attached.
    pub fn enter(&mut self, key: PortKey, port: Port) -> Result<(), Error> {
        self.tables.enter(key, port)
    }

    /// Ends an assignment: nothing comes in for it any more, and nothing but resets goes out until it is released.
    pub fn end(&mut self, key: PortKey, assignment: Assignment) -> Result<(), Error> {
        self.tables.end(key, assignment)
    }

    /// Forgets an assignment that has ended.
    pub fn release(&mut self, assignment: Assignment) -> Result<(), Error> {
        self.tables.release(assignment)
    }

    /// Number of new sources of an assignment that were refused, because all places were taken.
    pub fn exhausted(&self, assignment: Assignment) -> Result<u64, Error> {
        self.tables.exhausted(assignment)
    }

    /// Time, on the programs' clock, until which segments of connections that are not ours pass on a tap that was here
    /// before the agent; 0 where another agent of this kind had it.
    pub fn foreign_until(&self) -> u64 {
        self.foreign_until
    }

    /// Notes which metadata port a network's device is bound to. To be called before the program is attached.
    pub fn enter_network(&mut self, ifindex: u32, network: Network) -> Result<(), Error> {
        self.tables.enter_network(ifindex, network)
    }

    /// Puts the program for its kind on a device; does nothing when it is there. A network's device is up from then on.
    pub fn attach(&mut self, device: &Device) -> Result<(), Error> {
        let program = program(&mut self.ebpf, device.kind.program())?;
        self.attachment.attach(program, &attach::pin(device), device)?;
        match device.kind {
            DeviceKind::Tap => Ok(()),
            DeviceKind::Network => networks::set_up(device),
        }
    }

    /// Those of the devices that have lost the program, as the kernel tells, or are down if they are networks'.
    pub fn lacking(&mut self, devices: &[Device]) -> Result<Vec<u32>, Error> {
        let (taps, networks): (Vec<Device>, Vec<Device>) =
            devices.iter().cloned().partition(|device| device.kind == DeviceKind::Tap);
        let mut lacking = networks::down(&networks)?;
        for (kind, devices) in [(DeviceKind::Tap, taps), (DeviceKind::Network, networks)] {
            let program = program(&mut self.ebpf, kind.program())?;
            lacking.extend(self.attachment.lacking(program, attach::pin, &devices)?);
        }
        Ok(lacking)
    }

    /// Tells whether the kernel says that a device has the program.
    pub fn is_on(&mut self, device: &Device) -> bool {
        let program = program(&mut self.ebpf, device.kind.program());
        program.is_ok_and(|program| self.attachment.is_on(program, device))
    }

    /// Asks the kernel whether the service device has lost its program.
    pub fn service_lacks_program(&mut self) -> Result<bool, Error> {
        let to_guest = program(&mut self.ebpf, "to_guest")?;
        let service = std::slice::from_ref(&self.service);
        Ok(!self.attachment.lacking(to_guest, |_| attach::SERVICE.to_owned(), service)?.is_empty())
    }

    /// Puts `to_guest` on the service device again; does nothing when it is there.
    pub fn attach_service(&mut self) -> Result<(), Error> {
        let to_guest = program(&mut self.ebpf, "to_guest")?;
        self.attachment.attach(to_guest, attach::SERVICE, &self.service)
    }

    /// Interface index of the service device's host end.
    pub fn service_ifindex(&self) -> u32 {
        self.service.ifindex
    }

    /// Forgets the networks' devices of a former agent that are not to be kept, and sets them down.
    pub fn keep_networks(&mut self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        for ifindex in self.tables.networks()?.into_iter().filter(|ifindex| !keep(*ifindex)) {
            self.tables.leave_network(ifindex)?;
            networks::set_down(ifindex)?;
        }
        Ok(())
    }

    /// Takes the program off a device, which may be gone already. A network's device is down from before then on.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        if self.tables.leave_network(ifindex)? {
            networks::set_down(ifindex)?;
        }
        self.attachment.detach(ifindex)
    }

    /// Interface indexes of the devices that have a pinned link.
    pub fn attached(&self) -> Result<Vec<u32>, Error> {
        self.attachment.attached()
    }

    /// True if others can remove the programs from devices: then netlink has to be watched for it.
    pub fn is_removable(&self) -> bool {
        self.attachment.is_removable()
    }

    /// The counters, summed over the processors.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, Error> {
        self.tables.counters()
    }

    /// The frames of an assignment by outcome, as far as there were any, and the last one that was dropped.
    pub fn port_frames(&self, assignment: Assignment) -> Result<PortFrames, Error> {
        let counts = self.tables.counts(assignment)?;
        let frames = Counter::ALL.iter().map(|counter| (*counter, counts.frames[*counter as usize]));
        let frames = frames.filter(|(_, frames)| *frames > 0).collect();
        let dropped = Counter::ALL.get(counts.dropped_as as usize).filter(|_| counts.dropped_at > 0);
        Ok(PortFrames {
            frames,
            dropped: dropped.map(|counter| (*counter, tables::since(counts.dropped_at))),
        })
    }

    /// The sources of an assignment that were learned.
    pub fn sources(&self, assignment: Assignment) -> Result<Vec<SourceSeen>, Error> {
        let state = self.tables.state(assignment)?;
        let learned = state.iter().flat_map(|state| &state.sources).filter(|source| source.last_seen != 0);
        Ok(learned
            .map(|source| SourceSeen {
                address: source.ip(),
                mac: source.mac.to_string(),
                age: tables::since(source.last_seen),
            })
            .collect())
    }

    /// The map `OPEN`, for who is to have its memory in common with the programs.
    pub fn open_sources(&self) -> Result<OwnedFd, Error> {
        let map = pinned(&self.maps_dir, "OPEN")?;
        map.fd().as_fd().try_clone_to_owned().map_err(Error::Shared)
    }
}

fn maps_id(folder: &Path) -> Result<MapsId, Error> {
    let info = pinned(folder, "SOURCES")?.info().map_err(|error| tables::failed("SOURCES", error))?;
    Ok(MapsId(info.id()))
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
