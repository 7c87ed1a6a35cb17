//! Streams of bytes to servers.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::config::TlsConfig;
use crate::remote::{Endpoint, Remote};
use crate::tls::{self, TlsError};

/// Delay before the next address of a host is tried as well (happy eyeballs: RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection to a server, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Reason for which no connection was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
        /// The resolver's error.
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

async fn connect_tcp(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    let resolve = |error| ConnectError::Resolve { host: endpoint.host.clone(), error };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await.map_err(resolve)?.collect();
    if addresses.is_empty() {
        return Err(resolve(io::Error::other("the name has no address")));
    }
    let stream = connect_any(addresses, ATTEMPT_DELAY).await?;
    // Requests are small and each is waited for.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects to whichever address answers first. Each gets its turn when the one before failed, or has not answered for `delay`
/// but still may: an address that swallows everything must not keep a client from the others.
async fn connect_any(addresses: Vec<SocketAddr>, delay: Duration) -> io::Result<TcpStream> {
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::other("no address");
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(TcpStream::connect(address));
        }
        match tokio::time::timeout(delay, attempts.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(Some(Err(stopped))) => last = stopped.into(),
            Ok(None) => return Err(last),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// An address that does not answer, because nobody takes those that connect, as long as the streams are kept.
    async fn silent() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut streams = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
        {
            streams.push(stream.unwrap());
        }
        (address, listener, streams)
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_is_not_waited_for() {
        let (silent, _listener, _streams) = silent().await;
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = (good.local_addr().unwrap(), good);
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();

        // What failed is not waited for.
        let (began, long) = (Instant::now(), Duration::from_secs(600));
        let stream = connect_any(vec![refusing, good.0], long).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good.0);
        assert!(began.elapsed() < long, "{:?}", began.elapsed());
        let stream = connect_any(vec![silent, refusing, silent, good.0], ATTEMPT_DELAY).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good.0);

        let error = connect_any(vec![refusing, refusing], long).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(
            tokio::time::timeout(ATTEMPT_DELAY * 3, connect_any(vec![silent], ATTEMPT_DELAY)).await.is_err()
        );
    }
}
