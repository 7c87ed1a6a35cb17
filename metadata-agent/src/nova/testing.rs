//! Fixtures of tests: diallers, servers of the kernel's own, and a listener to nothing.
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::Dialler;
use crate::config;

/// A port where connections are made, by the kernel.
pub(crate) fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port where nobody answers a SYN: its queue is full and stays so.
pub(crate) fn silent() -> (impl Sized, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    ((TcpStream::connect(address).unwrap(), listener), address)
}

/// A port where connections are refused: nobody has served that one for decades.
pub(crate) fn refusing() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// Settings with those endpoints, one second for a connection and two for an answer.
pub(crate) fn settings(endpoints: &[SocketAddr]) -> config::NovaOptions {
    let endpoint =
        |address: &SocketAddr| config::Endpoint { host: address.ip().to_string(), port: address.port() };
    config::NovaOptions {
        endpoints: endpoints.iter().map(endpoint).collect(),
        tls: None,
        secret: config::Secret::default(),
        connect_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_secs(2),
    }
}

/// With those endpoints.
pub(crate) fn dialler(endpoints: &[SocketAddr]) -> Dialler {
    Dialler::new(&settings(endpoints)).unwrap()
}

/// Runs on a runtime of its own.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
