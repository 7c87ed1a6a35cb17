//! Certificates for Nova, of files that are read again when they change.
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rustls::sign::SigningKey;
use tls_peer::{FileError, Identity, Material, Role, Settings, Stamps, Trust};
use tracing::{info, warn};

use crate::{config, link::Certificates, notice::Notice, tls::Tls};

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
pub(super) struct Credentials {
    settings: Settings,
    loaded: Mutex<Loaded>,
    /// The client, for who only looks whether Nova is there.
    client: Tls,
    unusable: Notice,
}

#[derive(Debug)]
struct Loaded {
    stamps: Stamps,
    material: Material,
    edition: Edition,
}

/// Number of times that certificates were read, for who remembers which it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Edition(u64);

impl Credentials {
    pub(super) fn load(files: &config::NovaTls) -> Result<Self, TlsError> {
        let settings = settings(files);
        let (stamps, material) = (settings.stamps(), read(&settings)?);
        let client = material.client().map_err(|error| of_library(&error))?;
        let client = Tls::new(client, trusted(&settings));
        let loaded = Mutex::new(Loaded { stamps, material, edition: Edition::default() });
        Ok(Self { settings, loaded, client, unusable: Notice::default() })
    }

    /// A client of the files as they are now.
    pub(super) fn client(&self) -> &Tls {
        self.refresh();
        &self.client
    }

    /// See [`super::Dialler::certificates`].
    pub(super) fn certificates(&self, known: Option<Edition>) -> Option<(Edition, Certificates)> {
        self.refresh();
        let loaded = self.lock();
        let material = (known != Some(loaded.edition)).then(|| loaded.material.public.clone())?;
        Some((loaded.edition, Certificates { material, trusted: trusted(&self.settings) }))
    }

    pub(super) fn key(&self) -> Option<Arc<dyn SigningKey>> {
        self.lock().material.key.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads files that have changed: certificates are renewed while we run.
    fn refresh(&self) {
        let mut loaded = self.lock();
        let stamps = self.settings.stamps();
        if stamps == loaded.stamps {
            return;
        }
        let read = read(&self.settings)
            .and_then(|material| Ok((material.client().map_err(|error| of_library(&error))?, material)));
        match read {
            Ok((client, material)) => {
                info!("certificates for nova were read again");
                let edition = Edition(loaded.edition.0 + 1);
                *loaded = Loaded { stamps, material, edition };
                self.client.replace(client);
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
    }
}

/// The words for where whom to trust is configured.
fn trusted(settings: &Settings) -> String {
    match &settings.trust {
        Trust::Authorities(path) => format!("auth_ca_cert = {}", path.display()),
        Trust::System | Trust::Anybody => "auth_ca_cert is not set: the system's authorities".to_owned(),
    }
}

/// The library lacks what it is built with, which no file can mend.
fn of_library(error: &rustls::Error) -> TlsError {
    TlsError { option: "TLS", path: PathBuf::new(), problem: error.to_string(), unread: false }
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

fn read(settings: &Settings) -> Result<Material, TlsError> {
    settings.read().map_err(|FileError { role, path, problem, unread }| {
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
            Credentials::load(&NovaTls { ca: Some(ca.to_owned()), client, insecure }).unwrap_err().to_string()
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
