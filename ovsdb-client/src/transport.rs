//! Streams of bytes to servers.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::TlsConfig;
use crate::remote::{Endpoint, Remote};
use crate::tls::{self, TlsError};

/// A connection to a server, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket could not be connected.
    #[error("cannot connect: {0}")]
    Io(#[from] io::Error),
    /// Nobody answered in time.
    #[error("cannot connect: no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// A name that has no address.
    #[error("cannot resolve {host:?}: {error}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// An `ssl:` remote, but no keys.
    #[error("no private key, certificate and CA certificate are configured, which ssl: needs")]
    NoTlsConfig,
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

pub(crate) async fn connect(
    remote: &Remote,
    tls: Option<&TlsConfig>,
    timeout: Duration,
) -> Result<Box<dyn Stream>, ConnectError> {
    let connecting = async {
        Ok(match remote {
            Remote::Unix(path) => Box::new(UnixStream::connect(path).await?) as Box<dyn Stream>,
            Remote::Tcp(endpoint) => Box::new(connect_tcp(endpoint).await?),
            Remote::Ssl(endpoint) => {
                // The files first: an error in them must not hide behind one of the network.
                let connector = tls::Connector::load(tls.ok_or(ConnectError::NoTlsConfig)?)?;
                Box::new(connector.connect(&endpoint.host, connect_tcp(endpoint).await?).await?)
            }
        })
    };
    tokio::time::timeout(timeout, connecting).await.unwrap_or(Err(ConnectError::Timeout(timeout)))
}

/// Tries each address of the host in turn.
async fn connect_tcp(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    let resolve = |error| ConnectError::Resolve { host: endpoint.host.clone(), error };
    let mut last = resolve(io::Error::other("the name has no address"));
    for address in tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await.map_err(resolve)? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Requests are small and each is waited for.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
