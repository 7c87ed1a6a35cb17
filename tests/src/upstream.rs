//! A plain TCP or TLS server in Nova's place: keeps the exact bytes of each request, answers with given ones.

pub mod constant;

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use nix::sys::socket::{self, shutdown};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::{netns::Namespace, sandbox::Sandbox};

/// Whoever is silent for longer is not waited for.
const SILENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);

/// Bytes of an answer, and after how long they are sent.
pub type Piece = (Duration, Vec<u8>);

/// Script of an answer to a request.
#[derive(Debug, Clone)]
pub enum Script {
    /// These bytes; the connection stays open.
    Answer(Vec<u8>),
    /// These bytes, and the end of the connection.
    AnswerAndClose(Vec<u8>),
    /// Nothing, ever.
    Silence,
    /// These bytes, and then nothing.
    Stall(Vec<u8>),
    /// These bytes once [`Upstream::release`] is called; the connection stays open.
    Held(Vec<u8>),
    /// The first bytes, and then the second ones again and again.
    Endless(Vec<u8>, Vec<u8>),
    /// Answer that the function makes of the request.
    Made(fn(&str) -> Vec<Piece>),
}

/// A machine of its own for servers, on a link to the chassis: it can go without a word.
#[derive(Debug)]
pub struct Machine {
    pub netns: Namespace,
    pub address: SocketAddrV4,
}

impl Machine {
    pub fn attach(sandbox: &Sandbox, host: &Namespace, number: u8) -> Result<Self> {
        let netns = Namespace::create(sandbox, &format!("nova{number}"))?;
        let (link, mac) = (format!("nova{number}"), format!("02:00:00:00:87:{number:02x}"));
        let (ours, its) = (Ipv4Addr::new(10, 87, number, 1), Ipv4Addr::new(10, 87, number, 2));
        host.ip(format!("link add {link} type veth peer name eth0 address {mac} netns {}", netns.name()))?;
        netns.ip(format!("addr add {its}/30 dev eth0"))?;
        netns.ip("link set eth0 up")?;
        host.ip(format!("addr add {ours}/30 dev {link}"))?;
        host.ip(format!("link set {link} up"))?;
        // As behind a router: nobody notices that its address is not resolved any more.
        host.ip(format!("neigh replace {its} lladdr {mac} nud permanent dev {link}"))?;
        Ok(Self { netns, address: SocketAddrV4::new(its, 8775) })
    }

    /// From now on nothing arrives and nothing comes back.
    pub fn vanish(&self) -> Result<()> {
        self.netns.ip("link set eth0 down")?;
        Ok(())
    }

    pub fn reappear(&self) -> Result<()> {
        self.netns.ip("link set eth0 up")?;
        Ok(())
    }
}

#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    requests: Mutex<Vec<Vec<u8>>>,
    listener: TcpListener,
    /// Number of connections that were accepted so far.
    accepted: AtomicUsize,
    /// Those that are open, by their number.
    connections: Mutex<HashMap<usize, TcpStream>>,
    tls: Mutex<Option<Arc<ServerConfig>>>,
    released: AtomicBool,
    stopped: AtomicBool,
}

impl Upstream {
    pub fn start(host: &Namespace, address: SocketAddrV4, script: Script) -> Result<Self> {
        Self::start_with(host, address, script, None)
    }

    /// The same behind TLS.
    pub fn start_with(
        host: &Namespace,
        address: SocketAddrV4,
        script: Script,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Self> {
        let listener = host.listen(address)?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            requests: Mutex::default(),
            listener,
            accepted: AtomicUsize::new(0),
            connections: Mutex::default(),
            tls: Mutex::new(tls),
            released: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let server = shared.clone();
        thread::spawn(move || server.accept());
        Ok(Self { shared })
    }

    /// Sets the script of answers to the next requests.
    pub fn set_script(&self, script: Script) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// Lets what is held go.
    pub fn release(&self) {
        self.shared.released.store(true, Ordering::Release);
    }

    /// Sets the TLS configuration of the next connections.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) {
        *self.shared.tls.lock().unwrap_or_else(PoisonError::into_inner) = Some(tls);
    }

    /// Number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Number of the connections that neither side has closed. Whoever goes is seen while the script is `Silence` or
    /// `Stall`.
    pub fn open_connections(&self) -> usize {
        self.shared.connections().len()
    }

    /// The bytes of the requests since this was last called, one entry for each.
    pub fn take_requests(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Closing would not do: the thread sleeps, and a child that another forks just then has the socket, too.
        let _ = shutdown(self.shared.listener.as_raw_fd(), socket::Shutdown::Both);
        for connection in self.shared.connections().values() {
            // It may have ended by itself.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn accept(self: Arc<Self>) {
        while !self.stopped.load(Ordering::Acquire) {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let number = self.accepted.fetch_add(1, Ordering::AcqRel);
                    self.connections().extend(stream.try_clone().ok().map(|kept| (number, kept)));
                    let server = self.clone();
                    thread::spawn(move || {
                        // Whoever went away in the middle wanted it so; a copy keeps the connection open otherwise.
                        let _ = server.serve_connection(&stream);
                        let _ = stream.shutdown(Shutdown::Both);
                        server.connections().remove(&number);
                    });
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_connection(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match tls {
            None => self.serve(stream),
            Some(config) => {
                let session = ServerConnection::new(config).map_err(io::Error::other)?;
                self.serve(StreamOwned::new(session, stream))
            }
        }
    }

    fn serve(&self, mut stream: impl Read + Write) -> io::Result<()> {
        while let Some(request) = read_request(&mut stream)? {
            let text = String::from_utf8_lossy(&request).into_owned();
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            let script = self.script.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match script {
                Script::Answer(bytes) => stream.write_all(&bytes)?,
                Script::AnswerAndClose(bytes) => return stream.write_all(&bytes),
                // Until the other side gives up, which shows as an error.
                Script::Silence => stream.read_exact(&mut [0])?,
                Script::Stall(bytes) => {
                    stream.write_all(&bytes)?;
                    stream.read_exact(&mut [0])?;
                }
                Script::Held(bytes) => {
                    while !self.released.load(Ordering::Acquire) && !self.stopped.load(Ordering::Acquire) {
                        thread::sleep(POLL);
                    }
                    stream.write_all(&bytes)?;
                }
                Script::Made(make) => {
                    for (pause, bytes) in make(&text) {
                        thread::sleep(pause);
                        stream.write_all(&bytes)?;
                    }
                }
                Script::Endless(begin, more) => {
                    stream.write_all(&begin)?;
                    while !self.stopped.load(Ordering::Acquire) {
                        stream.write_all(&more)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// One request: its head, and as much of a body as the head announces.
fn read_request(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        request.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let start = request.len();
    request.resize(start + length.unwrap_or(0), 0);
    stream.read_exact(&mut request[start..])?;
    Ok(Some(request))
}
