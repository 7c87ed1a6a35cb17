//! The way to Nova for who may make no socket: names, TCP connections, certificates and the client's key. All of it is the
//! privileged process'; what is said over the connections is the guest-facing one's.
//!
//! ```text
//! dial        a TCP connection to an endpoint     lookup        where a name is
//! certificates  files, read again when they change
//! ```
#![forbid(unsafe_code)]
mod certificates;
mod dial;
mod lookup;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::sign::SigningKey;
use tokio::{
    net::TcpStream,
    time::{Instant as Deadline, timeout_at},
};

pub use self::certificates::{Edition, TlsError};
use self::{certificates::Credentials, dial::dial, lookup::Name};
use crate::{
    config,
    error_chain::chain,
    link::{Certificates, Failure},
    race::race,
};

/// Dialler of Nova's endpoints.
#[derive(Debug)]
pub struct Dialler {
    endpoints: Vec<Endpoint>,
    credentials: Option<Credentials>,
    connect_timeout: Duration,
    last_connected: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Endpoint {
    address: config::Endpoint,
    name: Name,
}

impl Dialler {
    /// As configured. Reads certificates, so that what is wrong with them is said at start.
    pub fn new(config: &config::NovaOptions) -> Result<Self, TlsError> {
        let endpoint = |address: &config::Endpoint| Endpoint {
            address: address.clone(),
            name: Name::new(&address.host, address.port),
        };
        Ok(Self {
            endpoints: config.endpoints.iter().map(endpoint).collect(),
            credentials: config.tls.as_ref().map(Credentials::load).transpose()?,
            connect_timeout: config.connect_timeout,
            last_connected: Mutex::default(),
        })
    }

    /// Makes a TCP connection to an endpoint, for a request; within that time, and that of the settings.
    pub async fn dial(&self, endpoint: usize, within: Duration) -> Result<TcpStream, Failure> {
        let Some(endpoint) = self.endpoints.get(endpoint) else {
            return Err(dial::Error::NoEndpoint.into());
        };
        let begun = Instant::now();
        let within = within.min(self.connect_timeout);
        let stream = dial(&endpoint.name, &endpoint.address.host, within, self.connect_timeout).await?;
        *self.last_connected.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
        Ok(stream)
    }

    /// Makes a connection to any endpoint, only to see that it can be made. What comes of it says nothing of endpoints to
    /// requests, which find out for themselves.
    pub async fn reach(&self) -> Result<(), String> {
        let attempts = self.endpoints.iter().map(async |Endpoint { address, name }| {
            let failure = |problem: String| format!("nova at {}: {problem}", address.authority());
            let deadline = Deadline::now() + self.connect_timeout;
            let dialled = dial(name, &address.host, self.connect_timeout, self.connect_timeout).await;
            let stream = dialled.map_err(|error| failure(error.to_string()))?;
            let Some(credentials) = &self.credentials else { return Ok(()) };
            let client = credentials.client();
            let greeting = timeout_at(deadline, client.connect(&address.host, stream)).await;
            let greeting = greeting.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            greeting.map(drop).map_err(|error| failure(format!("TLS: {}", chain(&error))))
        });
        race(attempts.collect(), Duration::ZERO).await.map_err(|failures| failures.join("; "))
    }

    /// Time of the last connection for a request.
    pub fn last_connected(&self) -> Option<Instant> {
        *self.last_connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Certificates without the private key, for who makes TLS of the connections and knows the given edition of them.
    /// Nothing without TLS, or if there is no other edition.
    pub fn certificates(&self, known: Option<Edition>) -> Option<(Edition, Certificates)> {
        self.credentials.as_ref()?.certificates(known)
    }

    /// The private key of the client certificate that is in use.
    pub fn key(&self) -> Option<Arc<dyn SigningKey>> {
        self.credentials.as_ref().and_then(Credentials::key)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{dialler, listening, refusing, run, silent},
        *,
    };
    use crate::link::FailureKind;

    #[test]
    fn one_endpoint_that_can_be_reached_is_enough() {
        let ((_silent, silent), (_listener, listening)) = (silent(), listening());
        let began = Instant::now();
        assert_eq!(run(dialler(&[silent, silent, refusing(), listening]).reach()), Ok(()));
        assert!(began.elapsed() < Duration::from_secs(1), "the silent ones were waited for");
        let failed = run(dialler(&[silent, refusing()]).reach()).unwrap_err();
        for words in ["no connection within 1.0 s", "cannot connect to 127.0.0.1:1: Connection refused"] {
            assert!(failed.contains(words), "{failed}");
        }
    }

    #[test]
    fn who_dials_learns_whose_fault_it_is() {
        let (_listener, listening) = listening();
        let dialler = dialler(&[listening, refusing()]);
        let second = Duration::from_secs(1);
        assert!(run(dialler.dial(0, second)).is_ok() && dialler.last_connected().is_some());
        let kind = |endpoint, within| run(dialler.dial(endpoint, within)).unwrap_err().kind;
        assert_eq!(kind(1, second), FailureKind::Refused);
        assert_eq!(kind(2, second), FailureKind::Other);
        let (_silent, silent) = silent();
        let late = run(testing::dialler(&[silent]).dial(0, Duration::from_millis(10))).unwrap_err();
        assert_eq!(late.kind, FailureKind::Other);
    }
}
