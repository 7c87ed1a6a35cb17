//! The BPF file system under the run directory, where maps and links are pinned.
//!
//! `/sys/fs/bpf` is often not mounted (containers, test machines), and each mount is an instance of its own: one below
//! the run directory is there whenever the agent is, and two agents cannot meet in it.
#![forbid(unsafe_code)]
use std::{fs, path::Path, path::PathBuf};

use aya::programs::links::FdLink;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount as mount_fs, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{Error, LINKS, attach::unpin_all};

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
            // One after another, here: there is nothing else to do.
            clear(path, None, drop)?;
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

/// Removes the folders in `root` with all they hold, but for one, and has the links that were pinned there ended; returns
/// whether there were any folders.
pub(super) fn clear(root: &Path, keep: Option<&Path>, end: impl Fn(FdLink)) -> Result<bool, Error> {
    let mut folders = folders(root)?;
    folders.retain(|folder| Some(folder.as_path()) != keep);
    for folder in &folders {
        let removed = unpin_all(&folder.join(LINKS), &end).and_then(|()| fs::remove_dir_all(folder));
        removed.map_err(|error| Error::Bpffs { path: folder.clone(), error })?;
    }
    Ok(!folders.is_empty())
}
