//! Memory goes back to the system after a burst.
//!
//! glibc keeps what is freed in the middle of a heap, since somebody may want it again, and a burst of requests leaves
//! small things that live on between large ones that are gone.
#![allow(unsafe_code, reason = "a function of glibc's")]
use std::{io, time::Duration};

use nix::unistd::{SysconfVar, sysconf};
use tracing::{debug, warn};

/// Period of the look whether there was a burst, and the longest it becomes while what is in use is in use.
const LOOK: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Threshold of growth beyond which the walk through all heaps, during which their threads wait, is worth its cost.
const WORTH: u64 = 16 << 20;

/// Looks after it for as long as it runs.
pub async fn give_back_after_bursts() {
    let mut least = resident().unwrap_or(u64::MAX);
    let mut look = LOOK.0;
    loop {
        tokio::time::sleep(look).await;
        let now = match resident() {
            Ok(now) => now,
            Err(error) => {
                warn!(%error, "cannot tell how much memory is in use: none is given back");
                return;
            }
        };
        least = least.min(now);
        if now - least < WORTH {
            look = LOOK.0;
            continue;
        }
        // On a thread of its own: the control plane has other things to do meanwhile.
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
        let after = resident().unwrap_or(now);
        // During a burst nothing can be given back yet, and it may last.
        look = if after < now - WORTH / 2 { LOOK.0 } else { LOOK.1.min(2 * look) };
        debug!(before = now, after, "gave memory back");
    }
}

fn resident() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
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
