//! Which certificates of Nova's are good: those that OpenSSL would take, as Neutron's agent has it look at them.
use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

/// How webpki says that an authority's certificate is no server's; rustls does not have it among its own errors.
const CA_AS_SERVER: &str = "CaUsedAsEndEntity";

/// Verifies certificates, and that the server has their key.
#[derive(Debug)]
pub(super) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    webpki: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// Takes whatever certificate, as `nova_metadata_insecure` asks for.
    pub(super) fn of_any(provider: &CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms, trust: None }
    }

    /// Takes what one of these has signed, and these themselves. Those among them that cannot be understood are left out;
    /// an error if these are all.
    pub(super) fn of_trusted(
        provider: &Arc<CryptoProvider>,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, VerifierBuilderError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let trust = Some(Trust { webpki, certificates });
        Ok(Self { algorithms: provider.signature_verification_algorithms, trust })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        match trust.webpki.verify_server_cert(certificate, chain, name, ocsp, now) {
            // A server may have signed its certificate itself, as an authority does (`openssl req -x509`). webpki, which
            // has found the dates good before, does not take it; OpenSSL does where it is trusted.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(problem)))
                if problem.to_string() == CA_AS_SERVER && trust.certificates.contains(certificate) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
