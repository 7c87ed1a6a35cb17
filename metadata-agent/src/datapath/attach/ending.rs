//! Ending links, one after another.
//!
//! The kernel takes a TCX link off its device under its RTNL lock, and waits for an RCU grace period meanwhile, which is some
//! ten milliseconds. If what refers to a link last is a pin, a worker of the kernel's does so, one for each link: a thousand
//! pins that are removed at once are a thousand that queue for the lock before whoever comes next. If it is a descriptor,
//! who closes it does (`bpf_link_put_direct`).
use std::{
    collections::VecDeque,
    fs, io, mem,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::programs::links::{FdLink, PinnedLink};

/// Links that wait for a thread to end them.
#[derive(Debug, Default)]
struct Queue {
    links: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Each with the name of the pin that this agent had for it.
    links: VecDeque<(Option<String>, FdLink)>,
    /// Name of the one that the thread is ending.
    ending: Option<String>,
    /// True once nobody adds any.
    is_over: bool,
}

/// A thread that ends links.
#[derive(Debug)]
pub(super) struct Endings(Arc<Queue>);

impl Endings {
    pub(super) fn start() -> Self {
        let queue = Arc::<Queue>::default();
        let ending = queue.clone();
        // Without a thread they wait until whoever needs their devices ends them.
        let _ = thread::Builder::new().name("metadata-links".to_owned()).spawn(move || ending.end_all());
        Self(queue)
    }

    /// Ends a link in its turn. Nobody waits for that.
    pub(super) fn end(&self, name: Option<&str>, link: FdLink) {
        self.0.lock().links.push_back((name.map(str::to_owned), link));
        self.0.changed.notify_all();
    }

    /// Has no link of that name wait any more.
    pub(super) fn finish(&self, name: &str) {
        let mut waiting = self.0.lock();
        let is_meant = |of: &Option<String>| of.as_deref() == Some(name);
        let (meant, others) = mem::take(&mut waiting.links).into_iter().partition(|(of, _)| is_meant(of));
        waiting.links = others;
        while is_meant(&waiting.ending) {
            waiting = self.0.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        drop(waiting);
        // The kernel ends them meanwhile.
        drop::<VecDeque<_>>(meant);
    }
}

impl Drop for Endings {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_all(&self) {
        let mut waiting = self.lock();
        loop {
            if let Some((name, link)) = waiting.links.pop_front() {
                waiting.ending = name;
                drop(waiting);
                drop(link);
                waiting = self.lock();
                waiting.ending = None;
                self.changed.notify_all();
            } else if waiting.is_over {
                return;
            } else {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
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
