//! Fixtures of the tests of this folder: servers of the kernel's own, and a listener to nothing.
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::{Nova, Observer};
use crate::{
    config,
    directory::{Identity, SignedIdentity, Signer},
};

/// A port where connections are made, by the kernel.
pub(super) fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port where nobody answers a SYN: its queue is full and stays so.
pub(super) fn silent() -> (impl Sized, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    ((TcpStream::connect(address).unwrap(), listener), address)
}

/// A port where connections are refused: nobody has served that one for decades.
pub(super) fn refusing() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// With those endpoints, one second for a connection and two for an answer.
pub(super) fn nova(endpoints: &[SocketAddr]) -> Nova {
    let endpoint =
        |address: &SocketAddr| config::Endpoint { host: address.ip().to_string(), port: address.port() };
    let config = config::Nova {
        endpoints: endpoints.iter().map(endpoint).collect(),
        tls: None,
        secret: config::Secret::default(),
        connect_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_secs(2),
    };
    Nova::new(&config, Arc::new(Deaf)).unwrap()
}

/// Runs on a runtime of its own.
pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[derive(Debug)]
pub(super) struct Deaf;

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
