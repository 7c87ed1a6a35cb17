//! Reasons of a handshake that failed, in words that tell what to do.
use std::io;

use rustls::{AlertDescription, CertificateError};

/// Reason for which a handshake failed, if it was for a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody whom we trust has signed the server's certificate.
    UnknownIssuer,
    /// We do not take the server's certificate; for another reason.
    Certificate(String),
    /// The server ends it, and says so.
    Alert(String),
}

/// The refusal, if `error` comes from TLS and is about certificates or the server's word about ours.
pub fn refusal(error: &io::Error) -> Option<Refusal> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(Refusal::UnknownIssuer),
        rustls::Error::InvalidCertificate(problem) => Some(Refusal::Certificate(words(problem))),
        rustls::Error::AlertReceived(alert) => Some(Refusal::Alert(alert_words(*alert))),
        _ => None,
    }
}

fn words(problem: &CertificateError) -> String {
    use CertificateError as E;
    match problem {
        E::Expired | E::ExpiredContext { .. } => "it has expired".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "it is not valid yet (is the clock right?)".to_owned()
        }
        E::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "it has no subject alternative name, and common names are not looked at: issue it anew with \
             subjectAltName for {}",
            expected.to_str()
        ),
        E::NotValidForNameContext { expected, presented } => {
            format!("it is not valid for {}, only for {}", expected.to_str(), presented.join(", "))
        }
        E::UnsupportedSignatureAlgorithmContext { .. } | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it, or one above it, is signed in a way that is not supported: by SHA-1, RSA with less than 2048 bits, or a \
             curve other than P-256, P-384, P-521 and Ed25519"
                .to_owned()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow servers".to_owned()
        }
        E::BadEncoding => "it is broken".to_owned(),
        // webpki takes what it does not support of a key for a wrong signature.
        E::BadSignature => {
            "its signature, or one that its key made, is wrong, or by RSA with less than 2048 bits".to_owned()
        }
        // webpki has errors that rustls has no name for.
        E::Other(other) => match other.to_string().as_str() {
            "CaUsedAsEndEntity" => "it is an authority's, and its key usage does not allow servers".to_owned(),
            "UnsupportedCriticalExtension" => "it has a critical extension that is not understood".to_owned(),
            "UnsupportedCertVersion" => {
                "no certificate that is trusted has signed it; one above it is of X.509 version 1, which only servers' and \
                 trusted ones may be".to_owned()
            }
            other => other.to_owned(),
        },
        other => rustls::Error::InvalidCertificate(other.clone()).to_string(),
    }
}

fn alert_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::HandshakeFailure => format!(
            "{alert:?}: it has no algorithms in common with us, whose are those of TLS 1.2 and 1.3 with RSA, P-256, P-384, \
             P-521 or Ed25519, or it wants a certificate from us"
        ),
        AlertDescription::ProtocolVersion => format!("{alert:?}: it speaks neither TLS 1.2 nor 1.3"),
        _ => format!("{alert:?}"),
    }
}
