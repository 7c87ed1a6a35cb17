//! Other agents of this network namespace, which has one service device. They are seen by the sockets at which they can be taken
//! over: the kernel tells those of a network namespace with the names that they were bound to.
#![forbid(unsafe_code)]
use std::{
    fs, io,
    path::{Path, PathBuf},
};

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
    match agents(&text).find(|folder| !is_own(folder)) {
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

/// True if both are one folder, whatever links lead there.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(one.canonicalize()? == other.canonicalize()?)
}

#[cfg(test)]
mod tests {
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
}
