//! Preconditions, checked before anything is touched, each with what to do about it.
#![forbid(unsafe_code)]
use std::{
    fs::{DirBuilder, TryLockError},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, bail};
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Gid, Uid, User},
};
use tracing::{info, warn};

use crate::{
    config, files,
    link::{Confinement, EMPTY},
};

/// The lock of a run directory (flock(2)). It belongs to the open file, which a successor inherits, and ends with the last
/// descriptor of that: to unlock it would be for the successor as well.
#[derive(Debug)]
pub struct RunLock(OwnedFd);

impl RunLock {
    /// The one of the agent that this one succeeds.
    pub fn inherited(lock: OwnedFd) -> Self {
        Self(lock)
    }
}

impl AsFd for RunLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// User and group of files that are nobody's (`overflowuid` of proc(5)).
const NOBODY: (Uid, Gid) = (Uid::from_raw(65534), Gid::from_raw(65534));

/// Maps, links, programs, databases and the like.
const OTHER_DESCRIPTORS: u64 = 1024;

/// The capabilities that are needed: number in linux/capability.h, name, why.
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (10, "CAP_NET_BIND_SERVICE", "to listen on port 80"),
    (12, "CAP_NET_ADMIN", "to make the service device and to attach programs"),
    (21, "CAP_SYS_ADMIN", "to make the service namespace and to mount a BPF file system"),
    (39, "CAP_BPF", "to load programs"),
];

/// Helpers that the programs need and not every kernel has: the helper, its name, and the version that brought it.
const HELPERS: [(BpfHelper, &str, &str); 2] = [
    (BpfHelper::BPF_FUNC_spin_lock, "bpf_spin_lock", "5.1"),
    (BpfHelper::BPF_FUNC_redirect_peer, "bpf_redirect_peer", "5.10"),
];

/// Names everything that the kernel lacks. It is asked, since vendors' kernels have more than their version tells.
pub fn check_kernel() -> anyhow::Result<()> {
    let has = |helper| is_helper_supported(ProgramType::SchedClassifier, helper);
    let missing = lacking(has).context("the kernel loads no eBPF programs (is it locked down?)")?;
    if !missing.is_empty() {
        bail!(
            "this kernel cannot run the datapath programs, which need Linux 5.10: it lacks {}",
            missing.join(" and ")
        );
    }
    Ok(())
}

fn lacking<E>(has: impl Fn(BpfHelper) -> Result<bool, E>) -> Result<Vec<String>, E> {
    let mut missing = Vec::new();
    for (helper, name, version) in HELPERS {
        if !has(helper)? {
            missing.push(format!("{name} (Linux {version})"));
        }
    }
    Ok(missing)
}

/// Names every capability that is missing.
pub fn check_capabilities() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let missing = missing(&status)?;
    if !missing.is_empty() {
        bail!("the agent lacks {}; run it as root, or grant these", missing.join(" and "));
    }
    Ok(())
}

/// Makes room for that many connections of guests, each of which may need one to Nova too.
pub fn allow_connections(count: u32) -> anyhow::Result<()> {
    let wanted = 2 * u64::from(count) + OTHER_DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft >= wanted {
        return Ok(());
    }
    // Root may raise both; others get as far as the hard limit.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted.max(hard));
    raised
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard))
        .context("cannot raise the limit of open files")?;
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        warn!(
            limit = soft,
            wanted,
            "too few open files for all connections: raise LimitNOFILE, or lower [metadata_ebpf] connections"
        );
    }
    Ok(())
}

fn missing(status: &str) -> anyhow::Result<Vec<String>> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.context("/proc/self/status has no CapEff line")?;
    let effective = u64::from_str_radix(effective.trim(), 16).context("CapEff is no hexadecimal number")?;
    let lacks = |number: u32| effective & (1 << number) == 0;
    Ok(CAPABILITIES
        .iter()
        .filter(|(number, ..)| lacks(*number))
        .map(|(_, name, why)| format!("{name} ({why})"))
        .collect())
}

/// Makes the run directory and takes its lock: two agents with one set of pins would undo each other's work. Nothing if
/// another agent has it.
pub fn lock(run_dir: &Path) -> anyhow::Result<Option<RunLock>> {
    let at = || run_dir.display().to_string();
    // One that is there keeps its mode: it may be somebody else's as well.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .with_context(|| format!("cannot make the run directory {}", at()))?;
    let file =
        files::open_lock(&run_dir.join("lock")).with_context(|| format!("cannot open {}/lock", at()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(RunLock(file.into()))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}/lock", at())),
    }
}

/// User and root of the guest-facing process. Its root is an empty folder in the run directory.
pub fn confinement(run_dir: &Path, user: &str) -> anyhow::Result<Confinement> {
    let root = run_dir.join(EMPTY);
    // For everybody to enter, and for nobody to write to.
    match DirBuilder::new().mode(0o555).create(&root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {}", root.display()));
        }
        _ => {}
    }
    let is_empty = root.symlink_metadata().is_ok_and(|folder| folder.is_dir())
        && root.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        bail!("{} must be an empty folder: it is the root of the guest-facing process", root.display());
    }
    let (uid, gid) = match User::from_name(user) {
        Ok(Some(user)) => (user.uid, user.gid),
        Ok(None) if user == config::GUEST_USER => {
            info!(user, "there is no such user, the guest-facing process is nobody's");
            (NOBODY.0, NOBODY.1)
        }
        Ok(None) => bail!("[metadata_ebpf] guest_user = {user}: there is no such user"),
        Err(error) => bail!("[metadata_ebpf] guest_user = {user} cannot be looked up: {error}"),
    };
    if uid.is_root() {
        bail!("[metadata_ebpf] guest_user = {user} is root, which the guest-facing process must not be");
    }
    Ok(Confinement { uid: uid.as_raw(), gid: gid.as_raw(), root })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing("Name:\tx\nCapEff:\t000001ffffffffff\n").unwrap(), Vec::<String>::new());
        let missing = missing("CapEff:\t0000000000001000\n").unwrap();
        assert_eq!(missing.len(), 3);
        assert!(missing[0].starts_with("CAP_NET_BIND_SERVICE"), "{missing:?}");
    }

    #[test]
    fn missing_helpers_are_named() {
        let all = |_| Ok::<_, ()>(true);
        assert_eq!(lacking(all), Ok(vec![]));
        let old = |helper| Ok::<_, ()>(helper != BpfHelper::BPF_FUNC_redirect_peer);
        assert_eq!(lacking(old), Ok(vec!["bpf_redirect_peer (Linux 5.10)".to_owned()]));
        assert_eq!(lacking(|_| Err("no bpf here")), Err("no bpf here"));
    }
}
