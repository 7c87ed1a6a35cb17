//! Meter of processes and threads, as the kernel accounts for them.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

/// The processor time of all threads of a process.
pub fn cpu(process: u32) -> Result<Duration> {
    threads(process, |_| true)
}

/// The processor time of those threads of this process that have one of these names.
pub fn cpu_of_threads(names: &[&str]) -> Result<Duration> {
    threads(std::process::id(), |name| names.contains(&name))
}

fn threads(process: u32, counts: impl Fn(&str) -> bool) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = thread?.path();
        let read = |file: &str| fs::read_to_string(path.join(file));
        // A thread may end meanwhile.
        let (Ok(name), Ok(text)) = (read("comm"), read("schedstat")) else { continue };
        if counts(name.trim_end()) {
            let nanoseconds = text.split_whitespace().next().context("schedstat")?.parse()?;
            sum += Duration::from_nanos(nanoseconds);
        }
    }
    Ok(sum)
}

/// A process' memory, in bytes.
pub fn memory(process: u32) -> Result<u64> {
    let text = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kibibytes: u64 = line.split_whitespace().next().context("VmRSS")?.parse()?;
    Ok(kibibytes * 1024)
}
