//! Filters at the ingress of a device, for kernels without TCX: of a clsact qdisc, or of the `ingress` qdisc if the device
//! has that.
//!
//! The handle is fixed, so that a restarted agent finds its own filter and replaces nobody else's. A device without a
//! qdisc gets clsact, not `ingress`, which Open vSwitch removes whenever it sets up policing
//! (netdev_linux_set_policing). One that had `ingress` gets that again when somebody removed it: whose it was, Open
//! vSwitch's or libvirt's, adds it again and takes a clsact in its place for a reason to fail.
use std::{collections::BTreeSet, io};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    links::Link as _,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use nix::{errno::Errno, libc, net::if_::if_indextoname};
use tracing::info;

use super::{check_name, explain};
use crate::datapath::{
    Device, Error,
    netlink::{add_ingress, block_on, filters, ingress, netlink},
};

/// Before everybody else's, if nobody has it.
const FIRST_PRIORITY: u16 = 1;
/// Filters of one priority are told apart by their handles.
const HANDLE: TcHandle = TcHandle::new(0, MINOR);
const MINOR: u16 = 0xa9fe;
/// Kind of a filter that is an eBPF program, and of the qdisc that Open vSwitch and libvirt use.
const BPF: &str = "bpf";
const INGRESS: &str = "ingress";

/// The devices that had an `ingress` qdisc when the program came to them.
#[derive(Debug, Default)]
pub(super) struct Filters {
    with_ingress: BTreeSet<u32>,
}

/// Qdisc and filters at a device's ingress.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ingress {
    /// Kind of the qdisc.
    qdisc: Option<String>,
    /// Priorities of our filters: one, if no agent was disturbed.
    ours: BTreeSet<u16>,
    /// Priorities of others' filters. All filters of a priority are of one kind and protocol.
    others: BTreeSet<u16>,
}

impl Ingress {
    fn of(qdisc: Option<TcMessage>, filters: &[TcMessage]) -> Self {
        let mut found = Self { qdisc: qdisc.as_ref().and_then(kind).map(str::to_owned), ..Self::default() };
        for filter in filters {
            // Priority and protocol share a word (`tcm_info`).
            let priority = (filter.header.info >> 16) as u16;
            if is_ours(filter) {
                found.ours.insert(priority)
            } else {
                found.others.insert(priority)
            };
        }
        found
    }

    fn look(ifindex: u32) -> io::Result<Self> {
        block_on(async {
            let (qdisc, filters) = ingress(&netlink()?, ifindex).await?;
            Ok(Self::of(qdisc, &filters))
        })
    }

    /// Priority of our filter, as it is or can be.
    fn priority(&self) -> u16 {
        let mut free = (FIRST_PRIORITY..u16::MAX).filter(|priority| !self.others.contains(priority));
        self.ours.first().copied().or_else(|| free.next()).unwrap_or(u16::MAX)
    }
}

impl Filters {
    /// Puts the program on a device's ingress, in place of the one that is there from before.
    pub(super) fn attach(&mut self, program: &mut SchedClassifier, device: &Device) -> Result<(), Error> {
        check_name(device)?;
        let found = if self.add_qdisc(device)? {
            Ingress::default()
        } else {
            Ingress::look(device.ifindex).map_err(|error| explain(device, &error))?
        };
        match found.qdisc.as_deref() {
            Some(INGRESS) => {
                self.with_ingress.insert(device.ifindex);
            }
            Some(_) => {
                self.with_ingress.remove(&device.ifindex);
            }
            None => {}
        }
        let priority = found.priority();
        if priority != FIRST_PRIORITY && !found.ours.contains(&priority) {
            info!(
                tap = device.name,
                priority, "another filter has the first priority, and sees frames before ours"
            );
        }
        let options = NlOptions { priority, handle: HANDLE, classid: None };
        let options = TcAttachOptions::Netlink(options);
        let id = match program.attach_with_options(&device.name, TcAttachType::Ingress, options) {
            Err(ProgramError::TcError(TcError::NetlinkError(error)))
                if error.raw_os_error() == Some(libc::EEXIST) =>
            {
                let link = link(&device.name, priority).map_err(|error| explain(device, &error))?;
                program.attach_to_link(link)
            }
            result => result,
        }
        .map_err(|error| explain(device, &error))?;
        let link = program.take_link(id).map_err(|error| explain(device, &error))?;
        // A filter stays when nobody holds it, and aya's link would remove it.
        std::mem::forget(link);
        check_name(device)
    }

    /// Gives a device a qdisc at its ingress, or says that it has one already.
    fn add_qdisc(&self, device: &Device) -> Result<bool, Error> {
        if self.with_ingress.contains(&device.ifindex) {
            return match block_on(async { add_ingress(&netlink()?, device.ifindex).await }) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                added => added.map(|()| true).map_err(|error| explain(device, &error)),
            };
        }
        match qdisc_add_clsact(&device.name) {
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            added => added.map(|()| true).map_err(|error| explain(device, &error)),
        }
    }

    /// Removes the filter of a device, which may be gone already. The qdisc stays: others may use it.
    pub(super) fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        self.with_ingress.remove(&ifindex);
        detach(ifindex)
    }
}

/// Tells whether a device has our filter.
pub(super) fn is_on(device: &Device) -> bool {
    priorities(device.ifindex).is_ok_and(|ours| !ours.is_empty())
}

/// Those of the devices that lack our filter. One that cannot be asked is not among them.
pub(super) fn lacking(devices: &[Device]) -> io::Result<Vec<u32>> {
    block_on(async {
        let handle = netlink()?;
        let mut lacking = Vec::new();
        for device in devices {
            if let Ok(filters) = filters(&handle, device.ifindex).await
                && !filters.iter().any(is_ours)
            {
                lacking.push(device.ifindex);
            }
        }
        Ok(lacking)
    })
}

/// Removes our filters of a device, which may be gone already.
pub(super) fn detach(ifindex: u32) -> Result<(), Error> {
    let name = match if_indextoname(ifindex) {
        // It went away.
        Err(Errno::ENXIO | Errno::ENODEV) => return Ok(()),
        name => name.map_err(|errno| Error::Devices(errno.into()))?,
    };
    let device = Device::tap(ifindex, name.to_string_lossy().into_owned());
    let ours = match priorities(ifindex) {
        // It went away meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        ours => ours.map_err(|error| explain(&device, &error))?,
    };
    let remove = |priority: u16| link(&device.name, priority).map_err(ProgramError::from)?.detach();
    let failed: Vec<ProgramError> = ours.into_iter().filter_map(|priority| remove(priority).err()).collect();
    match failed.first() {
        // Somebody else may have removed it meanwhile, or the device.
        Some(error) if priorities(ifindex).map_or(true, |left| !left.is_empty()) => {
            if if_indextoname(ifindex).is_err() { Ok(()) } else { Err(explain(&device, error)) }
        }
        _ => Ok(()),
    }
}

/// Priorities of our filters on a device.
fn priorities(ifindex: u32) -> io::Result<BTreeSet<u16>> {
    block_on(async { Ok(Ingress::of(None, &filters(&netlink()?, ifindex).await?).ours) })
}

fn is_ours(filter: &TcMessage) -> bool {
    kind(filter) == Some(BPF) && (filter.header.handle.major, filter.header.handle.minor) == (0, MINOR)
}

fn link(device: &str, priority: u16) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, TcAttachType::Ingress, priority, HANDLE, None)
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_filter_stays_where_it_is_and_avoids_priorities_of_others() {
        let found = |ours: &[u16], others: &[u16]| Ingress {
            qdisc: None,
            ours: ours.iter().copied().collect(),
            others: others.iter().copied().collect(),
        };
        assert_eq!(found(&[], &[]).priority(), 1);
        assert_eq!(found(&[], &[1, 2, 4]).priority(), 3);
        assert_eq!(found(&[7], &[1, 2]).priority(), 7);
    }
}
