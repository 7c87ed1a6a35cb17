//! Verifier of servers' certificates: it takes those that OpenSSL would take.
use rustls::{
    CertificateError, DigitallySignedStruct, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::{anchors::Anchors, leaf::Leaf};

/// Verifies certificates, and that the server has their key.
#[derive(Debug)]
pub(crate) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    anchors: Anchors,
    verify_name: bool,
}

impl Verifier {
    /// Takes whatever certificate.
    pub(crate) fn of_any(provider: &CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms, trust: None }
    }

    /// Takes what one of these has signed, and these themselves.
    pub(crate) fn of_trusted(provider: &CryptoProvider, anchors: Anchors, verify_name: bool) -> Self {
        let trust = Some(Trust { anchors, verify_name });
        Self { algorithms: provider.signature_verification_algorithms, trust }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let leaf = Leaf::new(certificate);
        let parsed = ParsedCertificate::try_from(&leaf.certificate)?;
        let roots = &trust.anchors.roots;
        let verdict = leaf.with_algorithms(self.algorithms.all, |algorithms| {
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, chain, now, algorithms)
        });
        match verdict {
            Ok(()) => {}
            // It is trusted itself, whoever has signed it. webpki has found dates and uses good before.
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
                if trust.anchors.certificates.contains(certificate) => {}
            Err(error) => return Err(error),
        }
        if trust.verify_name {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    /// Proof of the key, which proves nothing where any certificate will do: whoever is in between has one with a key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.trust.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, &Leaf::new(certificate).certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.trust.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, &Leaf::new(certificate).certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.algorithms.supported_schemes();
        if self.trust.is_none() {
            schemes.push(SignatureScheme::ED448);
        }
        schemes
    }
}
