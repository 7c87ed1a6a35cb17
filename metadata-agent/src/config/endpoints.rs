//! Endpoints of Nova as they are named: hosts and ports.
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::setting::number;

/// A server of Nova's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name or address, the latter without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// As it stands in a Host header.
    pub fn authority(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// An endpoint as it is named: where it has no port, all have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    host: String,
    port: Option<u16>,
}

impl Named {
    /// The endpoint, with that port if it names none.
    pub(super) fn at(self, port: u16) -> Endpoint {
        Endpoint { host: self.host, port: self.port.unwrap_or(port) }
    }
}

/// `host[:port]`, several with commas or space between them.
pub(super) fn endpoints(text: &str) -> Result<Vec<Named>, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let endpoints: Vec<_> = words.map(endpoint).collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        Err("expected at least one host name or address".into())
    } else {
        Ok(endpoints)
    }
}

fn endpoint(word: &str) -> Result<Named, String> {
    let (host, port) = match word.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
        // More than one colon: an IPv6 address without brackets.
        None => match word.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (word, Some("")),
        },
    };
    let port = match port {
        Some("") if !word.ends_with(':') || host == word => Some(None),
        Some(port) => number(port, &1, &65535).ok().map(Some),
        None => None,
    };
    // A dot at the end is taken off, as oslo.config does: certificates have none.
    let host = match host.strip_suffix('.') {
        Some(name) if is_name(name) => name,
        _ => host,
    };
    match port {
        Some(port) if is_name(host) || host.parse::<IpAddr>().is_ok() => {
            Ok(Named { host: host.to_owned(), port })
        }
        _ => Err(format!("{word:?} is no host[:port]; an IPv6 address with a port stands in brackets")),
    }
}

/// By oslo.config's rules, which take a mistyped address for no name; underscores are let pass, as in its later versions.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(allowed)
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(is_label) && !last.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_names_and_addresses() {
        let authority =
            |named: Named| Endpoint { host: named.host, port: named.port.unwrap_or(8775) }.authority();
        let names = |text| endpoints(text).map(|list| list.into_iter().map(authority).collect::<Vec<_>>());
        assert_eq!(names("10.0.0.5").unwrap(), ["10.0.0.5:8775"]);
        assert_eq!(
            names("nova.example.com:80, [fd00::1],fd00::2\n [fd00::3]:81").unwrap(),
            ["nova.example.com:80", "[fd00::1]:8775", "[fd00::2]:8775", "[fd00::3]:81"]
        );
        assert_eq!(names("nova.example.com.,nova.:80").unwrap(), ["nova.example.com:8775", "nova:80"]);
        for bad in [
            "",
            ",",
            "a:",
            "a:0",
            "a:b",
            "[a",
            "[fd00::1",
            "[fd00::1]x",
            "[fd00::1]:",
            "http://a",
            "a/b",
            "x::y::z",
            ".",
        ] {
            assert!(names(bad).is_err(), "{bad}: {:?}", names(bad));
        }
    }
}
