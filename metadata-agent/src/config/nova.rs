//! Settings of the upstream, nova-metadata, by Neutron's options.
use std::{path::PathBuf, time::Duration};

use super::{Endpoint, Error, Secret, options::Options, table};

/// Nova, as configured.
#[derive(Debug, Clone)]
pub struct NovaOptions {
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

impl NovaOptions {
    pub(super) fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        let port = options.get(&table::NOVA_PORT)?;
        let named = options.get(&table::NOVA_HOST)?.into_iter();
        Ok(Self {
            endpoints: named.map(|endpoint| endpoint.at(port)).collect(),
            tls: if options.get(&table::NOVA_HTTPS)? { Some(NovaTls::from_ini(options)?) } else { None },
            secret: options.get(&table::SECRET)?,
            connect_timeout: options.get(&table::CONNECT_TIMEOUT)?,
            response_timeout: options.get(&table::SERVER_TIMEOUT)?,
        })
    }
}

impl NovaTls {
    fn from_ini(options: &Options<'_>) -> Result<Self, Error> {
        let client = match (options.get(&table::NOVA_CERTIFICATE)?, options.get(&table::NOVA_KEY)?) {
            (Some(certificate), Some(private_key)) => Some(ClientCertificate { certificate, private_key }),
            (None, None) => None,
            (Some(_), None) => {
                let remedy = "nova_client_cert is set, and is of no use without its key";
                return Err(Error::missing(&table::NOVA_KEY, remedy));
            }
            (None, Some(_)) => {
                let remedy = "nova_client_priv_key is set, and is of no use without its certificate";
                return Err(Error::missing(&table::NOVA_CERTIFICATE, remedy));
            }
        };
        Ok(Self { ca: options.get(&table::NOVA_CA)?, client, insecure: options.get(&table::NOVA_INSECURE)? })
    }
}
