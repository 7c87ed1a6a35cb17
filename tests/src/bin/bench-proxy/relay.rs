//! The floor: a bare relay, which reads no byte of what it passes on. No proxy in user space that copies bytes can do with
//! less than its system calls.
//!
//! As many threads as haproxy has, each with its own listening socket and its own epoll set. A guest's connection gets a
//! connection to the upstream of its own, for as long as it lasts.

use std::{
    io::{self, ErrorKind, Read, Write as _},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
};

use anyhow::{Context as _, Result};
use metadata_tests::{
    cloud::{Chassis as _, Cloud},
    netns::Namespace,
    nova,
    process::Daemon,
    stage::Stage,
    wait::until,
};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket},
    },
};
use socket2::{Domain, Socket, Type};

use crate::haproxy::{HOST, START};

pub(crate) const ADDRESS: SocketAddrV4 = SocketAddrV4::new(HOST, 81);
/// haproxy's `nbthread`.
const THREADS: usize = 2;
/// Longer than a request or an answer of the bench.
const BUFFER: usize = 16 << 10;
/// Token of the listening socket.
const LISTENER: u64 = u64::MAX;

/// Starts one on the host.
pub(crate) fn start(cloud: &Cloud<Stage>, guest: &Namespace) -> Result<Daemon> {
    let (sandbox, host) = (cloud.chassis.sandbox(), cloud.chassis.host());
    let mut command = host.command(std::env::current_exe()?)?;
    command.arg("relay");
    let daemon = Daemon::spawn("relay", command, sandbox.log("relay"))?;
    until("the relay listens", START, || Ok(guest.run(|| TcpStream::connect(ADDRESS))??))?;
    Ok(daemon)
}

/// Relays until it is killed.
pub(crate) fn serve() -> Result<()> {
    let threads: Vec<_> = (0..THREADS).map(|_| thread::spawn(|| Relay::new()?.run())).collect();
    threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
}

/// One thread's connections.
struct Relay {
    epoll: Epoll,
    listener: TcpListener,
    /// Pairs by half of their sockets' tokens.
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
}

/// A guest's connection and the one to the upstream, in this order.
struct Pair([TcpStream; 2]);

impl Relay {
    fn new() -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from(ADDRESS).into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let listener = TcpListener::from(socket);
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self { epoll, listener, pairs: Vec::new(), free: Vec::new() })
    }

    fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let mut buffer = [0; BUFFER];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            for event in &events[..ready] {
                match event.data() {
                    LISTENER => self.accept()?,
                    token => self.pass_on(token as usize, &mut buffer),
                }
            }
        }
    }

    /// One connection at a time, as a thread that shares its work with others does.
    fn accept(&mut self) -> Result<()> {
        let guest = match self.listener.accept() {
            Ok((guest, _)) => guest,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("cannot accept"),
        };
        guest.set_nonblocking(true)?;
        guest.set_nodelay(true)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let upstream = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        match connect(upstream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(HOST, nova::ADDRESS.port())))
        {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let upstream = TcpStream::from(upstream);
        upstream.set_nodelay(true)?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        // Nothing is read of the guest before the connection to the upstream is there.
        self.epoll.add(&upstream, EpollEvent::new(EpollFlags::EPOLLOUT, (2 * index + 1) as u64))?;
        self.pairs[index] = Some(Pair([guest, upstream]));
        Ok(())
    }

    /// Passes on what one of the two sockets has. The end of either ends both.
    fn pass_on(&mut self, token: usize, buffer: &mut [u8]) {
        let (index, side) = (token / 2, token % 2);
        // Both may have had an event, of which the first has ended the pair.
        let Some(pair) = &mut self.pairs[index] else { return };
        if !matches!(pair.pass_on(&self.epoll, index, side, buffer), Ok(true)) {
            self.pairs[index] = None;
            self.free.push(index);
        }
    }
}

impl Pair {
    /// Passes on what there is; whether there may be more later.
    fn pass_on(&mut self, epoll: &Epoll, index: usize, side: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let Self(sockets) = self;
        let length = match sockets[side].read(buffer) {
            Ok(0) => {
                sockets[1 - side].shutdown(Shutdown::Write)?;
                return Ok(false);
            }
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock && side == 1 => {
                // It is connected.
                let [guest, upstream] = sockets;
                let interest = |side| EpollEvent::new(EpollFlags::EPOLLIN, (2 * index + side) as u64);
                epoll.modify(upstream, &mut interest(1))?;
                epoll.add(guest, interest(0))?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        // The bench's messages fit into the buffers of a socket.
        sockets[1 - side].write_all(&buffer[..length])?;
        Ok(true)
    }
}
