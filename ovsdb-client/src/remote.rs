//! Remotes: the addresses of servers, in the syntax of Open vSwitch (ovsdb(7), "Active OVSDB Connections").

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port that OVSDB has by default, registered with IANA.
const DEFAULT_PORT: u16 = 6640;

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Remote {
    /// `unix:<path>`
    Unix(PathBuf),
    /// `tcp:<host>:<port>`
    Tcp(Endpoint),
    /// `ssl:<host>:<port>`
    Ssl(Endpoint),
}

/// A host, by address or name, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address or name, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The servers of one database, any of which will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remotes(Vec<Remote>);

/// A remote that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("OVSDB remote {remote:?}: {problem}")]
pub struct RemoteError {
    remote: String,
    problem: String,
}

impl Remotes {
    /// The list of `remotes`, or `None` if it is empty.
    pub fn new(remotes: Vec<Remote>) -> Option<Self> {
        (!remotes.is_empty()).then_some(Self(remotes))
    }

    pub(crate) fn first(&self) -> &Remote {
        &self.0[0]
    }

    /// The remotes in the order given.
    pub fn as_slice(&self) -> &[Remote] {
        &self.0
    }
}

impl From<Remote> for Remotes {
    fn from(remote: Remote) -> Self {
        Self(vec![remote])
    }
}

impl FromStr for Remotes {
    type Err = RemoteError;

    fn from_str(text: &str) -> Result<Self, RemoteError> {
        let remotes: Vec<Remote> = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Self::new(remotes).ok_or_else(|| RemoteError {
            remote: text.to_owned(),
            problem: "the list is empty: write for example \"ssl:192.0.2.1:6642,ssl:192.0.2.2:6642\""
                .to_owned(),
        })
    }
}

impl fmt::Display for Remotes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, remote) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            write!(formatter, "{remote}")?;
        }
        Ok(())
    }
}

impl FromStr for Remote {
    type Err = RemoteError;

    fn from_str(text: &str) -> Result<Self, RemoteError> {
        let fail = |problem: String| RemoteError { remote: text.to_owned(), problem };
        let (method, target) = text
            .split_once(':')
            .ok_or_else(|| fail("no method: put \"unix:\", \"tcp:\" or \"ssl:\" before it".to_owned()))?;
        match method {
            "unix" if target.is_empty() => Err(fail("no path after \"unix:\"".to_owned())),
            "unix" => Ok(Self::Unix(target.into())),
            "tcp" => endpoint(target).map(Self::Tcp).map_err(fail),
            "ssl" => endpoint(target).map(Self::Ssl).map_err(fail),
            "punix" | "ptcp" | "pssl" => Err(fail(format!(
                "\"{method}:\" is where a server listens: a client connects to \"{}:\"",
                &method[1..]
            ))),
            other => Err(fail(format!("unknown method {other:?}: use \"unix:\", \"tcp:\" or \"ssl:\""))),
        }
    }
}

fn endpoint(target: &str) -> Result<Endpoint, String> {
    let (host, port) = if let Some(rest) = target.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("no \"]\" after the IPv6 address")?;
        match rest {
            "" => (host, None),
            _ => (
                host,
                Some(
                    rest.strip_prefix(':')
                        .ok_or_else(|| format!("{rest:?} after \"]\": expected \":<port>\""))?,
                ),
            ),
        }
    } else {
        match target.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(format!(
                    "an IPv6 address needs brackets: write \"[<address>]:<port>\" for {target:?}"
                ));
            }
            Some((host, port)) => (host, Some(port)),
            None => (target, None),
        }
    };
    if host.is_empty() {
        return Err("no host before the port".to_owned());
    }
    if let Some(stranger) = host.chars().find(|c| "[]/".contains(*c) || c.is_whitespace() || c.is_control()) {
        return Err(format!("{stranger:?} in the host {host:?}: expected a name or an address"));
    }
    let port = match port {
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err(format!("{port:?} is no port: expected a number from 1 to 65535")),
            Ok(port) => port,
        },
        None => DEFAULT_PORT,
    };
    Ok(Endpoint { host: host.to_owned(), port })
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(endpoint) => write!(formatter, "tcp:{endpoint}"),
            Self::Ssl(endpoint) => write!(formatter, "ssl:{endpoint}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_is_understood() {
        let cases = [
            ("unix:/run/db.sock", "unix:/run/db.sock"),
            ("tcp:127.0.0.1:6642", "tcp:127.0.0.1:6642"),
            ("tcp:[::1]:6642", "tcp:[::1]:6642"),
            ("ssl:[fe80::1%eth0]", "ssl:[fe80::1%eth0]:6640"),
            ("ssl:sb.example.org:16642", "ssl:sb.example.org:16642"),
            ("tcp:db", "tcp:db:6640"),
            (" tcp:a:1, ssl:b:2 ,unix:/c,", "tcp:a:1,ssl:b:2,unix:/c"),
        ];
        for (text, canonical) in cases {
            let remotes: Remotes = text.parse().unwrap();
            assert_eq!(remotes.to_string(), canonical);
            assert_eq!(canonical.parse::<Remotes>().unwrap(), remotes);
        }
    }

    #[test]
    fn errors_name_the_part_and_the_remedy() {
        let cases = [
            ("", "the list is empty"),
            ("127.0.0.1", "no method"),
            ("tcp:a:1,http:b:2", r#""http:b:2": unknown method "http""#),
            ("ptcp:6642", "a client connects to \"tcp:\""),
            ("tcp:::1:6642", "needs brackets"),
            ("tcp:[::1:6642", "no \"]\""),
            ("tcp:[::1]6642", "expected \":<port>\""),
            ("tcp:a:0", "no port"),
            ("ssl:a:70000", "no port"),
            ("ssl::6642", "no host"),
            ("tcp:[[::1]:6642", "'[' in the host"),
            ("tcp:sb 1:6642", "' ' in the host"),
            ("unix:", "no path"),
        ];
        for (text, problem) in cases {
            let error = text.parse::<Remotes>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints(text in "((unix|tcp|ssl|p)?[:\\[\\],a0-9/é]{0,12},?){0,3}") {
            if let Ok(remotes) = text.parse::<Remotes>() {
                prop_assert_eq!(remotes.to_string().parse::<Remotes>(), Ok(remotes));
            }
        }
    }
}
