//! Identity of the client: its certificate and key.
use std::sync::Arc;

use rustls::{
    crypto::CryptoProvider,
    pki_types::CertificateDer,
    sign::{CertifiedKey, SigningKey},
};

use crate::{
    Identity,
    files::{self, FileError, Role},
    leaf::Leaf,
    pem,
};

/// A certificate with those up to the authority, and its key.
type ChainAndKey = (Vec<CertificateDer<'static>>, Arc<dyn SigningKey>);

impl Identity {
    pub(crate) fn load(&self, provider: &CryptoProvider) -> Result<ChainAndKey, FileError> {
        let chain = self.chain()?;
        let key = self.key(provider)?;
        self.check(&chain, &key)?;
        Ok((chain, key))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, FileError> {
        let path = &self.certificate;
        let fail = |problem: String| FileError::new(Role::Certificate, path, problem);
        let certificates = pem::certificates(&files::read(Role::Certificate, path)?).map_err(fail)?;
        if certificates.is_empty() {
            return Err(fail("holds no certificate".to_owned()));
        }
        Ok(certificates.into_iter().map(|certificate| certificate.der).collect())
    }

    fn key(&self, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, FileError> {
        let path = &self.private_key;
        let fail = |problem: String| FileError::new(Role::PrivateKey, path, problem);
        let key = pem::private_key(&files::read(Role::PrivateKey, path)?).map_err(fail)?;
        provider.key_provider.load_private_key(key).map_err(|_| {
            let kinds = "RSA with at least 2048 bits, P-256, P-384, P-521 and Ed25519";
            fail(format!("is broken or of a kind that is not supported: {kinds} are"))
        })
    }

    /// That the one is the other's.
    fn check(&self, chain: &[CertificateDer<'static>], key: &Arc<dyn SigningKey>) -> Result<(), FileError> {
        let leaf: Vec<_> = chain
            .first()
            .map(|certificate| Leaf::new(certificate).certificate.into_owned())
            .into_iter()
            .collect();
        match CertifiedKey::new(leaf, key.clone()).keys_match() {
            // A key that does not tell its public half cannot be compared.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
            Err(rustls::Error::InconsistentKeys(_)) => {
                let problem = format!("does not go with private key {:?}", self.private_key);
                Err(FileError::new(Role::Certificate, &self.certificate, problem))
            }
            Err(error) => Err(FileError::new(
                Role::Certificate,
                &self.certificate,
                format!("cannot be understood: {error}"),
            )),
        }
    }
}
