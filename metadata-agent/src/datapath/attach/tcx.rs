//! TCX links: attaching, adopting what a former agent pinned, detaching.
//!
//! A link lives as long as its pin, our descriptor or its device: the pins outlive an agent that dies, and the
//! descriptors a BPF file system that somebody cleans up. A TCX link (Linux 6.6, commit e420bed02507) is no qdisc:
//! neither Open vSwitch nor a `tc qdisc del` removes it.
use std::{collections::HashMap, error::Error as StdError, fs, io, path::PathBuf};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use tracing::debug;

use super::{check_name, ending::Endings, explain};
use crate::datapath::{Device, Error};

/// The pinned links of one agent.
#[derive(Debug)]
pub(in crate::datapath) struct TcxLinks {
    folder: PathBuf,
    /// By the names of their pins.
    held: HashMap<String, FdLink>,
    /// Those that are to go.
    endings: Endings,
}

impl TcxLinks {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, held: HashMap::new(), endings: Endings::start() }
    }

    /// Ends the link of another agent in its turn.
    pub(super) fn end(&self, link: FdLink) {
        self.endings.end(None, link);
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
        &mut self,
        program: &mut SchedClassifier,
        name: &str,
        device: &Device,
    ) -> Result<(), Error> {
        let failed = |error: &(dyn StdError + 'static)| explain(device, error);
        let link = match self.live(name, device)? {
            Some(link) => {
                let ours = program.info().map_err(|error| failed(&error))?.id();
                if link.info().map_err(|error| failed(&error))?.program_id() == ours {
                    link
                } else {
                    let link = SchedClassifierLink::try_from(link).map_err(|error| failed(&error))?;
                    let id = program.attach_to_link(link).map_err(|error| failed(&error))?;
                    debug!(device = device.name, "adopted a pinned link");
                    let link = program.take_link(id).map_err(|error| failed(&error))?;
                    FdLink::try_from(link).map_err(|error| failed(&error))?
                }
            }
            None => {
                self.detach(name)?;
                check_name(device)?;
                let options = TcAttachOptions::TcxOrder(LinkOrder::first());
                // A link that waits for its end still has the program there, and the kernel takes none twice
                // (`bpf_mprog_attach`).
                self.endings.finish(name);
                let id = program
                    .attach_with_options(&device.name, TcAttachType::Ingress, options)
                    .map_err(|error| failed(&error))?;
                let link = program.take_link(id).map_err(|error| failed(&error))?;
                check_name(device)?;
                FdLink::try_from(link).map_err(|error| failed(&error))?
            }
        };
        let path = self.folder.join(name);
        let link = if path.exists() {
            link
        } else {
            let pinned = link.pin(&path);
            pinned.map_err(|error| Error::Pin { path, error: io::Error::other(error) })?.into()
        };
        self.held.insert(name.to_owned(), link);
        Ok(())
    }

    /// Tells whether the device has the program, under that pin.
    pub(super) fn has(&self, program: &SchedClassifier, name: &str, device: &Device) -> Result<bool, Error> {
        if !self.folder.join(name).exists() {
            return Ok(false);
        }
        check_name(device)?;
        let ours = program.info().map_err(|error| explain(device, &error))?.id();
        attached_to(device, ours)
    }

    /// Removes the pin; the link ends in its turn. Tells whether it was held.
    pub(super) fn detach(&mut self, name: &str) -> Result<bool, Error> {
        let path = self.folder.join(name);
        let held = self.held.remove(name);
        let was_held = held.is_some();
        let link = held.or_else(|| Some(PinnedLink::from_pin(&path).ok()?.into()));
        let removed = fs::remove_file(&path);
        if let Some(link) = link {
            self.endings.end(Some(name), link);
        }
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Pin { path, error }),
            _ => Ok(was_held),
        }
    }

    /// Leaves a link to its pin.
    pub(super) fn let_go(&mut self, name: &str) {
        self.held.remove(name);
    }

    /// The link that is held or pinned, if it is still attached to this very device: the device's programs include the
    /// link's.
    fn live(&mut self, name: &str, device: &Device) -> Result<Option<FdLink>, Error> {
        let link = match self.held.remove(name) {
            Some(link) => link,
            None => {
                let path = self.folder.join(name);
                if !path.exists() {
                    return Ok(None);
                }
                let Ok(pinned) = PinnedLink::from_pin(path) else { return Ok(None) };
                FdLink::from(pinned)
            }
        };
        let program = link.info().map_err(|error| explain(device, &error))?.program_id();
        if check_name(device).is_err() {
            return Ok(None);
        }
        Ok(attached_to(device, program)?.then_some(link))
    }
}

/// Tells whether a program, by its id, is among those of the device.
fn attached_to(device: &Device, program: u32) -> Result<bool, Error> {
    let attached = SchedClassifier::query_tcx(&device.name, TcAttachType::Ingress)
        .map_err(|error| explain(device, &error))?;
    Ok(attached.1.iter().any(|info| info.id() == program))
}
