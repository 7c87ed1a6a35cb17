//! Parts of a path, as Nova or a server before it may read them: none of their readings may name what ours does not.
//!
//! A document is had by its name only, so what counts is whether its name is among the parts of the path, whatever dots and
//! slashes stand around it. A target that names one by accident is refused, which costs nobody anything: no client sends it.
//!
//! The readings that there are: escapes are decoded once by eventlet and uWSGI, and once more by some proxy before them. Python's
//! `http.server`, on which eventlet is built, takes bytes 0x85 and 0xA0 for spaces, and so cuts them off a target's end. uWSGI
//! (2.0.21) cuts off an escape that is not finished, and takes one that is none for a byte 0.
use crate::config::EVERY_PATH;

/// Rounds of decoding; what is not plain then is not meant well.
const ROUNDS: usize = 4;

/// Tells whether a target may name one of these to somebody who reads it.
pub(super) fn may_name(target: &[u8], names: &[String]) -> bool {
    if names.iter().any(|name| name == EVERY_PATH) {
        return true;
    }
    let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    match plain(&target[..end]) {
        Some(path) => {
            let mut parts = path.split(|byte| matches!(byte, b'/' | b'\\')).map(trimmed);
            parts.any(|part| names.iter().any(|name| part.eq_ignore_ascii_case(name.as_bytes())))
        }
        None => true,
    }
}

/// A path with nothing left to decode, unless it has escapes that are none, or escapes of escapes of escapes.
fn plain(path: &[u8]) -> Option<Vec<u8>> {
    let mut path = path.to_vec();
    for _ in 0..ROUNDS {
        if !path.contains(&b'%') {
            return Some(path);
        }
        path = decoded(&path)?;
    }
    None
}

/// A path with each escape replaced by its byte (RFC 3986, section 2.1), unless one is none.
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            other => *other,
        });
    }
    Some(decoded)
}

/// A part without parameters behind it, and without what some reader may take for space around it, in Latin-1 or UTF-8.
fn trimmed(part: &[u8]) -> &[u8] {
    let is_end = |byte: &u8| matches!(byte, b';' | b'?' | b'#' | b'\0');
    let part = part.split(is_end).next().unwrap_or_default();
    let is_space = |byte: &u8| {
        byte.is_ascii_whitespace() || byte.is_ascii_control() || matches!(byte, 0x85 | 0xa0 | 0xc2)
    };
    let start = part.iter().position(|byte| !is_space(byte)).unwrap_or(part.len());
    let end = part.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &part[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tokens;

    fn names() -> Vec<String> {
        Tokens::default().required_for
    }

    #[test]
    fn however_it_is_written() {
        for target in [
            &b"/latest/user-data"[..],
            b"/2009-04-04/user-data",
            b"/ec2/latest/user-data",
            b"/latest/user-data/",
            b"//latest///user-data",
            b"/latest/./user-data",
            b"/latest/meta-data/../user-data",
            b"/latest/meta-data/..%2fuser-data",
            b"/latest/meta-data/%2e%2e/user-data",
            b"/x%3f/../latest/user-data",
            b"/latest/%75ser-data",
            b"/latest/%75%73%65%72%2D%64%61%74%61",
            b"/latest%2Fuser-data",
            b"/latest%2fuser-data%2f",
            b"/latest/%2575ser-data",
            b"/latest/%252575ser-data",
            b"/latest/User-Data",
            b"/latest/user-data?x",
            b"/latest/user-data?x=/latest/meta-data",
            b"/latest/user-data;x",
            b"/latest/user-data;x/",
            b"/latest/user-data%3bx",
            b"/latest/user-data%3f",
            b"/latest/user-data%23",
            b"/latest/user-data%00",
            b"/latest/user-data\x85",
            b"/latest/user-data\xa0\xa0",
            b"/latest/user-data%20",
            b"/latest/%0auser-data",
            b"/latest/user-data%C2%A0",
            b"/latest\\user-data",
            // Escapes that are none; uWSGI serves user data for the last two.
            b"/latest/%zz",
            b"/openstack/latest/%7!assword",
            b"/latest/user-data%",
            b"/latest/user-data%2",
            b"/%25252525252575ser-data",
            b"/openstack/latest/user_data",
            b"/openstack/2018-08-27/password",
            b"/openstack/latest/vendor_data.json",
            b"/openstack/latest/vendor_data2.json",
            b"/openstack/content/0000",
            b"/user-data/../..",
        ] {
            assert!(may_name(target, &names()), "{}", target.escape_ascii());
        }
    }

    #[test]
    fn others_need_none() {
        for target in [
            &b"/"[..],
            b"/latest/",
            b"/latest/meta-data/",
            b"/latest/meta-data/instance-id",
            b"/latest/meta-data/public-keys/0/openssh-key",
            b"/latest/meta-data/placement/availability-zone",
            b"/openstack",
            b"/openstack/latest/meta_data.json",
            b"/openstack/latest/network_data.json",
            b"/openstack/latest/meta_data.json?user_data",
            b"/latest/user-data2",
            b"/latest/user",
            b"/latest/meta%2Ddata/",
            b"/latest/meta-data/\xe4%E4",
            b"/?/user-data",
        ] {
            assert!(!may_name(target, &names()), "{}", target.escape_ascii());
        }
        assert!(may_name(b"/", &["user-data".to_owned(), EVERY_PATH.to_owned()]));
        assert!(may_name(b"/latest/meta-data/public-keys/0/openssh-key", &["public-keys".to_owned()]));
    }
}
