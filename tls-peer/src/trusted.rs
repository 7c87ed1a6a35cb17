//! Auxiliary data behind a `TRUSTED CERTIFICATE` (`openssl x509 -trustout`): the uses for which it is trusted, or is
//! not.
use crate::der::{self, OBJECT, SEQUENCE, context};

/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
/// anyExtendedKeyUsage, 2.5.29.37.0.
const ANY: &[u8] = &[0x55, 0x1d, 37, 0];

/// Trust of an authority to sign servers' certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerTrust {
    /// Nothing is said about it.
    Unsaid,
    /// Said to be, or only for something else.
    Explicit(bool),
}

impl ServerTrust {
    pub(crate) fn is_refused(self) -> bool {
        self == Self::Explicit(false)
    }
}

/// By the rules of OpenSSL's `obj_trust`: what is rejected is, and what is trusted for some uses is so for no other. What
/// cannot be read is not trusted.
pub(crate) fn read(auxiliary: &[u8]) -> ServerTrust {
    uses(auxiliary).unwrap_or(ServerTrust::Explicit(false))
}

/// `SEQUENCE { trust SEQUENCE OF OBJECT OPTIONAL, reject [0] SEQUENCE OF OBJECT OPTIONAL, ... }`.
fn uses(auxiliary: &[u8]) -> Option<ServerTrust> {
    let fields = der::all(der::first(auxiliary)?.0.expect(SEQUENCE)?)?;
    let list = |tag| fields.iter().find(|field| field.tag == tag).map(|field| der::all(field.content));
    let has_server = |uses: &[der::Element<'_>]| {
        uses.iter().any(|element| matches!(element.expect(OBJECT), Some(SERVER_AUTH | ANY)))
    };
    let (trust, reject) = (list(SEQUENCE), list(context(0)));
    if has_server(&reject.unwrap_or_else(|| Some(Vec::new()))?) {
        return Some(ServerTrust::Explicit(false));
    }
    Some(match trust {
        Some(uses) => ServerTrust::Explicit(has_server(&uses?)),
        None => ServerTrust::Unsaid,
    })
}
