//! Making a connection to one endpoint: TCP, and what the kernel shall watch over.
use std::{io, net::SocketAddr, time::Duration};

use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::lookup::Name;
use crate::{
    link::{Failure as Told, FailureKind, NOVA_BUFFER},
    race::{STAGGER, race},
};

/// Between probes on a silent connection.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Probes begin after half of the time for silence, within these bounds.
const PROBES_BEGIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// An address, and why there is no connection to it.
type Failure = (SocketAddr, io::Error);

/// Reason for which there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no such endpoint")]
    NoEndpoint,
    #[error("cannot look up {host}: {problem}")]
    Lookup { host: String, problem: String },
    #[error("{}", list(.0))]
    Tcp(Vec<Failure>),
    #[error("no connection within {:.1} s", .0.as_secs_f64())]
    Timeout(Duration),
}

impl Error {
    /// True if it is this machine that has no port, descriptor or memory left, and not the endpoint that failed.
    fn is_local(&self) -> bool {
        use Errno::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
        let is_local = |(_, error): &Failure| {
            let errno = error.raw_os_error().map(Errno::from_raw);
            matches!(errno, Some(EADDRNOTAVAIL | EMFILE | ENFILE | ENOBUFS | ENOMEM))
        };
        // A machine without IPv6 has no port for such an address either: one of several says nothing.
        matches!(self, Self::Tcp(failures) if failures.iter().all(is_local))
    }

    /// True if there is a machine, on which nobody listens.
    fn is_refused(&self) -> bool {
        let is_refused = |(_, error): &Failure| error.kind() == io::ErrorKind::ConnectionRefused;
        matches!(self, Self::Tcp(failures) if failures.iter().any(is_refused))
    }
}

impl From<Error> for Told {
    fn from(error: Error) -> Self {
        let kind = if error.is_local() {
            FailureKind::Local
        } else if error.is_refused() {
            FailureKind::Refused
        } else {
            FailureKind::Other
        };
        Self { kind, text: error.to_string() }
    }
}

fn list(failures: &[Failure]) -> String {
    let texts: Vec<_> =
        failures.iter().map(|(address, error)| format!("cannot connect to {address}: {error}")).collect();
    texts.join("; ")
}

/// Connects, in that time at most. From then on the peer may be silent for `silence`.
pub(super) async fn dial(
    name: &Name,
    host: &str,
    time: Duration,
    silence: Duration,
) -> Result<TcpStream, Error> {
    let deadline = Instant::now() + time;
    let slow = || Err("no answer in time".to_owned());
    let addresses = timeout_at(deadline, name.addresses()).await.unwrap_or_else(|_| slow());
    let addresses = addresses.map_err(|problem| Error::Lookup { host: host.to_owned(), problem })?;
    let connected = timeout_at(deadline, connect(addresses, silence)).await;
    connected.unwrap_or(Err(Error::Timeout(time)))
}

/// To whichever address takes it first. One that is silent does not use up the time of the next.
async fn connect(addresses: Vec<SocketAddr>, silence: Duration) -> Result<TcpStream, Error> {
    let attempts = addresses.into_iter().map(async |address| {
        let connecting = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // The kernel doubles it, for what is around the bytes (socket(7)).
            socket.set_recv_buffer_size(NOVA_BUFFER / 2)?;
            let stream = socket.connect(address).await?;
            stream.set_nodelay(true)?;
            // Whoever closes first keeps the port for a minute (TIME_WAIT), and most often that is us. A reset ends it
            // for both; what is cut off by it was to be thrown away.
            stream.set_zero_linger()?;
            watch_over(&stream, silence)?;
            Ok(stream)
        };
        connecting.await.map_err(|error| (address, error))
    });
    race(attempts.collect(), STAGGER).await.map_err(Error::Tcp)
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
    use super::{
        super::testing::{listening, refusing, run, silent},
        *,
    };

    #[test]
    fn what_this_machine_lacks_is_not_the_endpoints_failure() {
        let is_local = |errnos: &[Errno]| {
            let failure = |errno: &Errno| (refusing(), io::Error::from_raw_os_error(*errno as i32));
            Error::Tcp(errnos.iter().map(failure).collect()).is_local()
        };
        for errno in [Errno::EADDRNOTAVAIL, Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
            assert!(is_local(&[errno]), "{errno}");
            assert!(!is_local(&[errno, Errno::ECONNREFUSED]), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::ETIMEDOUT] {
            assert!(!is_local(&[errno]), "{errno}");
        }
        assert!(!Error::Timeout(Duration::ZERO).is_local());
    }

    #[test]
    fn a_silent_address_keeps_no_time_from_the_next() {
        let ((_silent, silent), (_listener, listening)) = (silent(), listening());
        for (addresses, least) in [
            (vec![silent, silent, listening], 2 * STAGGER),
            (vec![refusing(), silent, listening], STAGGER),
            (vec![listening, silent], Duration::ZERO),
        ] {
            let began = Instant::now();
            let stream = run(connect(addresses.clone(), Duration::from_secs(5))).unwrap();
            let took = began.elapsed();
            assert_eq!(stream.peer_addr().unwrap(), listening);
            // That what failed is not waited for, the tests of the race show without a clock.
            assert!(took >= least, "{addresses:?} took {took:?}");
        }
        let (one, other) = (refusing(), SocketAddr::from(([127, 0, 0, 2], 1)));
        let error = run(connect(vec![one, other], Duration::from_secs(5))).unwrap_err().to_string();
        for address in [one, other] {
            assert!(error.contains(&format!("cannot connect to {address}: Connection refused")), "{error}");
        }
    }
}
