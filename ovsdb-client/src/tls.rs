//! TLS as Open vSwitch uses it: a certificate on both sides, and the chain verified but not the name.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use tls_peer::{FileError, Identity, Refusal, Settings, Trust};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::TlsConfig;

/// Reason for which TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The server's certificate was not accepted.
    #[error("the server's certificate is not acceptable: {0}")]
    ServerCertificate(String),
    /// The server said that it does not go on.
    #[error("client certificate {certificate:?}: the server refused it, or the connection ({alert})")]
    Refused {
        /// The client's certificate.
        certificate: PathBuf,
        /// The server's alert.
        alert: String,
    },
    /// The connection broke right after the handshake.
    #[error(
        "the server broke the connection off after the TLS handshake, as it does when it does not accept the client \
         certificate ({certificate:?}): {error}"
    )]
    BrokenOff {
        /// The client's certificate.
        certificate: PathBuf,
        /// The error with which the connection broke.
        error: io::Error,
    },
    /// The handshake failed otherwise.
    #[error("TLS handshake failed: {0}")]
    Handshake(io::Error),
}

impl TlsConfig {
    /// Fails if the files cannot be used as they are now.
    pub fn check(&self) -> Result<(), TlsError> {
        Connector::load(self).map(drop)
    }
}

/// Connector for one connection, with the files as they were read.
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    files: TlsConfig,
}

impl Connector {
    pub(crate) fn load(files: &TlsConfig) -> Result<Self, TlsError> {
        let settings = Settings {
            trust: Trust::Authorities(files.ca_certificates.clone()),
            identity: Some(Identity {
                certificate: files.certificate.clone(),
                private_key: files.private_key.clone(),
            }),
            verify_name: files.verify_hostname,
        };
        Ok(Self { config: settings.load()?, files: files.clone() })
    }

    pub(crate) async fn connect(
        self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, TlsError> {
        let name = tls_peer::server_name(host).map_err(|error| {
            TlsError::ServerCertificate(format!("{host:?} cannot be in a certificate: {error}"))
        })?;
        TlsConnector::from(self.config)
            .connect(name, stream)
            .await
            .map_err(|error| explain(error, &self.files))
    }
}

/// In TLS 1.3 a server refuses the client's certificate after the handshake, in the middle of what follows.
pub(crate) fn explain(error: io::Error, files: &TlsConfig) -> TlsError {
    match tls_peer::refusal(&error) {
        Some(Refusal::UnknownIssuer) => TlsError::ServerCertificate(format!(
            "it is not in {path:?}, and no certificate in {path:?} has signed it",
            path = files.ca_certificates
        )),
        Some(Refusal::Certificate(problem)) => TlsError::ServerCertificate(problem),
        Some(Refusal::Alert(alert)) => TlsError::Refused { certificate: files.certificate.clone(), alert },
        None => TlsError::Handshake(error),
    }
}
