//! Contents of the files: what a client needs once they were read, and the part of it that may be given away.
use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, Error, SignatureAlgorithm, SignatureScheme,
    pki_types::CertificateDer,
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use serde::{Deserialize, Serialize};

use crate::{anchors::Anchors, provider, verifier::Verifier};

/// Everything that a client's files hold.
#[derive(Debug, Clone)]
pub struct Material {
    /// All but the private key.
    pub public: Public,
    /// The private key, if there is a certificate.
    pub key: Option<Arc<dyn SigningKey>>,
}

/// A client's material without its private key. It can be sent to another process, which makes the connections with a key
/// that signs elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Public {
    /// Certificates that are trusted, in DER; missing if any server is.
    pub(crate) trusted: Option<Vec<Vec<u8>>>,
    pub(crate) verify_name: bool,
    pub(crate) identity: Option<PublicIdentity>,
}

/// A certificate with those up to the authority, in DER, and the kind of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublicIdentity {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) kind: KeyKind,
}

/// Kind of a private key: its algorithm, and the schemes that it signs by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyKind {
    algorithm: u8,
    schemes: Vec<u16>,
}

/// Schemes of clients' signatures (RFC 8446, section 4.2.3), the preferred ones first.
const SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA256,
];

impl KeyKind {
    /// That of a key.
    pub fn of(key: &dyn SigningKey) -> Self {
        let has = |scheme: &SignatureScheme| key.choose_scheme(&[*scheme]).is_some();
        Self {
            algorithm: key.algorithm().into(),
            schemes: SCHEMES.iter().filter(|scheme| has(scheme)).map(|scheme| (*scheme).into()).collect(),
        }
    }

    /// Schemes, the preferred ones first.
    pub fn schemes(&self) -> impl Iterator<Item = SignatureScheme> {
        self.schemes.iter().map(|scheme| (*scheme).into())
    }

    /// Algorithm.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm.into()
    }
}

impl Material {
    /// A client with all of it.
    pub fn client(&self) -> Result<Arc<ClientConfig>, Error> {
        self.public.client(self.key.clone())
    }
}

impl Public {
    /// Kind of the private key that goes with it, if there is to be one.
    pub fn key_kind(&self) -> Option<&KeyKind> {
        self.identity.as_ref().map(|identity| &identity.kind)
    }

    /// A client with that private key, if the material has a certificate.
    pub fn client(&self, key: Option<Arc<dyn SigningKey>>) -> Result<Arc<ClientConfig>, Error> {
        let provider = Arc::new(provider());
        let certificates =
            |der: &[Vec<u8>]| der.iter().cloned().map(CertificateDer::from).collect::<Vec<_>>();
        let verifier = match &self.trusted {
            None => Verifier::of_any(&provider),
            Some(trusted) => {
                let anchors = Anchors::new(certificates(trusted), Path::new(""));
                let anchors = anchors.map_err(|error| Error::General(error.problem))?;
                Verifier::of_trusted(&provider, anchors, self.verify_name)
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        Ok(Arc::new(match (&self.identity, key) {
            (Some(identity), Some(key)) => {
                let key = CertifiedKey::new(certificates(&identity.chain), key);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
            }
            _ => builder.with_no_client_auth(),
        }))
    }
}
