//! Making a connection to one endpoint: TCP, what the kernel shall watch over, TLS.
use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use super::{connection::Stream, endpoint::Endpoint, tls::Tls};

/// Between probes on a silent connection.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Probes begin after half of the time for silence, within these bounds.
const PROBES_BEGIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no connection within {:.1} s", .0.as_secs_f64())]
    Timeout(Duration),
}

/// Connects, in that time at most. From then on the peer may be silent for `silence`.
pub(super) async fn dial(
    endpoint: &Endpoint,
    tls: Option<&Tls>,
    time: Duration,
    silence: Duration,
) -> Result<Stream, ConnectError> {
    let dialing = async {
        let config = endpoint.address();
        let stream = TcpStream::connect((config.host.as_str(), config.port)).await?;
        watch_over(&stream, silence)?;
        Ok(match tls {
            None => Either::Left(stream),
            Some(tls) => Either::Right(Box::new(tls.connect(&config.host, stream).await?)),
        })
    };
    tokio::time::timeout(time, dialing).await.unwrap_or(Err(ConnectError::Timeout(time)))
}

/// Lets the kernel find out when a host is gone that sends no reset: while a request is not acknowledged, and by probes
/// while its answer is awaited or the connection is idle. A host that only takes long acknowledges both.
///
/// With a user timeout, probes go on for that time and not until there were so many of them (`tcp_keepalive_timer` in
/// net/ipv4/tcp_timer.c).
fn watch_over(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (earliest, latest) = PROBES_BEGIN;
    let probes =
        TcpKeepalive::new().with_time((silence / 2).clamp(earliest, latest)).with_interval(PROBE_INTERVAL);
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(silence))?;
    socket.set_tcp_keepalive(&probes)
}
