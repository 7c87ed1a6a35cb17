//! Files of keys and certificates: how they are opened, and what is said of those that cannot be used.
use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::OFlag;

/// More than all authorities of the world take.
const MOST_BYTES: u64 = 16 << 20;

/// Role of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The authorities that may sign a server's certificate.
    Authorities,
    /// The client's certificate.
    Certificate,
    /// The client's key.
    PrivateKey,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authorities => "CA certificate",
            Self::Certificate => "client certificate",
            Self::PrivateKey => "private key",
        })
    }
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{role} {path:?}: {problem}")]
pub struct FileError {
    /// The role of the file.
    pub role: Role,
    /// The file's path.
    pub path: PathBuf,
    /// The problem with the file.
    pub problem: String,
    /// It could not be read, which may be for want of something on this machine, and pass.
    pub unread: bool,
}

impl FileError {
    pub(crate) fn new(role: Role, path: &Path, problem: impl ToString) -> Self {
        Self { role, path: path.to_owned(), problem: problem.to_string(), unread: false }
    }

    pub(crate) fn unread(role: Role, path: &Path, error: &io::Error) -> Self {
        Self { unread: true, ..Self::new(role, path, error) }
    }

    /// The library lacks what it is built with, which no file can mend.
    pub(crate) fn of_provider(error: &rustls::Error) -> Self {
        Self::new(Role::Authorities, Path::new(""), error)
    }
}

/// Reads a file. Its folder may be somebody else's: one that is no file is not waited for.
pub(crate) fn read(role: Role, path: &Path) -> Result<Vec<u8>, FileError> {
    let read = || {
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is no file"));
        }
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(io::Error::other(format!("is larger than {} MiB", MOST_BYTES >> 20)));
        }
        Ok(bytes)
    };
    read().map_err(|error| FileError::unread(role, path, &error))
}

/// Stamps that change with files' contents: for each inode, length and time of modification.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stamps(Vec<Option<(u64, u64, SystemTime)>>);

impl Stamps {
    pub(crate) fn add(&mut self, path: &Path) {
        let stamp = fs::metadata(path)
            .ok()
            .and_then(|metadata| Some((metadata.ino(), metadata.len(), metadata.modified().ok()?)));
        self.0.push(stamp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = std::env::temp_dir().join(format!("tls-peer-files-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let fifo = folder.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), folder.as_path(), Path::new("/dev/zero")] {
            let error = read(Role::PrivateKey, path).unwrap_err();
            assert!(error.unread, "{error}");
            assert_eq!(error.to_string(), format!("private key {path:?}: is no file"));
        }
        let large = folder.join("large");
        File::create(&large).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert_eq!(read(Role::Authorities, &large).unwrap_err().problem, "is larger than 16 MiB");
        fs::remove_dir_all(&folder).unwrap();
    }
}
