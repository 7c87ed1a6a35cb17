//! The BPF file system under the run directory, where maps and links are pinned.
//!
//! `/sys/fs/bpf` is often not mounted (containers, test machines), and each mount is an instance of its own: one below
//! the run directory is there whenever the agent is, and two agents cannot meet in it.
#![forbid(unsafe_code)]
use std::{fs, path::Path, path::PathBuf};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount as mount_fs, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::Error;

/// Mounts a BPF file system at `path` unless it has one; returns where it is.
pub(super) fn mount(path: &Path) -> Result<PathBuf, Error> {
    let failed = |error: std::io::Error| Error::Bpffs { path: path.into(), error };
    fs::create_dir_all(path).map_err(failed)?;
    if !is_bpffs(path).map_err(|errno| failed(errno.into()))? {
        let options = Some("mode=0700");
        mount_fs(Some("bpf"), path, Some("bpf"), MsFlags::empty(), options)
            .map_err(|errno| failed(errno.into()))?;
    }
    Ok(path.into())
}

/// Removes what is pinned at `path`, and the file system if it is mounted there.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Bpffs { path: path.into(), error };
    match is_bpffs(path) {
        Ok(true) => {
            clear(path, None)?;
            match umount2(path, MntFlags::MNT_DETACH) {
                // A folder on a BPF file system that is mounted elsewhere.
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(false) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// True if this process sees pins in a run directory, as a running agent has them.
pub fn has_pins(run_dir: &Path) -> bool {
    is_bpffs(&run_dir.join("bpf")).is_ok_and(|is| is)
}

/// Why what is mounted in the run directory is not what the rest of the host sees, if so: an agent that has a view of mounts of
/// its own, as in a container, keeps there what the next one is to find.
pub fn unshared(run_dir: &Path) -> Option<String> {
    let view = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (own, first) = (view("self")?, view("1")?);
    if own == first {
        return None;
    }
    let run_dir = fs::canonicalize(run_dir).ok()?;
    let (point, is_shared) = propagation(&fs::read_to_string("/proc/self/mountinfo").ok()?, &run_dir)?;
    (!is_shared).then(|| {
        format!(
            "the run directory {} is on a mount ({}) that is not shared with the host",
            run_dir.display(),
            point.display()
        )
    })
}

/// The mount that a path is on, and whether what is mounted below is seen by others (proc_pid_mountinfo(5)).
fn propagation(mounts: &str, path: &Path) -> Option<(PathBuf, bool)> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        let point = PathBuf::from(fields.next()?);
        let is_shared =
            fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        path.starts_with(&point).then_some((point, is_shared))
    });
    // Of those of one depth the last covers the others.
    mounts.max_by_key(|(point, _)| point.components().count())
}

fn is_bpffs(path: &Path) -> Result<bool, Errno> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// The folders in `root`. Files are none of ours: the kernel puts iterators of its own in there (`maps.debug`, with
/// CONFIG_BPF_PRELOAD), which cannot be removed.
pub(super) fn folders(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    };
    list().map_err(|error| Error::Bpffs { path: root.into(), error })
}

/// Removes the folders in `root` with all they hold, but for one; returns whether there were any.
pub(super) fn clear(root: &Path, keep: Option<&Path>) -> Result<bool, Error> {
    let mut folders = folders(root)?;
    folders.retain(|folder| Some(folder.as_path()) != keep);
    for folder in &folders {
        fs::remove_dir_all(folder).map_err(|error| Error::Bpffs { path: folder.clone(), error })?;
    }
    Ok(!folders.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_the_deepest_and_the_last() {
        let mounts = "\
            24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            25 24 0:20 / /run rw shared:2 master:1 - tmpfs tmpfs rw\n\
            26 25 0:21 / /run/agent rw master:3 - tmpfs tmpfs rw\n\
            27 25 0:22 / /run/agents rw shared:9 - tmpfs tmpfs rw\n";
        let of = |path: &str| propagation(mounts, Path::new(path)).unwrap().1;
        assert_eq!(
            [of("/etc"), of("/run/x"), of("/run/agent/bpf"), of("/run/agents")],
            [true, true, false, true]
        );
    }
}
