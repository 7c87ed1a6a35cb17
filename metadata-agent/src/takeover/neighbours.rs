//! Other agents of this network namespace, which has one service device. They are seen by the sockets at which they can be taken
//! over: the kernel tells those of a network namespace with the names that they were bound to.
#![forbid(unsafe_code)]
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

use super::{Error, SOCKET};

/// Sockets of the calling thread's network namespace (unix(7)).
const SOCKETS: &str = "/proc/thread-self/net/unix";
/// It takes connections (`__SO_ACCEPTCON` of linux/net.h).
const LISTENS: u32 = 1 << 16;
/// `SOCK_SEQPACKET`
const SEQPACKET: u32 = 5;

/// An error if an agent of another run directory runs in this network namespace.
pub fn check_alone(run_dir: &Path) -> Result<(), Error> {
    // Who cannot look is not kept from serving.
    let text = fs::read_to_string(SOCKETS).unwrap_or_default();
    let is_own = |folder: &Path| is_same(folder, run_dir).unwrap_or(folder == run_dir);
    match agents(&text).find(|folder| !is_own(folder) && is_users(&folder.join(SOCKET))) {
        Some(run_dir) => Err(Error::Elsewhere { run_dir }),
        None => Ok(()),
    }
}

/// Run directories of the agents that take connections of successors, by the kernel's table.
fn agents(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        // Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        let mut words = line.split_ascii_whitespace().skip(3);
        let flags = u32::from_str_radix(words.next()?, 16).ok()?;
        let kind = u32::from_str_radix(words.next()?, 16).ok()?;
        let path = Path::new(words.nth(2)?);
        let is_meant = flags & LISTENS != 0 && kind == SEQPACKET && path.file_name()? == SOCKET;
        is_meant.then(|| path.parent().map(Path::to_owned))?
    })
}

/// True if that very socket is this process' user's: anybody can bind one of that name.
fn is_users(socket: &Path) -> bool {
    let is_ours = |found: &fs::Metadata| found.file_type().is_socket() && found.uid() == geteuid().as_raw();
    socket.is_absolute() && fs::symlink_metadata(socket).is_ok_and(|found| is_ours(&found))
}

/// True if both are one folder, whatever links lead there.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(one.canonicalize()? == other.canonicalize()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{chown, symlink},
        net::UnixListener,
    };

    use super::*;

    const TABLE: &str = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0005 01 18463 /run/metadata-agent/takeover.sock
0000000000000000: 00000003 00000000 00000000 0005 03 18470 /run/metadata-agent/takeover.sock
0000000000000000: 00000002 00000000 00010000 0001 01 18464 /run/metadata-agent/admin.sock
0000000000000000: 00000002 00000000 00010000 0001 01 18465 /run/somebody/takeover.sock
0000000000000000: 00000002 00000000 00010000 0005 01 18466 @takeover.sock
0000000000000000: 00000002 00000000 00010000 0005 01 18467
0000000000000000: 00000002 00000000 00010000 0005 01 18468 /run/other/takeover.sock
";

    #[test]
    fn agents_are_those_that_take_connections_of_successors() {
        let found: Vec<_> = agents(TABLE).collect();
        assert_eq!(found, [Path::new("/run/metadata-agent"), Path::new("/run/other")]);
        assert_eq!(agents("").count(), 0);
    }

    #[test]
    fn nobody_else_keeps_an_agent_from_starting() {
        let folder = std::env::temp_dir().join(format!("metadata-neighbours-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (socket, file, link) = (folder.join("own"), folder.join("file"), folder.join("link"));
        let _listening = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "").unwrap();
        symlink(&socket, &link).unwrap();
        assert!(is_users(&socket));
        assert!(!is_users(&file) && !is_users(&link) && !is_users(&folder.join("none")));
        assert!(!is_users(Path::new("takeover.sock")));
        if geteuid().is_root() {
            chown(&socket, Some(65534), None).unwrap();
            assert!(!is_users(&socket));
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
