//! A server's certificate as webpki can read it.
//!
//! webpki knows X.509 version 3 only, and takes no authority's certificate for a server's; OpenSSL does both. Such a
//! certificate is written anew as version 3 without basic constraints, and is verified in all respects like any other. Only
//! its signature is looked at over what was signed: the algorithms put the one in place of the other.
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
};

use crate::der::{self, BIT_STRING, BOOLEAN, Element, OBJECT, OCTET_STRING, SEQUENCE, context};

/// `[0] { INTEGER 2 }`.
const VERSION_3: &[u8] = &[context(0), 3, 2, 1, 2];
/// id-ce-basicConstraints, 2.5.29.19.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
/// id-ce-keyUsage, 2.5.29.15.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
/// The bits of keyUsage of which a server has at least one, as OpenSSL's `KU_TLS`: digitalSignature, keyEncipherment,
/// keyAgreement.
const SERVER_USAGE: u8 = 0x80 | 0x20 | 0x08;

/// A certificate, and what was made of it.
#[derive(Debug)]
pub(crate) struct Leaf<'a> {
    /// As webpki reads it.
    pub(crate) certificate: CertificateDer<'a>,
    /// The signed part of it, and what that was when it was signed; none if nothing was changed.
    signed: Option<(Vec<u8>, &'a [u8])>,
}

impl<'a> Leaf<'a> {
    pub(crate) fn new(certificate: &'a CertificateDer<'_>) -> Self {
        rewritten(certificate)
            .unwrap_or_else(|| Self { certificate: CertificateDer::from(certificate.as_ref()), signed: None })
    }

    /// Gives algorithms that know what was signed.
    pub(crate) fn with_algorithms<T>(
        &self,
        algorithms: &[&'static dyn SignatureVerificationAlgorithm],
        then: impl FnOnce(&[&dyn SignatureVerificationAlgorithm]) -> T,
    ) -> T {
        let Some((written, signed)) = &self.signed else { return then(algorithms) };
        let wrapped: Vec<_> = algorithms
            .iter()
            .map(|algorithm| OverSigned { algorithm: *algorithm, written, signed })
            .collect();
        let wrapped: Vec<&dyn SignatureVerificationAlgorithm> = wrapped.iter().map(|one| one as _).collect();
        then(&wrapped)
    }
}

/// The certificate written anew, if it must be and can be.
fn rewritten<'a>(certificate: &'a CertificateDer<'_>) -> Option<Leaf<'a>> {
    let (outer, rest) = der::first(certificate.as_ref())?;
    let parts = der::all(outer.expect(SEQUENCE)?)?;
    let ([signed, algorithm, signature], []) = (&parts[..], rest) else { return None };
    let fields = der::all(signed.expect(SEQUENCE)?)?;
    let (version, fields) = match &fields[..] {
        [version, fields @ ..] if version.tag == context(0) => (version.whole, fields),
        // Version 1 is the default.
        fields => (&[][..], fields),
    };
    // Serial number, algorithm, issuer, validity, subject, key; behind them what has a number.
    let (plain, numbered) = fields.split_at_checked(6)?;
    let extensions = numbered.iter().find(|field| field.tag == context(3));
    let extensions = match extensions {
        Some(field) => der::all(der::first(field.content)?.0.expect(SEQUENCE)?)?,
        None => Vec::new(),
    };
    let authority = is_server_authority(&extensions);
    if version == VERSION_3 && !authority {
        return None;
    }
    let kept = extensions.iter().filter(|extension| !authority || id(extension) != Some(BASIC_CONSTRAINTS));
    let kept: Vec<&[u8]> = kept.map(|extension| extension.whole).collect();
    let mut written: Vec<&[u8]> = vec![VERSION_3];
    written.extend(plain.iter().map(|field| field.whole));
    let extensions = der::wrap(context(3), &[&der::wrap(SEQUENCE, &kept)]);
    if !kept.is_empty() {
        written.push(&extensions);
    }
    let written = der::wrap(SEQUENCE, &written);
    let certificate = der::wrap(SEQUENCE, &[&written, algorithm.whole, signature.whole]);
    Some(Leaf { certificate: certificate.into(), signed: Some((written, signed.whole)) })
}

/// True if it is an authority's, and one that may be a server's as well: its key usage, if any, allows that.
fn is_server_authority(extensions: &[Element<'_>]) -> bool {
    let is_authority = value(extensions, BASIC_CONSTRAINTS).is_some_and(|value| {
        let constraints = der::first(value).and_then(|(element, _)| element.expect(SEQUENCE));
        constraints.and_then(der::first).and_then(|(element, _)| element.expect(BOOLEAN)) == Some(&[0xff])
    });
    let usage = value(extensions, KEY_USAGE).and_then(der::first);
    let usage = usage.and_then(|(element, _)| element.expect(BIT_STRING));
    let may_serve = match (value(extensions, KEY_USAGE), usage) {
        (None, _) => true,
        // The first byte counts the bits of the last that are not used.
        (_, Some([_, bits, ..])) => bits & SERVER_USAGE != 0,
        _ => false,
    };
    is_authority && may_serve
}

fn value<'a>(extensions: &[Element<'a>], wanted: &[u8]) -> Option<&'a [u8]> {
    let extension = extensions.iter().find(|extension| id(extension) == Some(wanted))?;
    der::all(extension.content)?.last()?.expect(OCTET_STRING)
}

fn id<'a>(extension: &Element<'a>) -> Option<&'a [u8]> {
    der::first(extension.expect(SEQUENCE)?)?.0.expect(OBJECT)
}

/// An algorithm that looks at what was signed where it is given what was written anew.
#[derive(Debug)]
struct OverSigned<'a> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    written: &'a [u8],
    signed: &'a [u8],
}

impl SignatureVerificationAlgorithm for OverSigned<'_> {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let message = if message == self.written { self.signed } else { message };
        self.algorithm.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

#[cfg(test)]
mod tests {
    use fuzz::fuzz;
    use rustls::server::ParsedCertificate;

    use super::*;
    use crate::pem;

    /// Of `openssl x509 -req` without extensions.
    const V1: &str = include_str!("../testdata/v1.pem");
    /// Of `openssl req -x509`: an authority's, with names.
    const AUTHORITY: &str = include_str!("../testdata/authority.pem");

    fn certificate(text: &str) -> CertificateDer<'static> {
        pem::certificates(text.as_bytes()).unwrap().remove(0).der
    }

    #[test]
    fn certificates_that_webpki_does_not_read_are_written_anew() {
        for text in [V1, AUTHORITY] {
            let original = certificate(text);
            let leaf = Leaf::new(&original);
            let parsed = ParsedCertificate::try_from(&leaf.certificate).unwrap();
            assert!(!parsed.subject_public_key_info().is_empty());
            let again = Leaf::new(&leaf.certificate);
            assert!(leaf.signed.is_some() && again.signed.is_none(), "what is in order stays as it is");
        }
        assert!(ParsedCertificate::try_from(&certificate(V1)).is_err(), "nothing to do any more");
    }

    #[test]
    fn broken_certificates_do_no_harm() {
        fuzz("leaf", |random| {
            let mut bytes = certificate(random.pick(&[V1, AUTHORITY])).to_vec();
            random.damage(&mut bytes, &["0\u{3}", "\u{3}", "0\u{0}", "\u{1}\u{1}"]);
            let damaged = CertificateDer::from(bytes);
            let leaf = Leaf::new(&damaged);
            let _ = ParsedCertificate::try_from(&leaf.certificate);
        });
    }
}
