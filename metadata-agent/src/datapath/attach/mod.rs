//! Putting the programs on devices: by TCX links where the kernel has them, else as filters of a clsact qdisc.
mod clsact;
mod tcx;

use std::{error::Error as StdError, io, path::PathBuf};

use aya::programs::SchedClassifier;
use nix::net::if_::{Interface, if_nameindex};
use tracing::info;

use super::{Device, Error};
use crate::{config::AttachMode, error_chain::chain};

/// How programs are put on devices.
#[derive(Debug)]
pub(super) enum Attachment {
    /// Links of Linux 6.6 and later, pinned.
    Tcx(tcx::Links),
    /// Filters with a fixed priority and handle.
    Clsact,
}

impl Attachment {
    /// Puts `to_guest` on the service device, and finds out by that which kind of attachment this kernel has. Trying
    /// is more certain than the version number of a kernel that a vendor has changed.
    pub(super) fn establish(
        mode: AttachMode,
        links: PathBuf,
        to_guest: &mut SchedClassifier,
        service: &Device,
    ) -> Result<Self, Error> {
        let tcx = Self::Tcx(tcx::Links::new(links));
        if mode != AttachMode::Clsact {
            match tcx.attach(to_guest, SERVICE, service) {
                Ok(()) => {
                    info!("programs are attached by TCX links");
                    return Ok(tcx);
                }
                Err(Error::Attach { unsupported: true, .. }) if mode == AttachMode::Auto => {}
                Err(error) => return Err(error),
            }
        }
        clsact::attach(to_guest, service)?;
        info!("programs are attached as filters of clsact qdiscs");
        Ok(Self::Clsact)
    }

    /// Puts the program on a device's ingress; replaces a former one in one step.
    pub(super) fn attach(
        &self,
        program: &mut SchedClassifier,
        name: &str,
        device: &Device,
    ) -> Result<(), Error> {
        match self {
            Self::Tcx(links) => links.attach(program, name, device),
            Self::Clsact => clsact::attach(program, device),
        }
    }

    /// Takes it off a device, which may be gone already.
    pub(super) fn detach(&self, ifindex: u32) -> Result<(), Error> {
        match self {
            Self::Tcx(links) => links.detach(&ifindex.to_string()),
            Self::Clsact => clsact::detach(ifindex),
        }
    }

    /// Interface indexes of devices that have the program, as far as that is on record.
    pub(super) fn attached(&self) -> Result<Vec<u32>, Error> {
        match self {
            Self::Tcx(links) => Ok(links.names()?.iter().filter_map(|name| name.parse().ok()).collect()),
            Self::Clsact => Ok(Vec::new()),
        }
    }

    /// Whether others can remove the programs, so that it has to be watched.
    pub(super) fn is_removable(&self) -> bool {
        matches!(self, Self::Clsact)
    }
}

/// Takes the filters off all devices but those to keep, whatever kind of attachment is in use. No pin takes them along,
/// and the maps that say where they are may be of another layout.
pub(super) fn remove_filters(keep: impl Fn(u32) -> bool) -> Result<(), Error> {
    let devices = if_nameindex().map_err(|errno| Error::Devices(errno.into()))?;
    devices.iter().map(Interface::index).filter(|ifindex| !keep(*ifindex)).try_for_each(clsact::detach)
}

/// Name of the service device's link.
const SERVICE: &str = "service";

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
fn check_name(device: &Device) -> Result<(), Error> {
    if nix::net::if_::if_nametoindex(device.name.as_str()).ok() == Some(device.ifindex) {
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
