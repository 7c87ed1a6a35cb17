//! Adoption of a process that has lost its agent, by the next one.
use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use anyhow::{bail, ensure};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::Socket;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};
use tracing::warn;

use crate::{
    descriptors,
    link::{Command, Event, PROTOCOL},
    packets::{AsyncChannel, Channel},
};

/// Timeout of whoever has connected until it says what it wants.
const ADOPTING: Duration = Duration::from_secs(5);

/// The socket where the next agent comes, and the sockets that it gets.
#[derive(Debug)]
pub(super) struct Orphanage {
    socket: Socket,
    watched: AsyncFd<OwnedFd>,
    listeners: RefCell<Rc<Vec<OwnedFd>>>,
    owner: u32,
    has_tls: bool,
}

impl Orphanage {
    /// On the current runtime. Agents are that user's.
    pub(super) fn new(
        socket: OwnedFd,
        listeners: Vec<OwnedFd>,
        owner: u32,
        has_tls: bool,
    ) -> io::Result<Self> {
        let watched = descriptors::watch(socket.try_clone()?, Interest::READABLE)?;
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { socket, watched, listeners: RefCell::new(Rc::new(listeners)), owner, has_tls })
    }

    /// Closes the sockets that guests connect to: the kernel would go on spreading connections over them, and nobody accepts
    /// these any more.
    pub(super) fn close(&self) {
        self.listeners.take();
    }

    /// Waits for the next agent; gives the link to it, and the channel to who signs. Neither is there if it speaks another
    /// version of the link: it has got the listening sockets all the same.
    pub(super) async fn adopted(&self) -> io::Result<Option<(AsyncChannel, Channel)>> {
        loop {
            let mut guard = self.watched.readable().await?;
            match self.socket.accept() {
                Ok((connection, _)) => match timeout(ADOPTING, self.greet(connection)).await {
                    Ok(Ok(adopted)) => return Ok(adopted),
                    Ok(Err(error)) => warn!("whoever came is no agent: {error:#}"),
                    Err(_) => warn!("whoever came says nothing"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }

    async fn greet(&self, connection: Socket) -> anyhow::Result<Option<(AsyncChannel, Channel)>> {
        let peer = getsockopt(&connection, PeerCredentials)?;
        ensure!(peer.uid() == self.owner, "it is user {}'s", peer.uid());
        let channel = AsyncChannel::new(Channel::new(connection)?)?;
        let (adopt, given) = channel.receive::<Command>().await?;
        let Command::Adopt { protocol } = adopt else { bail!("{adopt:?} in place of what it begins with") };
        let [signing] = <[OwnedFd; 1]>::try_from(given).map_err(|_| anyhow::anyhow!("nobody who signs"))?;
        let listeners = self.listeners.borrow().clone();
        let listeners: Vec<BorrowedFd<'_>> = listeners.iter().map(|socket| socket.as_fd()).collect();
        channel.send(&Event::Adopted { pid: std::process::id(), has_tls: self.has_tls }, &listeners).await?;
        if protocol != PROTOCOL {
            warn!(protocol, "the agent that has come speaks another version of the link");
            return Ok(None);
        }
        Ok(Some((channel, Channel::new(Socket::from(signing))?)))
    }
}
