//! Certificates for a Nova behind TLS, and the files that an agent is given.

use std::{fs, net::Ipv4Addr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

use crate::sandbox::Sandbox;

/// An authority, and its folder.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    pub fn new(sandbox: &Sandbox, name: &str) -> Result<Self> {
        let folder = sandbox.path(name);
        fs::create_dir_all(&folder)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names = local();
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, folder })
    }

    /// A file in the authority's folder: `ca.pem`, `<name>.pem` and `<name>.key`.
    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes a certificate for 127.0.0.1 and its key, in place of those that are there.
    pub fn issue(&self, name: &str) -> Result<()> {
        let (certificate, key) = self.certificate()?;
        fs::write(self.file(&format!("{name}.pem")), certificate.pem())?;
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    /// A server with a certificate of this authority, which demands one of `clients` if told so.
    pub fn server(&self, clients: Option<&Self>) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.issuer.der().clone())?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (certificate, key) = self.certificate()?;
        Ok(Arc::new(builder.with_single_cert(vec![certificate.der().clone()], der(&key))?))
    }

    /// A server with the authority's own certificate.
    pub fn itself(&self) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        let certificate = self.issuer.der().clone();
        Ok(Arc::new(builder.with_single_cert(vec![certificate], der(self.issuer.key()))?))
    }

    fn certificate(&self) -> Result<(rcgen::Certificate, KeyPair)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = local();
        Ok((params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?, key))
    }
}

fn local() -> Vec<SanType> {
    vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())]
}

fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()))
}
