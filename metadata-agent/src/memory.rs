//! Memory goes back to the system after a burst.
//!
//! glibc keeps what is freed in the middle of a heap, since somebody may want it again, and a burst of requests leaves
//! small things that live on between large ones that are gone.
#![allow(unsafe_code, reason = "a function of glibc's")]
use std::{fs::File, io, os::unix::fs::FileExt as _, thread, time::Duration};

use nix::unistd::{SysconfVar, sysconf};
use tracing::{debug, warn};

/// Period of the look whether there was a burst, and the longest it becomes while what is in use is in use.
const LOOK: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Threshold of growth beyond which the walk through all heaps, during which their threads wait, is worth its cost.
const WORTH: u64 = 16 << 20;

/// Memory of this process, and how much of it is in use.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    /// Opens what tells: a process that is confined later on has no /proc.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/statm")?))
    }

    /// Looks after it for as long as the process runs, on a thread of its own: everybody else has other things to do while
    /// heaps are walked through.
    pub fn give_back_after_bursts(self) -> io::Result<()> {
        let watch = move || {
            if let Err(error) = watch(&self.0) {
                warn!(%error, "cannot tell how much memory is in use: none is given back");
            }
        };
        thread::Builder::new().name("memory".to_owned()).spawn(watch).map(drop)
    }
}

fn watch(statm: &File) -> io::Result<()> {
    let mut look = LOOK.0;
    // Guests may begin a burst before the start is over.
    let mut least = resident(statm)?;
    // A start is a burst as well: contents of databases come whole, and what describes the kernel's types is read.
    thread::sleep(look);
    trim();
    loop {
        thread::sleep(look);
        let now = resident(statm)?;
        least = least.min(now);
        if now - least < WORTH {
            look = LOOK.0;
            continue;
        }
        trim();
        let after = resident(statm)?;
        // During a burst nothing can be given back yet, and it may last.
        look = if after < now - WORTH / 2 { LOOK.0 } else { LOOK.1.min(2 * look) };
        debug!(before = now, after, "gave memory back");
    }
}

fn resident(statm: &File) -> io::Result<u64> {
    let mut text = [0; 128];
    let length = statm.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..length]);
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|page| u64::try_from(page).ok());
    let (Some(pages), Some(page)) = (pages, page) else {
        return Err(io::Error::other(format!("/proc/self/statm is {text:?}")));
    };
    Ok(pages * page)
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes locks of its own, and touches nothing that is in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
