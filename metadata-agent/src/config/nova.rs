//! Settings of the upstream, nova-metadata, by Neutron's options.
use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Error, defaults,
    ini::DEFAULT,
    options::{Options, boolean, number, timeout},
};

/// Neutron's section for what haproxy did.
const HAPROXY: &str = "metadata_haproxy";

/// Nova, as configured.
#[derive(Debug, Clone)]
pub struct Nova {
    /// `nova_metadata_host`, one or several, each with a port of its own or `nova_metadata_port`.
    pub endpoints: Vec<Endpoint>,
    /// For `nova_metadata_protocol = https`.
    pub tls: Option<NovaTls>,
    /// `metadata_proxy_shared_secret`.
    pub secret: Secret,
    /// `[metadata_haproxy] timeout_connect`.
    pub connect_timeout: Duration,
    /// `[metadata_haproxy] timeout_server`: until the answer has begun, and between parts of its body.
    pub response_timeout: Duration,
}

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

/// Files for https; they are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NovaTls {
    /// `auth_ca_cert`; the system's authorities when it is not set.
    pub ca: Option<PathBuf>,
    /// `nova_client_cert` and `nova_client_priv_key`.
    pub client: Option<ClientCertificate>,
    /// `nova_metadata_insecure`: any certificate will do.
    pub insecure: bool,
}

/// Client certificate for Nova (mutual TLS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those up to the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub private_key: PathBuf,
}

impl Nova {
    pub(super) fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        let secret = options.text(DEFAULT, "metadata_proxy_shared_secret")?.ok_or(Error::Missing {
            section: DEFAULT,
            option: "metadata_proxy_shared_secret",
            remedy: "set it to the value of nova's [neutron] metadata_proxy_shared_secret, which may be empty",
        })?;
        let secret = Secret(secret.text);
        options.differs(DEFAULT, "metadata_proxy_shared_secret", format_args!("{secret:?}"));
        let port = options.parse(DEFAULT, "nova_metadata_port", defaults::NOVA_PORT, |text| {
            Ok(number(text, 1, 65535)? as u16)
        })?;
        let default = vec![Endpoint { host: defaults::NOVA_HOST.to_owned(), port }];
        let https = options.parse(DEFAULT, "nova_metadata_protocol", false, |text| match text {
            "http" => Ok(false),
            "https" => Ok(true),
            _ => Err("expected http or https".into()),
        })?;
        Ok(Self {
            endpoints: options.parse(DEFAULT, "nova_metadata_host", default, |text| endpoints(text, port))?,
            tls: if https { Some(NovaTls::from_ini(options)?) } else { None },
            secret,
            connect_timeout: options.parse(HAPROXY, "timeout_connect", Duration::from_secs(5), timeout)?,
            response_timeout: options.parse(HAPROXY, "timeout_server", Duration::from_secs(32), timeout)?,
        })
    }
}

impl NovaTls {
    fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        let path = |option| options.path(DEFAULT, option);
        let client = match (path("nova_client_cert")?, path("nova_client_priv_key")?) {
            (Some(certificate), Some(private_key)) => Some(ClientCertificate { certificate, private_key }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(missing_half(
                    "nova_client_priv_key",
                    "nova_client_cert is set, and is of no use without its key",
                ));
            }
            (None, Some(_)) => {
                return Err(missing_half(
                    "nova_client_cert",
                    "nova_client_priv_key is set, and is of no use without its certificate",
                ));
            }
        };
        let insecure = options.parse(DEFAULT, "nova_metadata_insecure", false, boolean)?;
        Ok(Self { ca: path("auth_ca_cert")?, client, insecure })
    }
}

fn missing_half(option: &'static str, remedy: &'static str) -> Error {
    Error::Missing { section: DEFAULT, option, remedy }
}

/// `host[:port]`, several with commas or space between them.
fn endpoints(text: &str, port: u16) -> Result<Vec<Endpoint>, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let endpoints: Vec<_> = words.map(|word| endpoint(word, port)).collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        Err("expected at least one host name or address".into())
    } else {
        Ok(endpoints)
    }
}

fn endpoint(word: &str, default: u16) -> Result<Endpoint, String> {
    let (host, port) = match word.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
        // More than one colon: an IPv6 address without brackets.
        None => match word.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (word, Some("")),
        },
    };
    let port = match port {
        Some("") if !word.ends_with(':') || host == word => Some(default),
        Some(port) => number(port, 1, 65535).ok().map(|port| port as u16),
        None => None,
    };
    // A dot at the end is taken off, as oslo.config does: certificates have none.
    let host = match host.strip_suffix('.') {
        Some(name) if is_name(name) => name,
        _ => host,
    };
    match port {
        Some(port) if is_name(host) || host.parse::<IpAddr>().is_ok() => {
            Ok(Endpoint { host: host.to_owned(), port })
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

/// A text that never appears in logs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it is known to everybody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(empty)" } else { "(set)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_names_and_addresses() {
        let names =
            |text| endpoints(text, 8775).map(|list| list.iter().map(Endpoint::authority).collect::<Vec<_>>());
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
