//! Ending links, one after another.
//!
//! The kernel takes a TCX link off its device under its RTNL lock, and waits for an RCU grace period meanwhile, which is some
//! ten milliseconds. If what refers to a link last is a pin, a worker of the kernel's does so, one for each link: a thousand
//! pins that are removed at once are a thousand that queue for the lock before whoever comes next. If it is a descriptor,
//! who closes it does (`bpf_link_put_direct`).
use std::{
    fs, io,
    path::Path,
    sync::mpsc::{self, Sender},
    thread,
};

use aya::programs::links::{FdLink, PinnedLink};

/// A thread that ends links.
#[derive(Debug)]
pub(super) struct Endings(Sender<FdLink>);

impl Endings {
    pub(super) fn start() -> Self {
        let (queue, links) = mpsc::channel::<FdLink>();
        // Without a thread nobody takes them, and each ends where it was to be sent.
        let _ = thread::Builder::new().name("metadata-links".to_owned()).spawn(move || {
            for link in links {
                drop(link);
            }
        });
        Self(queue)
    }

    /// Ends a link in its turn. Nobody waits for that.
    pub(super) fn end(&self, link: FdLink) {
        let _ = self.0.send(link);
    }
}

/// Removes all pins of links in a folder, which may not be there.
pub(in crate::datapath) fn unpin_all(folder: &Path, end: impl Fn(FdLink)) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let link = PinnedLink::from_pin(&path);
        fs::remove_file(&path)?;
        if let Ok(link) = link {
            end(link.into());
        }
    }
    Ok(())
}
