//! TLS to Nova, with files that are read again when they change.
mod verifier;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::{info, warn};

use self::verifier::Verifier;
use super::notice::Notice;
use crate::config;

/// Files that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{option} {path}: {problem}", path = .path.display())]
pub struct TlsError {
    option: &'static str,
    path: PathBuf,
    problem: String,
    /// The file could not be read, which may be for want of something on this machine, and pass.
    unread: bool,
}

impl TlsError {
    fn new(option: &'static str, path: &Path, problem: impl ToString) -> Self {
        Self { option, path: path.to_owned(), problem: problem.to_string(), unread: false }
    }
}

/// The files as configured, and what was made of them.
#[derive(Debug)]
pub(super) struct Tls {
    files: config::NovaTls,
    loaded: Mutex<Loaded>,
    unusable: Notice,
}

#[derive(Debug)]
struct Loaded {
    stamps: Vec<Stamp>,
    client: Arc<ClientConfig>,
    at: Instant,
}

/// What changes with a file's contents: inode, length and time of modification.
type Stamp = Option<(u64, u64, SystemTime)>;

impl Tls {
    pub(super) fn load(files: &config::NovaTls) -> Result<Self, TlsError> {
        let loaded = Loaded { stamps: stamps(files), client: client(files)?, at: Instant::now() };
        Ok(Self { files: files.clone(), loaded: Mutex::new(loaded), unusable: Notice::default() })
    }

    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(self.current()).connect(name, stream).await.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: io::Error) -> io::Error {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_)) => {
                let trusted = match &self.files.ca {
                    Some(path) => format!("auth_ca_cert = {}", path.display()),
                    None => "auth_ca_cert is not set: the system's authorities".to_owned(),
                };
                io::Error::other(format!("nova's certificate is refused ({trusted}): {error}"))
            }
            _ => error,
        }
    }

    /// Since when the files that are in use are.
    pub(super) fn loaded(&self) -> Instant {
        self.lock().at
    }

    /// Reads files that have changed.
    pub(super) fn refresh(&self) {
        self.current();
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looked at for each new connection, which costs far more than that: certificates are renewed while we run.
    fn current(&self) -> Arc<ClientConfig> {
        let mut loaded = self.lock();
        let stamps = stamps(&self.files);
        if stamps == loaded.stamps {
            return loaded.client.clone();
        }
        match client(&self.files) {
            Ok(client) => {
                info!("certificates for nova were read again");
                *loaded = Loaded { stamps, client, at: Instant::now() };
            }
            // One file was replaced and its partner will be, or it can be read the next time.
            Err(error) => {
                if !error.unread {
                    loaded.stamps = stamps;
                }
                if let Some(times) = self.unusable.times(Instant::now()) {
                    warn!(times, %error, "certificates for nova have changed and cannot be used, keeping the former");
                }
            }
        }
        loaded.client.clone()
    }
}

fn stamps(files: &config::NovaTls) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
    };
    let pair = files.client.iter().flat_map(|client| [&client.certificate, &client.private_key]);
    files.ca.iter().chain(pair).map(stamp).collect()
}

fn client(files: &config::NovaTls) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new("nova_metadata_protocol", Path::new("https"), error))?;
    let verifier = if files.insecure {
        Verifier::of_any(&provider)
    } else {
        let (path, trusted) = trusted(files)?;
        Verifier::of_trusted(&provider, trusted)
            .map_err(|error| TlsError::new("auth_ca_cert", path, error))?
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let client = match &files.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let chain = certificates("nova_client_cert", &client.certificate)?;
            let unusable = |error: String| TlsError::new("nova_client_priv_key", &client.private_key, error);
            let key = read("nova_client_priv_key", &client.private_key)?;
            let key = PrivateKeyDer::from_pem_slice(&key)
                .map_err(|error| unusable(format!("holds no usable key: {error}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                unusable(format!(
                    "does not go with nova_client_cert {}: {error}",
                    client.certificate.display()
                ))
            })?
        }
    };
    Ok(Arc::new(client))
}

/// Whom to trust, and what says so.
fn trusted(files: &config::NovaTls) -> Result<(&Path, Vec<CertificateDer<'static>>), TlsError> {
    match &files.ca {
        Some(path) => Ok((path, certificates("auth_ca_cert", path)?)),
        None => {
            let (path, system) = (Path::new("/etc/ssl/certs"), rustls_native_certs::load_native_certs());
            if system.certs.is_empty() {
                let problem =
                    "the system has no certificate authorities: install ca-certificates, or set auth_ca_cert";
                return Err(TlsError::new("auth_ca_cert is not set;", path, problem));
            }
            Ok((path, system.certs))
        }
    }
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError { unread: true, ..TlsError::new(option, path, error) })
}

fn certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(option, path)?).collect();
    match parsed {
        Ok(certificates) if certificates.is_empty() => {
            Err(TlsError::new(option, path, "holds no certificate"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(TlsError::new(option, path, format!("is not PEM: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientCertificate, NovaTls};

    #[test]
    fn unusable_files_are_named_with_their_option() {
        let folder = std::env::temp_dir().join(format!("metadata-agent-tls-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (missing, text) = (folder.join("missing"), folder.join("text"));
        fs::write(&text, "no certificate").unwrap();
        let load = |ca: &Path, certificate: Option<&Path>| {
            let client = certificate
                .map(|path| ClientCertificate { certificate: path.to_owned(), private_key: text.clone() });
            let insecure = client.is_some();
            Tls::load(&NovaTls { ca: Some(ca.to_owned()), client, insecure }).unwrap_err().to_string()
        };
        let (missing_path, text_path) = (missing.display(), text.display());
        assert!(load(&missing, None).starts_with(&format!("auth_ca_cert {missing_path}: No such file")));
        assert_eq!(load(&text, None), format!("auth_ca_cert {text_path}: holds no certificate"));
        assert_eq!(load(&text, Some(&text)), format!("nova_client_cert {text_path}: holds no certificate"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
