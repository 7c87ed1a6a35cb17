//! TLS to Nova, with files that are read again when they change.
use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rustls::ClientConfig;
use tls_peer::{FileError, Identity, Refusal, Role, Settings, Stamps, Trust};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::{info, warn};

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

/// The files as configured, and what was made of them.
#[derive(Debug)]
pub(super) struct Tls {
    settings: Settings,
    loaded: Mutex<Loaded>,
    unusable: Notice,
}

#[derive(Debug)]
struct Loaded {
    stamps: Stamps,
    client: Arc<ClientConfig>,
    at: Instant,
}

impl Tls {
    pub(super) fn load(files: &config::NovaTls) -> Result<Self, TlsError> {
        let settings = settings(files);
        let loaded = Loaded { stamps: settings.stamps(), client: client(&settings)?, at: Instant::now() };
        Ok(Self { settings, loaded: Mutex::new(loaded), unusable: Notice::default() })
    }

    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = tls_peer::server_name(host).map_err(io::Error::other)?;
        TlsConnector::from(self.current()).connect(name, stream).await.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let trusted = match &self.settings.trust {
            Trust::Authorities(path) => format!("auth_ca_cert = {}", path.display()),
            Trust::System | Trust::Anybody => "auth_ca_cert is not set: the system's authorities".to_owned(),
        };
        let problem = match tls_peer::refusal(&error) {
            Some(Refusal::UnknownIssuer) => "it is not trusted, and nobody who is has signed it".to_owned(),
            Some(Refusal::Certificate(problem)) => problem,
            Some(Refusal::Alert(alert)) => {
                return io::Error::other(format!("nova ends the handshake: {alert}"));
            }
            None => return error,
        };
        io::Error::other(format!("nova's certificate is refused ({trusted}): {problem}"))
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
        let stamps = self.settings.stamps();
        if stamps == loaded.stamps {
            return loaded.client.clone();
        }
        match client(&self.settings) {
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

fn settings(files: &config::NovaTls) -> Settings {
    let trust = match &files.ca {
        _ if files.insecure => Trust::Anybody,
        Some(path) => Trust::Authorities(path.clone()),
        None => Trust::System,
    };
    let identity = files.client.as_ref().map(|files| Identity {
        certificate: files.certificate.clone(),
        private_key: files.private_key.clone(),
    });
    Settings { trust, identity, verify_name: true }
}

fn client(settings: &Settings) -> Result<Arc<ClientConfig>, TlsError> {
    settings.load().map_err(|FileError { role, path, problem, unread }| {
        let option = match role {
            Role::Authorities if matches!(settings.trust, Trust::System) => "auth_ca_cert is not set;",
            Role::Authorities => "auth_ca_cert",
            Role::Certificate => "nova_client_cert",
            Role::PrivateKey => "nova_client_priv_key",
        };
        TlsError { option, path, problem, unread }
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

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
        let folder_path = folder.display();
        assert!(
            load(&folder, None)
                .starts_with(&format!("auth_ca_cert {folder_path}: holds no file with a hash"))
        );
        fs::remove_dir_all(&folder).unwrap();
    }
}
