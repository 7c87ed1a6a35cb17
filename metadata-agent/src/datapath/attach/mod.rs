//! Putting the programs on devices: by TCX links where the kernel has them, else as filters of a clsact qdisc.
#![forbid(unsafe_code)]
mod clsact;
mod ending;
mod tcx;

use std::{error::Error as StdError, io, path::PathBuf};

use aya::programs::{SchedClassifier, links::FdLink};
use nix::net::if_::{Interface, if_indextoname, if_nameindex};
use tracing::info;

use super::{Device, Error};
use crate::{config::AttachMode, error_chain::chain};
pub(super) use ending::unpin_all;

/// Attachment of programs to devices, by TCX links or by filters.
#[derive(Debug)]
pub(super) struct Attachment {
    kind: Kind,
    /// Links of a former agent are here in either case.
    links: tcx::TcxLinks,
    filters: clsact::Filters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Links of Linux 6.6 and later, pinned.
    Tcx,
    /// Filters with a fixed priority and handle.
    Clsact,
}

impl Attachment {
    /// Puts `to_guest` on the service device, and finds out by that which kind of attachment this kernel has. Trying
    /// is more certain than the version number of a kernel that a vendor has changed.
    ///
    /// `others` is where agents of other layouts have their links. Until those are gone they have every frame, which a
    /// newer link changes by coming first and a filter does not: with tags of other maps guests would be mistaken.
    pub(super) fn establish(
        mode: AttachMode,
        links: PathBuf,
        others: &[PathBuf],
        to_guest: &mut SchedClassifier,
        service: &Device,
    ) -> Result<Self, Error> {
        let mut attachment =
            Self { kind: Kind::Tcx, links: tcx::TcxLinks::new(links), filters: clsact::Filters::default() };
        if mode != AttachMode::Clsact {
            match attachment.attach(to_guest, SERVICE, service) {
                Ok(()) => {
                    info!("programs are attached by TCX links");
                    return Ok(attachment);
                }
                Err(Error::Attach { unsupported: true, .. }) if mode == AttachMode::Auto => {}
                Err(Error::Attach { unsupported: true, .. }) => return Err(Error::NoTcx),
                Err(error) => return Err(error),
            }
        }
        if let Some(path) = others.iter().map(|links| links.join(SERVICE)).find(|link| link.exists()) {
            return Err(Error::Links { path });
        }
        attachment.kind = Kind::Clsact;
        attachment.attach(to_guest, SERVICE, service)?;
        info!("programs are attached as filters of clsact qdiscs");
        Ok(attachment)
    }

    /// Puts the program on a device's ingress; replaces a former one in one step. One that was attached in the other way
    /// goes afterwards: with both there a frame meets the link first, which either takes it or lets it pass to a filter
    /// that does the same.
    pub(super) fn attach(
        &mut self,
        program: &mut SchedClassifier,
        name: &str,
        device: &Device,
    ) -> Result<(), Error> {
        match self.kind {
            Kind::Tcx => {
                self.links.attach(program, name, device)?;
                // A link that is held is one whose device has no filter.
                self.filters.detach(device.ifindex).inspect_err(|_| self.links.let_go(name))
            }
            Kind::Clsact => {
                self.filters.attach(program, device)?;
                self.links.detach(name).map(drop)
            }
        }
    }

    /// Takes it off a device, which may be gone already.
    pub(super) fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        let was_held = self.links.detach(&ifindex.to_string())?;
        // Where a link is held its attachment has removed a filter. To ask for one would wait until the link has ended.
        if was_held { Ok(()) } else { self.filters.detach(ifindex) }
    }

    /// Ends the link of another agent in its turn.
    pub(super) fn end(&self, link: FdLink) {
        self.links.end(link);
    }

    /// Those of the devices that have lost the program, or its pin. The kernel is asked, and not what was done.
    pub(super) fn lacking(
        &self,
        program: &SchedClassifier,
        pin: impl Fn(&Device) -> String,
        devices: &[Device],
    ) -> Result<Vec<u32>, Error> {
        match self.kind {
            Kind::Tcx => {
                let lacks = |device: &&Device| {
                    // A device that is gone is told of by netlink.
                    !self.links.has(program, &pin(device), device).unwrap_or(true)
                };
                Ok(devices.iter().filter(lacks).map(|device| device.ifindex).collect())
            }
            Kind::Clsact => clsact::lacking(devices).map_err(Error::Devices),
        }
    }

    /// Tells whether the kernel says that a tap has the program.
    pub(super) fn is_on(&self, program: &SchedClassifier, tap: &Device) -> bool {
        match self.kind {
            Kind::Tcx => self.links.has(program, &pin(tap), tap).unwrap_or(false),
            Kind::Clsact => clsact::is_on(tap),
        }
    }

    /// Interface indexes of devices that have the program, as far as that is on record.
    pub(super) fn attached(&self) -> Result<Vec<u32>, Error> {
        Ok(self.links.names()?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// True if others can remove the programs, so that it has to be watched.
    pub(super) fn is_removable(&self) -> bool {
        self.kind == Kind::Clsact
    }
}

/// Takes the filters off all devices but those to keep, whatever kind of attachment is in use. No pin takes them along,
/// and the maps that say where they are may be of another layout.
pub(super) fn remove_filters(keep: impl Fn(u32) -> bool) -> Result<(), Error> {
    let devices = if_nameindex().map_err(|errno| Error::Devices(errno.into()))?;
    devices.iter().map(Interface::index).filter(|ifindex| !keep(*ifindex)).try_for_each(clsact::detach)
}

/// Name of a tap's link.
pub(super) fn pin(device: &Device) -> String {
    device.ifindex.to_string()
}

/// Name of the service device's link.
pub(super) const SERVICE: &str = "service";

fn explain(device: &Device, error: &(dyn StdError + 'static)) -> Error {
    let errno = io_error(error).and_then(io::Error::raw_os_error);
    Error::Attach {
        device: device.name.clone(),
        ifindex: device.ifindex,
        reason: chain(error),
        unsupported: errno == Some(nix::libc::EINVAL),
    }
}

/// aya attaches by name: between the netlink message and now another device may have taken it. The wrong one would not
/// be served as anybody, since identity is by index, but the right one would not be served at all.
///
/// To be asked before aya looks for the device as well: a name that no device has makes the kernel run modprobe for it
/// (`dev_load` in `dev_ioctl`), and wait, where an index does not.
fn check_name(device: &Device) -> Result<(), Error> {
    let name = if_indextoname(device.ifindex);
    if name.is_ok_and(|name| name.as_bytes() == device.name.as_bytes()) {
        return Ok(());
    }
    Err(Error::Attach {
        device: device.name.clone(),
        ifindex: device.ifindex,
        reason: "the device is gone, or another one has its name by now".into(),
        unsupported: false,
    })
}

fn io_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}
