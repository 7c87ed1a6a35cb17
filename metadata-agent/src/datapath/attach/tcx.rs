//! TCX links: attaching, adopting what a former agent pinned, detaching.
//!
//! The pins are the state. A link lives as long as its pin (or its device), so nothing is kept open here and nothing is
//! lost when the agent dies. A TCX link (Linux 6.6, commit e420bed02507) is no qdisc: neither Open vSwitch nor a
//! `tc qdisc del` removes it.
use std::{
    error::Error as StdError,
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use tracing::debug;

use super::{check_name, explain};
use crate::datapath::{Device, Error};

/// The pinned links of one agent.
#[derive(Debug)]
pub(in crate::datapath) struct Links {
    folder: PathBuf,
}

impl Links {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Names of the pins.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let list = || -> io::Result<Vec<String>> {
            fs::read_dir(&self.folder)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        list().map_err(|error| Error::Pin { path: self.folder.clone(), error })
    }

    /// Puts the program on a device's ingress under the pin `name`, as the first of the device's programs. A live link
    /// under that name gets the program instead, in one step; a dead one is replaced.
    pub(super) fn attach(
        &self,
        program: &mut SchedClassifier,
        name: &str,
        device: &Device,
    ) -> Result<(), Error> {
        let failed = |error: &(dyn StdError + 'static)| explain(device, error);
        let path = self.folder.join(name);
        if let Some(link) = self.live(&path, device)? {
            let ours = program.info().map_err(|error| failed(&error))?.id();
            if link.info().map_err(|error| failed(&error))?.program_id() != ours {
                let link = SchedClassifierLink::try_from(link).map_err(|error| failed(&error))?;
                let id = program.attach_to_link(link).map_err(|error| failed(&error))?;
                keep(program.take_link(id).map_err(|error| failed(&error))?)
                    .map_err(|error| failed(&error))?;
                debug!(device = device.name, "adopted a pinned link");
            }
            return Ok(());
        }
        self.detach(name)?;
        check_name(device)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program
            .attach_with_options(&device.name, TcAttachType::Ingress, options)
            .map_err(|error| failed(&error))?;
        let link = program.take_link(id).map_err(|error| failed(&error))?;
        check_name(device)?;
        let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
        let pinned = link.pin(&path);
        pinned.map_err(|error| Error::Pin { path, error: io::Error::other(error) })?;
        Ok(())
    }

    /// Removes the pin; the kernel removes the link a moment later.
    pub(super) fn detach(&self, name: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Pin { path, error }),
            _ => Ok(()),
        }
    }

    /// The pinned link, if it is still attached to this very device: the device's programs include the link's.
    fn live(&self, path: &Path, device: &Device) -> Result<Option<FdLink>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let Ok(pinned) = PinnedLink::from_pin(path) else { return Ok(None) };
        let link = FdLink::from(pinned);
        let program = link.info().map_err(|error| explain(device, &error))?.program_id();
        if check_name(device).is_err() {
            return Ok(None);
        }
        let attached = SchedClassifier::query_tcx(&device.name, TcAttachType::Ingress)
            .map_err(|error| explain(device, &error))?;
        Ok(attached.1.iter().any(|info| info.id() == program).then_some(link))
    }
}

/// Lets go of a link without detaching it: its pin holds it.
fn keep(link: SchedClassifierLink) -> Result<(), LinkError> {
    drop(FdLink::try_from(link)?);
    Ok(())
}
