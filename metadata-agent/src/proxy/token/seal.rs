//! A session token as bytes: its end, sealed with the key of one assignment of a port (AES-256-GCM), and written in base64 for
//! URLs. Nothing is kept of it.
//!
//! ```text
//! nonce, 12 bytes     sealed: end by the boot clock in milliseconds, 8 bytes     tag, 16 bytes
//! ```
//!
//! It is sealed and not only signed because the boot clock would tell guests how long the host has been up.
use std::time::Duration;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    error::Unspecified,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::directory::{TokenKey, TokenKeys};

/// Bytes before and after they are written in base64.
const SEALED: usize = NONCE_LEN + 8 + 16;
const TEXT: usize = SEALED / 3 * 4;

/// Domain separation, and the format's version.
const FORMAT: &[u8] = b"session token 1";

/// Reason why a token is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// It was not sealed with one of the keys.
    Invalid,
    /// It was, and its time is over.
    Expired,
}

/// A token that lasts until then.
pub(in crate::proxy) fn seal(keys: &TokenKeys, end: Duration) -> Result<String, Unspecified> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, &keys.current.0)?;
    let mut sealed = u64::try_from(end.as_millis()).map_err(|_| Unspecified)?.to_be_bytes().to_vec();
    let nonce = key.seal_in_place_append_tag(Aad::from(FORMAT), &mut sealed)?;
    Ok(URL_SAFE_NO_PAD.encode([&nonce.as_ref()[..], &sealed].concat()))
}

/// Checks that a token was sealed with one of these keys, and lasts. How another one differs from one takes no time that tells anything:
/// the tag is compared in constant time.
pub(super) fn open(token: &[u8], keys: &TokenKeys, now: Duration) -> Result<(), Problem> {
    let mut bytes = [0; SEALED];
    if token.len() != TEXT || URL_SAFE_NO_PAD.decode_slice(token, &mut bytes) != Ok(SEALED) {
        return Err(Problem::Invalid);
    }
    let all = [Some(&keys.current), keys.previous.as_ref()];
    let end = all.into_iter().flatten().find_map(|key| end(bytes, key).ok()).ok_or(Problem::Invalid)?;
    if now < end { Ok(()) } else { Err(Problem::Expired) }
}

/// End of a token that was sealed with that key.
fn end(mut bytes: [u8; SEALED], key: &TokenKey) -> Result<Duration, Unspecified> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, &key.0)?;
    let (nonce, sealed) = bytes.split_at_mut(NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(nonce)?;
    let end = key.open_in_place(nonce, Aad::from(FORMAT), sealed)?;
    Ok(Duration::from_millis(u64::from_be_bytes((&*end).try_into().map_err(|_| Unspecified)?)))
}

#[cfg(test)]
mod tests {
    use ::fuzz::fuzz;

    use super::*;

    fn keys(current: u8, previous: Option<u8>) -> TokenKeys {
        let key = |byte| TokenKey([byte; 32]);
        TokenKeys { current: key(current), previous: previous.map(key) }
    }

    const END: Duration = Duration::from_millis(21_600_000);
    const BEFORE: Duration = Duration::from_millis(21_599_999);

    #[test]
    fn a_token_lasts_to_its_end_and_for_its_key() {
        let token = seal(&keys(1, None), END).unwrap();
        assert_eq!(token.len(), TEXT);
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{token}");
        let open = |keys: &TokenKeys, now| open(token.as_bytes(), keys, now);
        assert_eq!(open(&keys(1, None), Duration::ZERO), Ok(()));
        assert_eq!(open(&keys(1, None), BEFORE), Ok(()));
        assert_eq!(open(&keys(1, None), END), Err(Problem::Expired));
        // A clock that cannot be read.
        assert_eq!(open(&keys(1, None), Duration::MAX), Err(Problem::Expired));
        assert_eq!(open(&keys(2, Some(1)), BEFORE), Ok(()));
        assert_eq!(open(&keys(2, Some(1)), END), Err(Problem::Expired));
        for others in [keys(2, None), keys(2, Some(3)), keys(0, None)] {
            assert_eq!(open(&others, Duration::ZERO), Err(Problem::Invalid));
        }
        // No two are the same, though they end together.
        assert_ne!(seal(&keys(1, None), END).unwrap(), token);
    }

    /// A changed token is none any more; nor is one what never was.
    #[test]
    fn tokens_that_were_changed() {
        let keys = keys(7, Some(8));
        let token = seal(&keys, END).unwrap();
        for at in 0..token.len() {
            for byte in 0..=255 {
                let mut changed = token.clone().into_bytes();
                if changed[at] == byte {
                    continue;
                }
                changed[at] = byte;
                assert_eq!(open(&changed, &keys, BEFORE), Err(Problem::Invalid), "{at} {byte}");
            }
        }
        for text in
            ["", "=", "AAAA", &token[1..], &format!("{token}="), &format!("{token}A"), &format!(" {token}")]
        {
            assert_eq!(open(text.as_bytes(), &keys, BEFORE), Err(Problem::Invalid), "{text}");
        }
        fuzz("proxy::token::seal", |random| {
            let mut changed = token.clone().into_bytes();
            random.damage(&mut changed, &["-", "_", "=", "A", "AAAA", "%3d", "\0", "\u{e4}"]);
            let expected = if changed == token.as_bytes() { Ok(()) } else { Err(Problem::Invalid) };
            assert_eq!(open(&changed, &keys, BEFORE), expected, "{}", changed.escape_ascii());
        });
    }
}
