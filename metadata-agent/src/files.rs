//! Files in folders that may be somebody else's: nothing is waited for that is no file, and nothing written elsewhere.
//!
//! `state_path` is Neutron's, whose processes are not root. Whoever owns a folder can put anything into it: a fifo, on which an
//! open waits for ever, or a link to a file that only we may write to.
#![forbid(unsafe_code)]
use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat, renameat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, geteuid, unlinkat},
};

/// Size limit of a file that is read: none of ours comes near it.
pub(crate) const MOST_BYTES: u64 = 16 << 20;

/// Neither waits for somebody at the other end of a fifo, nor goes where a link leads.
const CAREFUL: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Reads a text file that an operator names, through links too.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    let file = openat(AT_FDCWD, path, flags, Mode::empty()).map_err(explain)?;
    String::from_utf8(contents(file.into())?).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// Opens a file to hold a lock on, and makes it if there is none.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let flags = CAREFUL | OFlag::O_RDWR | OFlag::O_CREAT;
    let file = openat(AT_FDCWD, path, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(explain)?;
    regular(file.into())
}

/// A folder that is no link, and stays the same one whatever its path leads to later.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// One that is there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = CAREFUL | OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        openat(AT_FDCWD, path, flags, Mode::empty()).map(Self).map_err(|errno| match errno {
            Errno::ENOTDIR | Errno::ELOOP => io::Error::other("it is no folder, or a symbolic link to one"),
            errno => errno.into(),
        })
    }

    /// Makes it if there is none.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match mkdirat(AT_FDCWD, path, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => Self::open(path),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The contents of a file.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = openat(&self.0, name, CAREFUL | OFlag::O_RDONLY, Mode::empty()).map_err(explain)?;
        contents(file.into())
    }

    /// The contents of a file that nobody but us can read, or write.
    pub(crate) fn read_secret(&self, name: &str) -> io::Result<Vec<u8>> {
        let file: File =
            openat(&self.0, name, CAREFUL | OFlag::O_RDONLY, Mode::empty()).map_err(explain)?.into();
        let metadata = file.metadata()?;
        if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
            return Err(io::Error::other("it is somebody else's, or others may read it"));
        }
        contents(file)
    }

    /// Puts a file with these contents in place of whatever has that name, in one step: a reader finds the old one or the new
    /// one. Takes as long as the disk does.
    pub(crate) fn replace(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        match unlinkat(&self.0, new.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(io::Error::other(format!("{new} is in the way: {errno}"))),
        }
        let flags = CAREFUL | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut file = File::from(openat(&self.0, new.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        file.write_all(contents)?;
        file.sync_all()?;
        renameat(&self.0, new.as_str(), &self.0, name)
            .map_err(|errno| io::Error::other(format!("{name} cannot be replaced: {errno}")))
    }
}

fn explain(errno: Errno) -> io::Error {
    match errno {
        Errno::ELOOP => io::Error::other("it is a symbolic link, which is not followed"),
        // A fifo that nobody reads, or a socket.
        Errno::ENXIO => io::Error::other("it is no regular file"),
        errno => errno.into(),
    }
}

fn contents(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    regular(file)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("it is larger than {} MiB", MOST_BYTES >> 20)));
    }
    Ok(bytes)
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use nix::unistd::mkfifo;

    use super::*;

    /// Puts things that are no file at a path, one after another, with what is said of each.
    pub(crate) fn each_oddity(path: &Path, mut then: impl FnMut(&str)) {
        let target = path.with_extension("target");
        fs::write(&target, "untouched").unwrap();
        for (words, make) in [
            (
                "no regular file",
                Box::new(|path: &Path| mkfifo(path, Mode::S_IRWXU).unwrap()) as Box<dyn Fn(&Path)>,
            ),
            ("symbolic link", Box::new(|path: &Path| symlink(&target, path).unwrap())),
            ("symbolic link", Box::new(|path: &Path| symlink("/dev/zero", path).unwrap())),
            ("no regular file", Box::new(|path: &Path| fs::create_dir(path).unwrap())),
            (
                "no regular file",
                Box::new(|path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
            ),
            (
                "larger than",
                Box::new(|path: &Path| File::create(path).unwrap().set_len(MOST_BYTES + 1).unwrap()),
            ),
        ] {
            make(path);
            then(words);
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
        fs::remove_file(&target).unwrap();
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("metadata-agent-files-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let path = scratch("read");
        let folder = Folder::open(&path).unwrap();
        each_oddity(&path.join("x"), |words| {
            let error = folder.read("x").unwrap_err().to_string();
            assert!(error.contains(words), "{error}, and not {words}");
        });
        assert_eq!(folder.read("x").unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(path.join("x"), "contents").unwrap();
        assert_eq!(folder.read("x").unwrap(), b"contents");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_secret_that_others_may_read_is_none() {
        let path = scratch("secret");
        let folder = Folder::open(&path).unwrap();
        each_oddity(&path.join("x"), |words| {
            let error = folder.read_secret("x").unwrap_err().to_string();
            assert!(error.contains(words) || error.contains("others may read"), "{error}, and not {words}");
        });
        folder.replace("x", b"secret").unwrap();
        assert_eq!(folder.read_secret("x").unwrap(), b"secret");
        for mode in [0o604, 0o640, 0o602] {
            fs::set_permissions(path.join("x"), fs::Permissions::from_mode(mode)).unwrap();
            assert!(folder.read_secret("x").unwrap_err().to_string().contains("others may read"), "{mode:o}");
        }
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_is_in_the_way_is_replaced_and_never_followed() {
        let path = scratch("replace");
        let folder = Folder::create(&path.join("folder")).unwrap();
        let file = path.join("folder/x");
        for in_the_way in ["folder/x", "folder/x.new"] {
            each_oddity(&path.join(in_the_way), |_| match folder.replace("x", b"new") {
                Ok(()) => {
                    assert!(!file.is_symlink());
                    assert_eq!(fs::read(&file).unwrap(), b"new");
                    // For the next to be removed.
                    fs::write(path.join(in_the_way), "").unwrap();
                }
                Err(error) => assert!(path.join(in_the_way).is_dir(), "{error}"),
            });
        }
        assert_eq!(fs::read_dir(path.join("folder")).unwrap().count(), 1);

        // The folder itself, which may be moved away and come back as a link.
        fs::rename(path.join("folder"), path.join("moved")).unwrap();
        symlink("/tmp", path.join("folder")).unwrap();
        folder.replace("x", b"where it was").unwrap();
        assert_eq!(fs::read(path.join("moved/x")).unwrap(), b"where it was");
        for error in [Folder::open(&path.join("folder")), Folder::create(&path.join("folder"))] {
            assert!(error.unwrap_err().to_string().contains("symbolic link"));
        }
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_lock_is_a_file() {
        let path = scratch("lock");
        each_oddity(&path.join("lock"), |words| match open_lock(&path.join("lock")) {
            Ok(_) => assert_eq!(words, "larger than", "its contents do not matter"),
            Err(error) => {
                assert!(error.to_string().contains(words) || error.kind() == io::ErrorKind::IsADirectory)
            }
        });
        open_lock(&path.join("lock")).unwrap();
        open_lock(&path.join("lock")).unwrap();
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn an_operators_file_may_be_a_link() {
        let path = scratch("text");
        each_oddity(&path.join("text"), |words| match read_text(&path.join("text")) {
            Ok(text) => assert_eq!((text.as_str(), words), ("untouched", "symbolic link")),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(words) || text.contains("no regular file"), "{error}");
            }
        });
        fs::remove_dir_all(path).unwrap();
    }
}
