//! Mounts that have to outlive the process: in a container, or under a service manager that gives one a mount namespace of its
//! own, they do only where the folder is a shared mount of the host's (mount_namespaces(7)).
#![forbid(unsafe_code)]
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Inodes that the first mount namespace has: since Linux 6.18 (`MNT_NS_INIT_INO`), and before that one of the first numbers
/// that were given out (`PROC_DYNAMIC_FIRST` of fs/proc/generic.c).
const FIRST: [u64; 3] = [0xEFFF_FFF8, 0xF000_0000, 0xF000_0001];

/// A folder whose mounts stay in this mount namespace.
#[derive(Debug, thiserror::Error)]
#[error(
    "what is mounted below {folder} would end with this {place}, and the next agent would not find it: the mount {mount} is not \
     shared with the host's; in a container, mount it as in `--volume {folder}:{folder}:shared`, and in a unit leave out what \
     gives it a mount namespace (ProtectSystem=, PrivateTmp= and the like)",
    folder = .folder.display(), mount = .mount.display(), place = .place
)]
pub struct Unshared {
    folder: PathBuf,
    mount: PathBuf,
    place: &'static str,
}

/// Checks folders below which something is mounted that the next agent has to find.
pub fn check(folders: &[&Path]) -> io::Result<Result<(), Unshared>> {
    let Some(place) = place()? else { return Ok(Ok(())) };
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let unshared = folders.iter().find_map(|folder| {
        let mount = unshared(&mounts, folder)?;
        Some(Unshared { folder: (*folder).to_owned(), mount, place })
    });
    Ok(unshared.map_or(Ok(()), Err))
}

/// The place that we are in, if it has mounts of its own.
fn place() -> io::Result<Option<&'static str>> {
    if std::process::id() == 1 {
        return Ok(Some("container"));
    }
    let own = fs::metadata("/proc/self/ns/mnt")?.ino();
    let is_other = match fs::metadata("/proc/1/ns/mnt") {
        Ok(first) => first.ino() != own,
        // Not everybody may ask for the first process'.
        Err(_) => !FIRST.contains(&own),
    };
    Ok(is_other.then_some("mount namespace"))
}

/// The mount that a folder is in, if it is not shared.
fn unshared(mountinfo: &str, folder: &Path) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        // proc(5): id, parent, device, root, mount point, options, optional fields up to a dash.
        let mut fields = line.split(' ').skip(4);
        let point = PathBuf::from(fields.next()?.replace("\\040", " "));
        let is_shared =
            fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        folder.starts_with(&point).then_some((point, is_shared))
    });
    // Of several at one place the last one is on top.
    let (point, is_shared) = mounts.max_by_key(|(point, _)| point.as_os_str().len())?;
    (!is_shared).then_some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "1 0 0:1 / / rw,relatime - overlay overlay rw\n\
        2 1 0:2 /netns /run/netns rw,nosuid shared:7 - tmpfs tmpfs rw\n\
        3 1 0:3 /run /run/metadata-agent rw master:9 - tmpfs tmpfs rw\n\
        4 1 0:3 / /a\\040b rw shared:9 master:2 - tmpfs tmpfs rw\n";

    #[test]
    fn the_innermost_mount_counts() {
        let of = |folder: &str| unshared(MOUNTS, Path::new(folder));
        assert_eq!(of("/run/netns"), None);
        assert_eq!(of("/a b/c"), None);
        assert_eq!(of("/run/netnsx"), Some("/".into()));
        assert_eq!(of("/run/metadata-agent"), Some("/run/metadata-agent".into()));
        let hidden = format!("{MOUNTS}5 1 0:5 / /run/netns rw - tmpfs tmpfs rw\n");
        assert_eq!(unshared(&hidden, Path::new("/run/netns")), Some("/run/netns".into()));
    }
}
