//! Making a connection to one endpoint: TCP, what the kernel shall watch over, TLS.
use std::{io, time::Duration};

use nix::errno::Errno;
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

impl ConnectError {
    /// Whether it is this machine that has no port, descriptor or memory left, and not the endpoint that failed.
    pub(super) fn is_local(&self) -> bool {
        use Errno::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
        let Self::Io(error) = self else { return false };
        let errno = error.raw_os_error().map(Errno::from_raw);
        matches!(errno, Some(EADDRNOTAVAIL | EMFILE | ENFILE | ENOBUFS | ENOMEM))
    }
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
        stream.set_nodelay(true)?;
        // Whoever closes first keeps the port for a minute (TIME_WAIT), and most often that is us. A reset ends it for
        // both; what is cut off by it was to be thrown away.
        stream.set_zero_linger()?;
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
    let (earliest, latest) = PROBES_BEGIN;
    let probes =
        TcpKeepalive::new().with_time((silence / 2).clamp(earliest, latest)).with_interval(PROBE_INTERVAL);
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(silence))?;
    socket.set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_is_not_the_endpoints_failure() {
        let is_local = |errno| ConnectError::Io(io::Error::from_raw_os_error(errno as i32)).is_local();
        for errno in [Errno::EADDRNOTAVAIL, Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
            assert!(is_local(errno), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::ETIMEDOUT] {
            assert!(!is_local(errno), "{errno}");
        }
        assert!(!ConnectError::Timeout(Duration::ZERO).is_local());
    }
}
