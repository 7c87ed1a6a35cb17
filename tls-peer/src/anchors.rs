//! The authorities that a client trusts: of a file, of a folder of hashed names, or the system's.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustls::{RootCertStore, pki_types::CertificateDer};

use crate::{
    files::{self, FileError, Role},
    pem,
};

/// Folder of the system's authorities.
const SYSTEM: &str = "/etc/ssl/certs";

/// Authorities.
#[derive(Debug)]
pub(crate) struct Anchors {
    pub(crate) roots: RootCertStore,
    /// All of them, and servers' own certificates among them.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

impl Anchors {
    /// Of a file, or of a folder as OpenSSL's `CApath`.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let certificates = if path.is_dir() {
            let files = hashed(path).map_err(|error| FileError::unread(Role::Authorities, path, &error))?;
            if files.is_empty() {
                let problem =
                    "holds no file with a hash for its name, as OpenSSL looks for; run openssl rehash on it";
                return Err(FileError::new(Role::Authorities, path, problem));
            }
            let read: Result<Vec<_>, _> = files.iter().map(|file| certificates(file)).collect();
            read?.into_iter().flatten().collect()
        } else {
            certificates(path)?
        };
        if certificates.is_empty() {
            return Err(FileError::new(Role::Authorities, path, "holds no certificate"));
        }
        let (trusted, refused): (Vec<_>, Vec<_>) =
            certificates.into_iter().partition(|certificate| !certificate.trust.is_refused());
        if trusted.is_empty() {
            let problem = format!("none of its {} certificates is trusted for servers", refused.len());
            return Err(FileError::new(Role::Authorities, path, problem));
        }
        Self::new(trusted.into_iter().map(|certificate| certificate.der).collect(), path)
    }

    /// The system's.
    pub(crate) fn system() -> Result<Self, FileError> {
        let path = Path::new(SYSTEM);
        let certificates = rustls_native_certs::load_native_certs().certs;
        if certificates.is_empty() {
            let problem = "the system has no certificate authorities: install ca-certificates, or name a file of your own";
            return Err(FileError::new(Role::Authorities, path, problem));
        }
        Self::new(certificates, path)
    }

    /// Those that cannot be understood are left out; an error if that is all.
    pub(crate) fn new(certificates: Vec<CertificateDer<'static>>, path: &Path) -> Result<Self, FileError> {
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(certificates.iter().cloned());
        if roots.is_empty() {
            let problem = format!("none of its {ignored} certificates can be understood");
            return Err(FileError::new(Role::Authorities, path, problem));
        }
        Ok(Self { roots, certificates })
    }
}

fn certificates(path: &Path) -> Result<Vec<pem::Certificate>, FileError> {
    pem::certificates(&files::read(Role::Authorities, path)?)
        .map_err(|problem| FileError::new(Role::Authorities, path, problem))
}

/// Files of a folder that are named `<hash>.<number>`, in order. Those of revocation lists have an r before the number.
pub(crate) fn hashed(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let is_hashed = |name: &str| {
        name.split_once('.').is_some_and(|(hash, number)| {
            hash.len() == 8
                && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_hashed) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
