//! Guest-facing processes that have lost their agent: found, served with connections to Nova, and let go once their
//! successor serves.
use std::{
    fs, io,
    net::TcpListener,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::{Mode, fchmod},
    },
    unistd::Pid,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Order, dials::Dials, process::COMMAND_LINE, signer};
use crate::{
    link::{ADOPTION, Command, Event, PROTOCOL},
    nova::Dialler,
    packets::{AsyncChannel, Channel},
};

/// How long one may take to answer. One whose agent lives does not.
const ANSWER: Duration = Duration::from_secs(2);
/// How long its connections may have until their next request, and what is under way from then on.
const LINGERING: Duration = Duration::from_secs(10);
const ENDING: Duration = Duration::from_secs(8);

/// Where a process can be found that loses this agent.
#[derive(Debug)]
pub(super) struct Meeting {
    path: PathBuf,
    pub(super) socket: Socket,
}

impl Meeting {
    /// Listens in the run directory.
    pub(super) fn arrange(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(format!("{ADOPTION}{}.sock", std::process::id()));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        // Its mode before it is bound is the one that its file gets.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        socket.bind(&SockAddr::unix(&path)?)?;
        socket.listen(8)?;
        Ok(Self { path, socket })
    }
}

impl Drop for Meeting {
    /// An agent that ends has no process any more.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

/// A process without an agent.
#[derive(Debug)]
pub struct Orphan {
    /// Where it is found again if this agent ends as well.
    path: PathBuf,
    channel: Channel,
    listeners: Vec<TcpListener>,
    pid: u32,
}

impl Orphan {
    /// Those of agents that have run with that directory and did not live to end them.
    pub fn find(run_dir: &Path, dialler: &Arc<Dialler>) -> Vec<Self> {
        let meetings = sockets(run_dir).unwrap_or_else(|error| {
            warn!(%error, "guest-facing processes of former agents cannot be looked for");
            Vec::new()
        });
        let mut found = Vec::new();
        for path in meetings {
            match Self::adopt(&path, dialler) {
                Ok(orphan) => {
                    info!(pid = orphan.pid, "a guest-facing process of a former agent still serves");
                    found.push(orphan);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    // Nobody has it any more.
                    let _ = fs::remove_file(&path);
                }
                Err(error) => {
                    warn!(path = %path.display(), %error, "a guest-facing process cannot be adopted")
                }
            }
        }
        found
    }

    /// Ends all of them, now.
    pub fn end_all(run_dir: &Path) -> io::Result<()> {
        for path in sockets(run_dir)? {
            if let Ok(channel) = Channel::connect(&path) {
                let (signing, _none) = Channel::pair()?;
                let signing = std::os::fd::OwnedFd::from(signing);
                channel.send(&Command::Adopt { protocol: PROTOCOL }, &[signing.as_fd()])?;
                // One of another version ends when nobody comes.
                if channel.receive::<Event>(Some(ANSWER)).is_ok() {
                    channel.send(&Command::Stop, &[])?;
                    channel.wait_end_for(ENDING);
                }
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn adopt(path: &Path, dialler: &Arc<Dialler>) -> io::Result<Self> {
        let channel = Channel::connect(path)?;
        let signing = signer::start(dialler.clone())?;
        channel.send(&Command::Adopt { protocol: PROTOCOL }, &[signing.as_fd()])?;
        let (event, sockets) = channel.receive::<Event>(Some(ANSWER))?;
        let Event::Adopted { pid } = event else {
            return Err(io::Error::other("it says something else"));
        };
        let listeners = sockets.into_iter().map(TcpListener::from).collect();
        Ok(Self { path: path.to_owned(), channel, listeners, pid })
    }

    /// The sockets that guests connect to, or what it says are these.
    pub fn listeners(&mut self) -> Vec<TcpListener> {
        std::mem::take(&mut self.listeners)
    }

    /// Makes its connections until it has ended, which it is told to once guests are served by its successor.
    pub(super) async fn accompany(
        self,
        dialler: Arc<Dialler>,
        serving: CancellationToken,
        orders: tokio::sync::mpsc::UnboundedSender<Order>,
    ) {
        let (pid, path) = (self.pid, self.path.clone());
        match self.talk(dialler, serving).await {
            Ok(()) => info!(pid, "the former guest-facing process has ended"),
            Err(error) => {
                warn!(pid, %error, "the former guest-facing process is left, and killed");
                end(pid);
            }
        }
        // Nobody is found there any more.
        let _ = fs::remove_file(path);
        // Its connections are gone.
        let _ = orders.send(Order::Settle);
    }

    async fn talk(self, dialler: Arc<Dialler>, serving: CancellationToken) -> io::Result<()> {
        let channel = AsyncChannel::new(self.channel)?;
        let mut dials = Dials::new(dialler);
        let mut deadline: Option<(Instant, Phase)> = None;
        loop {
            let at = deadline.map_or_else(|| Instant::now() + LINGERING, |(at, _)| at);
            tokio::select! {
                event = channel.receive::<Event>() => match event {
                    Ok((Event::Dial { id, endpoint, within }, _)) => dials.begin(id, endpoint, within),
                    // It is asked for nothing else.
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => return Err(error),
                },
                dialled = dials.next() => dialled.hand_over(&channel).await?,
                () = serving.cancelled(), if deadline.is_none() => {
                    channel.send(&Command::Outlive, &[]).await?;
                    channel.send(&Command::Retire, &[]).await?;
                    deadline = Some((Instant::now() + LINGERING, Phase::Lingering));
                }
                () = sleep_until(at), if deadline.is_some() => match deadline {
                    Some((_, Phase::Lingering)) => {
                        channel.send(&Command::Stop, &[]).await?;
                        deadline = Some((Instant::now() + ENDING, Phase::Ending));
                    }
                    _ => return Err(io::Error::other("it does not end")),
                },
            }
        }
    }
}

/// State of the end of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Lingering,
    Ending,
}

/// Kills that process, if it is a guest-facing one: it has told its id itself, and may not name another's.
fn end(pid: u32) {
    let is_one = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == COMMAND_LINE);
    if is_one && let Ok(pid) = i32::try_from(pid) {
        // It may be gone.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn sockets(run_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run_dir)? {
        let entry = entry?;
        let is_one = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(ADOPTION) && name.ends_with(".sock"));
        if is_one {
            found.push(entry.path());
        }
    }
    Ok(found)
}
