//! Named network namespaces, and running code inside one.
#![forbid(unsafe_code)]
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::statfs,
};

use crate::descriptors::namespace_of;

/// Folder in which iproute2 keeps the names.
pub const FOLDER: &str = "/run/netns";
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A network namespace that has a name.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// The namespace of that name, made if there is none.
    pub fn open_or_create(name: &str) -> io::Result<Self> {
        let path = Path::new(FOLDER).join(name);
        if !is_namespace(&path) {
            create(&path)?;
        }
        Ok(Self { name: name.to_owned(), file: File::open(&path)? })
    }

    /// A namespace without a name, which goes away with its last descriptor, process and socket.
    pub fn unnamed() -> io::Result<Self> {
        let file = unshared(|own| File::open(own))?;
        Ok(Self { name: String::new(), file })
    }

    /// Removes the name; the namespace goes with its last process, socket and device reference.
    pub fn remove(name: &str) -> io::Result<()> {
        let path = Path::new(FOLDER).join(name);
        if is_namespace(&path) {
            umount2(&path, MntFlags::MNT_DETACH)?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives it its name again, if somebody took that away.
    pub fn keep_name(&self) -> io::Result<()> {
        let path = Path::new(FOLDER).join(&self.name);
        if is_namespace(&path) && fs::metadata(&path)?.ino() == self.file.metadata()?.ino() {
            return Ok(());
        }
        Self::remove(&self.name)?;
        fs::create_dir_all(FOLDER)?;
        File::create(&path)?;
        let own = format!("/proc/self/fd/{}", self.fd());
        mount(Some(own.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Descriptor of the namespace.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// True if a socket is of this namespace.
    pub fn holds(&self, socket: &impl AsFd) -> io::Result<bool> {
        let (theirs, ours) = (namespace_of(socket)?.metadata()?, self.file.metadata()?);
        Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
    }

    /// Brings the calling thread into the namespace, which it must never leave again for anybody's work.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` inside the namespace, on a thread that is there for nothing else: a thread that changed its
    /// namespace must never serve as anybody's worker again.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                work()
            });
            inside.join().unwrap_or_else(|_| Err(io::Error::other("a thread inside the namespace panicked")))
        })
    }
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type().0 as u64 == NSFS_MAGIC)
}

/// Makes a namespace and gives it its name the way `ip netns add` does: a bind mount of the maker's namespace file.
fn create(path: &PathBuf) -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    File::create(path)?;
    let made = unshared(|own| Ok(mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?));
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

/// Makes a namespace on a thread of its own, and does something with the file that stands for it.
fn unshared<T: Send>(with: impl FnOnce(&str) -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            with(&format!("/proc/self/task/{}/ns/net", nix::unistd::gettid()))
        });
        let panicked = |_| Err(io::Error::other("the thread that makes the namespace panicked"));
        inside.join().unwrap_or_else(panicked)
    })
}
