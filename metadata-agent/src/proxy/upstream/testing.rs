//! Fixtures of the tests of this folder: a dialler without another process, servers of the kernel's own, and somebody who asks.
use std::{
    net::{SocketAddr, TcpListener, TcpStream as StdStream},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use super::{Dial, NovaClient, Observer};
use crate::{
    config,
    directory::{Identity, SignedIdentity, Signer},
    link::{Failure, FailureKind, NovaSettings},
};

/// Makes connections itself.
#[derive(Debug)]
pub(in crate::proxy) struct Direct(pub(in crate::proxy) Vec<SocketAddr>);

impl Dial for Direct {
    fn dial(&self, endpoint: usize, _within: Duration) -> BoxFuture<'_, Result<StdStream, Failure>> {
        Box::pin(async move {
            let refused =
                |error: std::io::Error| Failure { kind: FailureKind::Refused, text: error.to_string() };
            TcpStream::connect(self.0[endpoint]).await.and_then(TcpStream::into_std).map_err(refused)
        })
    }
}

/// A port where connections are made, by the kernel.
pub(super) fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port where connections are refused: nobody has served that one for decades.
pub(super) fn refusing() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// With those endpoints, one second for a connection and two for an answer.
pub(in crate::proxy) fn nova(addresses: &[SocketAddr]) -> NovaClient {
    observed_nova(addresses, &(Arc::new(Deaf) as _))
}

/// The same, and who is told of it.
pub(in crate::proxy) fn observed_nova(addresses: &[SocketAddr], observer: &Arc<dyn Observer>) -> NovaClient {
    let endpoint =
        |address: &SocketAddr| config::Endpoint { host: address.ip().to_string(), port: address.port() };
    let settings = NovaSettings {
        endpoints: addresses.iter().map(endpoint).collect(),
        connect_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_secs(2),
    };
    NovaClient::new(&settings, Arc::new(Direct(addresses.to_owned())), None, observer)
}

/// Runs on a runtime of its own.
pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[derive(Debug)]
struct Deaf;

impl Observer for Deaf {
    fn up(&self, _: &str, _: bool) {}
    fn connected(&self, _: &str) {}
    fn failed(&self, _: &str) {}
}

/// Somebody with that instance.
pub(super) fn identity(instance: &str) -> Arc<SignedIdentity> {
    let identity = Identity {
        port: format!("port of {instance}"),
        instance: instance.to_owned(),
        project: "project".into(),
        network: "network".into(),
        fixed_ips: vec!["192.168.1.10".parse().unwrap()],
    };
    Arc::new(Signer::new("secret").sign(identity).unwrap())
}
