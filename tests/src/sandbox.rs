//! A unique prefix for names and a run directory of that name; those of dead processes are swept away.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};

use crate::command::{Words as _, run};

const PREFIX: &str = "mdt-";
const NAMESPACES: &str = "/run/netns";
/// A unix socket's path has 107 bytes; the longest below a run directory takes some 45 of them.
const LONGEST_ROOT: usize = 40;
const TAIL_LINES: usize = 15;

/// One lab's or stage's share of the machine's names: everything it makes begins with `mdt-<pid>-<n>`.
#[derive(Debug)]
pub struct Sandbox {
    prefix: String,
    dir: PathBuf,
    next_guest: AtomicU32,
}

impl Sandbox {
    pub fn create() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(|| {
            if let Err(error) = sweep() {
                eprintln!("warning: what a dead test run left behind could not be removed: {error:#}");
            }
        });
        let prefix = format!("{PREFIX}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = root().join(&prefix);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::create_dir(dir.join("log"))?;
        Ok(Self { prefix, dir, next_guest: AtomicU32::new(1) })
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// The number of the next guest.
    pub fn next_guest(&self) -> u32 {
        self.next_guest.fetch_add(1, Ordering::Relaxed)
    }

    /// Log of the daemon of that name.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.dir.join("log").join(format!("{daemon}.log"))
    }

    /// The last lines of every log, for the report of a failure.
    pub fn log_tails(&self) -> String {
        let Ok(entries) = fs::read_dir(self.dir.join("log")) else { return String::new() };
        let mut logs: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        logs.sort();
        logs.iter().map(|log| format!("--- {}\n{}\n", log.display(), tail(log))).collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            eprintln!("warning: {} is left behind: {error:#}", self.dir.display());
        }
    }
}

/// The last lines of one log.
pub fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn root() -> PathBuf {
    let root = std::env::temp_dir();
    if root.as_os_str().len() <= LONGEST_ROOT { root } else { PathBuf::from("/tmp") }
}

/// A run directory with whatever is mounted in it (the agent's bpffs).
fn remove(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(target).starts_with(dir) {
            nix::mount::umount(target).with_context(|| format!("cannot unmount {target}"))?;
        }
    }
    fs::remove_dir_all(dir)?;
    Ok(())
}

/// Daemons die with the process that started them; its namespaces and files do not.
fn sweep() -> Result<()> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_orphan(name))
            .collect()
    };
    let mut failures = Vec::new();
    for name in names(Path::new(NAMESPACES)) {
        failures.extend(run(Command::new("ip").words("netns del").arg(&name)).err());
    }
    for name in names(&root()) {
        failures.extend(remove(&root().join(name)).err());
    }
    // Another process may be sweeping the same: what is gone is no failure.
    failures.retain(|error| {
        error
            .downcast_ref::<std::io::Error>()
            .is_none_or(|error| error.kind() != std::io::ErrorKind::NotFound)
    });
    if let Some(error) = failures.into_iter().next() { bail!(error) } else { Ok(()) }
}

fn is_orphan(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
}
