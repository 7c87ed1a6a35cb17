//! TLS to Nova: a client that is replaced when certificates are.
#![forbid(unsafe_code)]
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rustls::ClientConfig;
use tls_peer::Refusal;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A TLS client, and where whom it trusts is configured.
#[derive(Debug)]
pub(crate) struct Tls {
    loaded: Mutex<Loaded>,
    trusted: String,
}

#[derive(Debug)]
struct Loaded {
    client: Arc<ClientConfig>,
    at: Instant,
}

impl Tls {
    /// As that client; `trusted` says where it is configured whom it trusts.
    pub(crate) fn new(client: Arc<ClientConfig>, trusted: String) -> Self {
        Self { loaded: Mutex::new(Loaded { client, at: Instant::now() }), trusted }
    }

    /// Makes new connections as another client from now on.
    pub(crate) fn replace(&self, client: Arc<ClientConfig>) {
        *self.lock() = Loaded { client, at: Instant::now() };
    }

    /// Time since which the present certificates are in use.
    pub(crate) fn loaded(&self) -> Instant {
        self.lock().at
    }

    /// Greets the server at the other end of a connection.
    pub(crate) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = tls_peer::server_name(host).map_err(io::Error::other)?;
        let client = self.lock().client.clone();
        TlsConnector::from(client).connect(name, stream).await.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let problem = match tls_peer::refusal(&error) {
            Some(Refusal::UnknownIssuer) => "it is not trusted, and nobody who is has signed it".to_owned(),
            Some(Refusal::Certificate(problem)) => problem,
            Some(Refusal::Alert(alert)) => {
                return io::Error::other(format!("nova ends the handshake: {alert}"));
            }
            None => return error,
        };
        io::Error::other(format!("nova's certificate is refused ({}): {problem}", self.trusted))
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
