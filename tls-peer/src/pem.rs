//! PEM as OpenSSL reads it: certificates by any of their labels, with text around them.
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};

use crate::{
    der,
    trusted::{self, ServerTrust},
};

/// Labels of certificates besides the usual one; what the last has behind its certificate is in [`trusted`].
const LABELS: [&str; 2] = ["X509 CERTIFICATE", "TRUSTED CERTIFICATE"];

/// A certificate, and what is said of it behind it.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) trust: ServerTrust,
}

/// All certificates of a file; not an error if there is none.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut text = String::from_utf8_lossy(text).into_owned();
    for label in LABELS {
        text = text.replace(&format!("-----BEGIN {label}-----"), "-----BEGIN CERTIFICATE-----");
        text = text.replace(&format!("-----END {label}-----"), "-----END CERTIFICATE-----");
    }
    let parsed: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    Ok(parsed.map_err(|error| format!("is not PEM: {error}"))?.into_iter().map(cut).collect())
}

fn cut(all: CertificateDer<'static>) -> Certificate {
    match der::first(&all) {
        Some((element, auxiliary)) if !auxiliary.is_empty() => {
            Certificate { der: CertificateDer::from(element.whole.to_vec()), trust: trusted::read(auxiliary) }
        }
        _ => Certificate { der: all, trust: ServerTrust::Unsaid },
    }
}

/// The first key of a file.
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    if String::from_utf8_lossy(text).contains("ENCRYPTED") {
        return Err("is encrypted; a key without a passphrase is needed".to_owned());
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| format!("holds no usable key: {error}"))
}
