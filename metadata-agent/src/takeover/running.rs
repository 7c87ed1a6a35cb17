//! The running agent's side of a takeover.
#![forbid(unsafe_code)]
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{SockRef, Socket};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::{Message, PROTOCOL, SOCKET};
use crate::{
    handshakes,
    packets::{self, Channel},
};

/// Time that a successor may take to say who it is.
const HELLO: Duration = Duration::from_secs(5);
/// Time that it may prepare itself. Nothing waits for it meanwhile.
const PREPARING: Duration = Duration::from_secs(60);
/// Time that the node may be without a control plane, until it is this agent's again.
const FREEZE: Duration = Duration::from_secs(15);
/// Time from the successor's commit until it serves guests.
const SERVING: Duration = Duration::from_secs(60);

/// Offering to a successor.
#[derive(Debug)]
pub struct Offering {
    /// Name of the service namespace.
    pub netns: String,
    /// The run directory's lock.
    pub lock: OwnedFd,
    /// The sockets that guests connect to.
    pub listeners: Vec<OwnedFd>,
}

/// Step of a takeover, as the control plane is told. Each is followed by another one.
#[derive(Debug)]
pub enum Step {
    /// Touch nothing any more, and say so.
    Freeze(oneshot::Sender<()>),
    /// There is no takeover: go on.
    Thaw,
    /// The datapath is the successor's.
    Committed,
    /// It serves guests: end. Its process is this one.
    Retire(u32),
    /// It went away after it had taken the datapath.
    Lost,
}

/// Takes successors' requests, one after another, on a thread of its own.
#[derive(Debug)]
pub struct Takeovers(mpsc::Receiver<Step>);

impl Takeovers {
    /// Listens in the run directory, in place of whoever did before.
    pub fn accept(run_dir: &Path, offering: Offering) -> io::Result<Self> {
        let socket = packets::listen(&run_dir.join(SOCKET))?;
        let (steps, receiver) = mpsc::channel(1);
        let serve = move || {
            let mut retired = None;
            while retired.is_none() {
                match socket.accept() {
                    Ok((connection, _)) => match hand_over(connection, &offering, &steps) {
                        Ok(channel) => retired = channel,
                        Err(error) => warn!(%error, "a takeover did not come about"),
                    },
                    Err(error) => {
                        warn!(%error, "cannot accept an agent that wants to take over");
                        thread::sleep(Duration::from_secs(1));
                    }
                }
            }
            // The successor's own socket has the name; the sockets of guests are the successor's alone from now on. It hears
            // of this agent's end by the channel's.
            drop((socket, offering));
            // Nobody ends a takeover that came about but the end of this process.
            loop {
                thread::park();
            }
        };
        thread::Builder::new().name("metadata-takeover".to_owned()).spawn(serve)?;
        Ok(Self(receiver))
    }

    /// The next step. Waits for ever if there is none. May be cancelled.
    pub async fn step(&mut self) -> Step {
        match self.0.recv().await {
            Some(step) => step,
            None => std::future::pending().await,
        }
    }
}

/// One takeover; gives the channel if it came about.
fn hand_over(
    connection: Socket,
    offering: &Offering,
    control: &mpsc::Sender<Step>,
) -> io::Result<Option<Channel>> {
    let peer = getsockopt(&connection, PeerCredentials)?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        warn!(
            uid = peer.uid(),
            pid = peer.pid(),
            "another user's process wants to take over, which it may not"
        );
        return Ok(None);
    }
    let channel = Channel::new(connection)?;
    match channel.receive(Some(HELLO))?.0 {
        Message::Hello { protocol: PROTOCOL, version } => {
            info!(pid = peer.pid(), version, "another agent wants to take over");
        }
        Message::Hello { protocol, version } => {
            let reason = format!(
                "it speaks version {PROTOCOL} of the protocol of takeovers, and the successor, {version}, speaks {protocol}: \
                 stop it first"
            );
            channel.send(&Message::Refusal { reason }, &[])?;
            return Ok(None);
        }
        other => return Err(io::Error::other(format!("{other:?} in place of a greeting"))),
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let descriptors: Vec<_> =
        [&offering.lock].into_iter().chain(&offering.listeners).map(|fd| fd.as_fd()).collect();
    channel.send(&Message::Offer { version, netns: offering.netns.clone() }, &descriptors)?;
    match channel.receive(Some(PREPARING)) {
        Ok((Message::Freeze, _)) => {}
        Ok((other, _)) => return Err(io::Error::other(format!("{other:?} in place of the next step"))),
        Err(error) => {
            // It says why itself.
            debug!(%error, "the other agent did not get that far");
            return Ok(None);
        }
    }
    let tell = |step| control.blocking_send(step).map_err(|_| io::Error::other("this agent ends"));
    let (frozen, is_frozen) = oneshot::channel();
    tell(Step::Freeze(frozen))?;
    is_frozen.blocking_recv().map_err(|_| io::Error::other("this agent ends"))?;
    let committed = channel.send(&Message::Frozen, &[]).and_then(|()| channel.receive(Some(FREEZE)));
    let thaw = |error: io::Error| {
        // Whatever a successor did that ended: its end is no end of theirs.
        for listener in &offering.listeners {
            if let Err(error) = handshakes::begin(&SockRef::from(listener)) {
                warn!(%error, "guests may not be able to connect after a takeover that did not come about: restart the agent");
            }
        }
        tell(Step::Thaw)?;
        Err(error)
    };
    match committed {
        Ok((Message::Commit, _)) => {}
        Ok((other, _)) => return thaw(io::Error::other(format!("{other:?} in place of the next step"))),
        Err(error) => return thaw(error),
    }
    if let Err(error) = channel.send(&Message::Yours, &[]) {
        return thaw(error);
    }
    tell(Step::Committed)?;
    match channel.receive(Some(SERVING)) {
        Ok((Message::Serving, _)) => {
            tell(Step::Retire(peer.pid().unsigned_abs()))?;
            Ok(Some(channel))
        }
        _ => {
            tell(Step::Lost)?;
            Err(io::Error::other("the successor went away after it had taken the datapath"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::File, net::TcpListener, path::PathBuf};

    use super::*;
    use crate::takeover::{Error, Predecessor};

    /// A run directory with an agent that can be taken over.
    struct Running {
        folder: PathBuf,
        takeovers: Takeovers,
        port: u16,
    }

    impl Running {
        fn start(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("metadata-agent-{name}-{}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let lock = File::create(folder.join("lock")).unwrap().into();
            let offering = Offering { netns: "inside".to_owned(), lock, listeners: vec![listener.into()] };
            Self { takeovers: Takeovers::accept(&folder, offering).unwrap(), folder, port }
        }

        fn step(&mut self) -> Step {
            self.takeovers.0.blocking_recv().unwrap()
        }

        fn freeze(&mut self) {
            let Step::Freeze(frozen) = self.step() else { panic!("another step") };
            frozen.send(()).unwrap();
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    #[test]
    fn a_successor_gets_everything_and_the_former_agent_is_told() {
        let mut running = Running::start("takeover");
        let folder = running.folder.clone();
        let (ended, end) = std::sync::mpsc::channel();
        let successor = thread::spawn(move || {
            let mut predecessor = Predecessor::find(&folder, "inside").unwrap();
            assert!(predecessor.lock().is_some());
            let port = predecessor.listeners()[0].local_addr().unwrap().port();
            predecessor.freeze().unwrap();
            predecessor.commit().unwrap();
            predecessor.retire(move || ended.send(()).unwrap()).unwrap();
            port
        });
        running.freeze();
        assert!(matches!(running.step(), Step::Committed));
        assert!(matches!(running.step(), Step::Retire(pid) if pid == std::process::id()));
        assert_eq!(successor.join().unwrap(), running.port);
        // Its channel lasts as long as its process.
        assert!(end.recv_timeout(Duration::from_millis(50)).is_err());
        // There is nothing more to be had.
        assert!(matches!(Predecessor::find(&running.folder, "inside"), Err(Error::Unreachable { .. })));
    }

    #[test]
    fn a_successor_that_goes_away_changes_nothing() {
        let mut running = Running::start("thaw");
        let folder = running.folder.clone();
        drop(Predecessor::find(&folder, "inside").unwrap());
        let other = Predecessor::find(&folder, "elsewhere").unwrap_err();
        assert!(matches!(&other, Error::OtherNamespace { theirs, .. } if theirs == "inside"), "{other}");
        let gone = thread::spawn(move || Predecessor::find(&folder, "inside").unwrap().freeze().unwrap());
        running.freeze();
        gone.join().unwrap();
        assert!(matches!(running.step(), Step::Thaw));

        // One that goes away later leaves nobody.
        let folder = running.folder.clone();
        let lost = thread::spawn(move || {
            let predecessor = Predecessor::find(&folder, "inside").unwrap();
            predecessor.freeze().unwrap();
            predecessor.commit().unwrap();
        });
        running.freeze();
        assert!(matches!(running.step(), Step::Committed));
        lost.join().unwrap();
        assert!(matches!(running.step(), Step::Lost));
    }

    #[test]
    fn a_successor_of_another_protocol_is_told_so() {
        let running = Running::start("protocol");
        let channel = Channel::connect(&running.folder.join(SOCKET)).unwrap();
        let hello = Message::Hello { protocol: PROTOCOL + 1, version: "9.9.9".to_owned() };
        channel.send(&hello, &[]).unwrap();
        let (Message::Refusal { reason }, _) = channel.receive(Some(HELLO)).unwrap() else {
            panic!("no refusal")
        };
        assert!(reason.contains("9.9.9, speaks 2"), "{reason}");
        // What is no greeting ends its own connection only.
        let channel = Channel::connect(&running.folder.join(SOCKET)).unwrap();
        channel.send(&Message::Commit, &[]).unwrap();
        assert!(channel.receive::<Message>(Some(HELLO)).is_err());
        drop(Predecessor::find(&running.folder, "inside").unwrap());
    }
}
