//! TLS as Open vSwitch uses it: a certificate on both sides, and the chain verified but not the name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::TlsConfig;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be used.
    #[error("{role} {path:?}: {problem}")]
    File {
        /// What the file is for.
        role: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The server's certificate was not accepted.
    #[error("the server's certificate is not acceptable: {0}")]
    ServerCertificate(String),
    /// The connection broke right after the handshake.
    #[error(
        "the server broke the connection off after the TLS handshake, as it does when it does not accept the client \
         certificate ({certificate:?}): {error}"
    )]
    BrokenOff {
        /// The client's certificate.
        certificate: PathBuf,
        /// How it broke.
        error: io::Error,
    },
    /// The handshake failed otherwise.
    #[error("TLS handshake failed: {0}")]
    Handshake(io::Error),
}

/// What is needed for one connection.
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    files: TlsConfig,
}

impl Connector {
    pub(crate) fn load(files: &TlsConfig) -> Result<Self, TlsError> {
        let fail =
            |role, path: &Path, problem: String| TlsError::File { role, path: path.to_owned(), problem };

        let mut roots = RootCertStore::empty();
        let trusted = certificates("CA certificate", &files.ca_certificates)?;
        for certificate in &trusted {
            roots
                .add(certificate.clone())
                .map_err(|error| fail("CA certificate", &files.ca_certificates, error.to_string()))?;
        }
        let chain = certificates("client certificate", &files.certificate)?;
        let key_text = read("private key", &files.private_key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_text).map_err(|error| {
            fail("private key", &files.private_key, format!("holds no usable key: {error}"))
        })?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| fail("CA certificate", &files.ca_certificates, error.to_string()))?;
        let verifier = Arc::new(Verifier { webpki, trusted, hostname: files.verify_hostname });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Handshake(io::Error::other(error)))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(|error| {
                let with = format!("does not go with private key {:?}: {error}", files.private_key);
                fail("client certificate", &files.certificate, with)
            })?;
        Ok(Self { config: Arc::new(config), files: files.clone() })
    }

    pub(crate) async fn connect(
        self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, TlsError> {
        let name =
            ServerName::try_from(host.split('%').next().unwrap_or(host).to_owned()).map_err(|error| {
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
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(problem)) => {
            let problem = match problem {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "it has expired".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "it is not valid yet (is the clock right?)".to_owned()
                }
                CertificateError::UnknownIssuer => {
                    format!("no certificate in {:?} has signed it", files.ca_certificates)
                }
                CertificateError::Other(other) if other.to_string() == CA_AS_SERVER => {
                    format!("it is that of an authority, and not in {:?}", files.ca_certificates)
                }
                other => rustls::Error::InvalidCertificate(other.clone()).to_string(),
            };
            TlsError::ServerCertificate(problem)
        }
        Some(rustls::Error::AlertReceived(alert)) => TlsError::File {
            role: "client certificate",
            path: files.certificate.clone(),
            problem: format!("the server refused it, or the connection ({alert:?})"),
        },
        _ => TlsError::Handshake(error),
    }
}

fn read(role: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::File { role, path: path.to_owned(), problem: error.to_string() })
}

fn certificates(role: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = match parse_certificates(&read(role, path)?) {
        Ok(certificates) if !certificates.is_empty() => return Ok(certificates),
        Ok(_) => "holds no certificate".to_owned(),
        Err(error) => format!("is not PEM: {error}"),
    };
    Err(TlsError::File { role, path: path.to_owned(), problem })
}

/// ovs-pki puts a description of the certificate before it, which is skipped.
fn parse_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(text).collect()
}

/// How webpki says that an authority's certificate is no server's; rustls does not have it among its own errors.
const CA_AS_SERVER: &str = "CaUsedAsEndEntity";

/// Verifies that an authority has signed the server's certificate, and the name in it only on demand.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    hostname: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki looks at the name last, so that everything else was found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.hostname => Ok(ServerCertVerified::assertion()),
            // A server may have signed its certificate itself, as an authority does. OpenSSL takes it where it is
            // trusted; webpki, which has found the dates good before, does not.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(problem)))
                if problem.to_string() == CA_AS_SERVER && self.trusted.contains(end_entity) =>
            {
                if self.hostname {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[rustls::DistinguishedName]> {
        self.webpki.root_hint_subjects()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_file_panics(
            lines in prop::collection::vec("(-----(BEGIN|END) (CERTIFICATE|PRIVATE KEY)-----|[A-Za-z0-9+/=]{0,9}|.{0,9})", 0..9),
            bytes: Vec<u8>,
        ) {
            for text in [lines.join("\n").into_bytes(), bytes] {
                let _ = PrivateKeyDer::from_pem_slice(&text);
                for certificate in parse_certificates(&text).unwrap_or_default() {
                    let _ = RootCertStore::empty().add(certificate);
                }
            }
        }
    }
}
