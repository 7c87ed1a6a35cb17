//! The successor's side of a takeover.
#![forbid(unsafe_code)]
use std::{net::TcpListener, os::fd::OwnedFd, path::Path, thread, time::Duration};

use tracing::info;

use super::{Error, Message, PROTOCOL, SOCKET};
use crate::packets::Channel;

/// Time that a running agent may take for a step. It does nothing that lasts in between, but its control plane may be
/// waiting for the kernel.
const STEP: Duration = Duration::from_secs(20);

/// The running agent, which is being succeeded.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    lock: Option<OwnedFd>,
    listeners: Vec<TcpListener>,
}

impl Predecessor {
    /// Asks the agent that runs in `run_dir` for what it has. `netns` is the name of the service namespace to be.
    pub fn find(run_dir: &Path, netns: &str) -> Result<Self, Error> {
        let path = run_dir.join(SOCKET);
        let channel = Channel::connect(&path).map_err(|error| Error::Unreachable { path, error })?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        channel.send(&Message::Hello { protocol: PROTOCOL, version }, &[])?;
        let (offer, mut descriptors) = channel.receive(Some(STEP))?;
        match offer {
            Message::Offer { version, netns: theirs } => {
                if theirs != netns {
                    return Err(Error::OtherNamespace { theirs, ours: netns.to_owned() });
                }
                if descriptors.is_empty() {
                    return Err(Error::Protocol);
                }
                info!(version, "an agent runs here, and is to be replaced");
            }
            Message::Refusal { reason } => return Err(Error::Refused(reason)),
            _ => return Err(Error::Protocol),
        }
        let lock = Some(descriptors.remove(0));
        let listeners = descriptors.into_iter().map(TcpListener::from).collect();
        Ok(Self { channel, lock, listeners })
    }

    /// The run directory's lock, which both hold from now on.
    pub fn lock(&mut self) -> Option<OwnedFd> {
        self.lock.take()
    }

    /// The sockets that it listens with.
    pub fn listeners(&mut self) -> Vec<TcpListener> {
        std::mem::take(&mut self.listeners)
    }

    /// Has it touch nothing any more but the guests' connections.
    pub fn freeze(&self) -> Result<(), Error> {
        self.step(&Message::Freeze, &Message::Frozen)
    }

    /// Takes the datapath over, for good.
    pub fn commit(&self) -> Result<(), Error> {
        self.step(&Message::Commit, &Message::Yours)
    }

    /// Has it end, now that guests are served. `then` is called when it has.
    pub fn retire(self, then: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.channel.send(&Message::Serving, &[])?;
        let wait = move || {
            self.channel.wait_end();
            info!("the former agent has ended");
            then();
        };
        thread::Builder::new().name("metadata-former".to_owned()).spawn(wait)?;
        Ok(())
    }

    fn step(&self, request: &Message, expected: &Message) -> Result<(), Error> {
        self.channel.send(request, &[])?;
        match self.channel.receive(Some(STEP))?.0 {
            Message::Refusal { reason } => Err(Error::Refused(reason)),
            answer if answer == *expected => Ok(()),
            _ => Err(Error::Protocol),
        }
    }
}
