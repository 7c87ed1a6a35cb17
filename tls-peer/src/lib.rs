//! A TLS client that reads the files and takes the certificates which clients with OpenSSL do, on rustls.
//!
//! rustls and webpki are strict where OpenSSL is not: X.509 certificates of version 1 and an authority's certificate on a server
//! (`leaf.rs`), `TRUSTED CERTIFICATE` in PEM (`pem.rs`) and folders of hashed names (`anchors.rs`). What stays refused is
//! said in words ([`refusal()`]): certificates with a common name only where names are verified, signatures by SHA-1, RSA with less than
//! 2048 bits, and curves other than P-256, P-384, P-521 and Ed25519.
#![forbid(unsafe_code)]
mod anchors;
mod der;
mod files;
mod identity;
mod leaf;
mod material;
mod p521;
mod pem;
mod refusal;
mod trusted;
mod verifier;

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{InvalidDnsNameError, ServerName},
};

use self::{anchors::Anchors, material::PublicIdentity};
pub use self::{
    files::{FileError, Role, Stamps},
    material::{KeyKind, Material, Public},
    refusal::{Refusal, refusal},
};

/// A client: whom it trusts, and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The servers' certificates that are good.
    pub trust: Trust,
    /// The client's own certificate.
    pub identity: Option<Identity>,
    /// True if a server's certificate must be for the name that was connected to.
    pub verify_name: bool,
}

/// Trust: the servers' certificates that are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Any, whatever is in it; nor must the server have its key.
    Anybody,
    /// Those of the system's authorities.
    System,
    /// Those that one in this PEM file or folder of hashed names (`openssl rehash`) has signed, and these themselves.
    Authorities(PathBuf),
}

/// Files of a certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those up to the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub private_key: PathBuf,
}

impl Settings {
    /// Reads all files, and makes a client of them.
    pub fn load(&self) -> Result<Arc<ClientConfig>, FileError> {
        self.read()?.client().map_err(|error| FileError::of_provider(&error))
    }

    /// Reads all files.
    pub fn read(&self) -> Result<Material, FileError> {
        let anchors = match &self.trust {
            Trust::Anybody => None,
            Trust::System => Some(Anchors::system()?),
            Trust::Authorities(path) => Some(Anchors::read(path)?),
        };
        let trusted = |anchors: Anchors| anchors.certificates.iter().map(|der| der.to_vec()).collect();
        let identity = self.identity.as_ref().map(|files| files.load(&provider())).transpose()?;
        let (key, identity) = match identity {
            Some((chain, key)) => {
                let chain = chain.iter().map(|der| der.to_vec()).collect();
                let kind = KeyKind::of(key.as_ref());
                (Some(key), Some(PublicIdentity { chain, kind }))
            }
            None => (None, None),
        };
        let public = Public { trusted: anchors.map(trusted), verify_name: self.verify_name, identity };
        Ok(Material { public, key })
    }

    /// Stamps of the files, which change when their contents do.
    pub fn stamps(&self) -> Stamps {
        let mut stamps = Stamps::default();
        if let Trust::Authorities(path) = &self.trust {
            stamps.add(path);
            for file in anchors::hashed(path).unwrap_or_default() {
                stamps.add(&file);
            }
        }
        if let Some(files) = &self.identity {
            stamps.add(&files.certificate);
            stamps.add(&files.private_key);
        }
        stamps
    }
}

/// The name that a server's certificate is for, if it is verified: without a dot at its end, and without a zone.
pub fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let host = host.split('%').next().unwrap_or(host);
    ServerName::try_from(host.strip_suffix('.').unwrap_or(host).to_owned())
}

fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.push(&p521::P521);
    provider
}
