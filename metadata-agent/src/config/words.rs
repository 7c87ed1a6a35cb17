//! Texts of options that are more than numbers and words: remotes, names, addresses.
use std::net::SocketAddr;

use ovsdb_client::{Remote, RemoteError, Remotes};

/// Tells whether a server is asked over TLS.
pub(super) fn has_tls(remotes: &Remotes) -> bool {
    remotes.as_slice().iter().any(|remote| matches!(remote, Remote::Ssl(_)))
}

/// One or several remotes; a list may go on over several lines.
pub(super) fn remotes(text: &str) -> Result<Remotes, String> {
    let joined: String = text.split_whitespace().collect();
    joined.parse().map_err(|error: RemoteError| error.to_string())
}

/// Those of a server on this host.
pub(super) fn local_remotes(text: &str) -> Result<Remotes, String> {
    let remotes = remotes(text)?;
    if has_tls(&remotes) {
        return Err("ssl: is for the Southbound; the local Open vSwitch is asked over unix: or tcp:".into());
    }
    Ok(remotes)
}

/// Name of a network namespace.
pub(super) fn netns_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && text.len() < 64 && !text.starts_with('.') && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected a file name of letters, digits, '-', '_' and '.'".into())
    }
}

/// Name of a user.
pub(super) fn user_name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected the name of a user".into()) } else { Ok(text.to_owned()) }
}

/// An address and a port, or none.
pub(super) fn optional_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "expected address:port, or [IPv6 address]:port".into())
}

/// Neutron's list of families.
pub(super) fn ip_versions(text: &str) -> Result<(), String> {
    let mut versions = text.trim_matches(['[', ']']).split(',').map(str::trim);
    versions.all(|version| matches!(version, "4" | "6")).then_some(()).ok_or("expected 4, 6, or both".into())
}
