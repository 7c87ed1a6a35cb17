//! Guest-facing processes that have lost their agent: found, served with connections to Nova, and let go once their
//! successor serves.
use std::{
    fs, io,
    net::TcpListener,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use socket2::{SockRef, Socket};
use tokio::{
    task::spawn_blocking,
    time::{Instant, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Order,
    dials::Dials,
    process::Former,
    renewal::Renewal,
    signer,
    speech::{in_time, next},
};
use crate::{
    link::{ADOPTION, Command, Event, PROTOCOL},
    nova::Dialler,
    packets::{self, AsyncChannel, Channel},
};

/// Timeout of an answer. One whose agent lives gives none.
const ANSWER: Duration = Duration::from_secs(2);
/// Period of the look for certificates that were renewed.
const RENEW: Duration = Duration::from_secs(1);
/// Grace periods: of its connections until their next request, and of what is under way from then on.
const LINGERING: Duration = Duration::from_secs(10);
const ENDING: Duration = Duration::from_secs(8);

/// Meeting place of the next agent with a process that loses this one.
#[derive(Debug)]
pub(super) struct Meeting {
    path: PathBuf,
    pub(super) socket: Socket,
}

impl Meeting {
    /// Listens in the run directory, for the process with that id.
    pub(super) fn arrange(run_dir: &Path, process: u32) -> io::Result<Self> {
        let path = run_dir.join(format!("{ADOPTION}{process}.sock"));
        let socket = packets::listen(&path)?;
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
    /// Socket by which it is found again if this agent ends as well.
    path: PathBuf,
    channel: Channel,
    listeners: Vec<TcpListener>,
    has_tls: bool,
    /// The one that an agent has started, whatever it says who it is, unless it cannot be found.
    process: Option<Former>,
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
        for (path, pid) in meetings {
            let channel = match Channel::connect(&path) {
                Ok(channel) => channel,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    // Nobody has it any more.
                    let _ = fs::remove_file(&path);
                    continue;
                }
                Err(error) => {
                    warn!(pid, %error, "a guest-facing process of a former agent cannot be reached");
                    continue;
                }
            };
            let process = Former::find(pid);
            match adopt(&channel, dialler) {
                Ok((listeners, has_tls)) => {
                    info!(pid, "a guest-facing process of a former agent still serves");
                    found.push(Self { path, channel, listeners, has_tls, process, pid });
                }
                Err(error) => {
                    // It would go on accepting with the same sockets as its successor, and nobody would end it.
                    warn!(pid, %error, "a guest-facing process of a former agent cannot be adopted, and is killed");
                    end(process.as_ref(), Duration::ZERO);
                    channel.dispose();
                    let _ = fs::remove_file(&path);
                }
            }
        }
        found
    }

    /// Ends all of them, now.
    pub fn end_all(run_dir: &Path) -> io::Result<()> {
        for (path, pid) in sockets(run_dir)? {
            let process = Former::find(pid);
            if let Ok(channel) = Channel::connect(&path) {
                let (signing, _none) = Channel::pair()?;
                let signing = OwnedFd::from(signing);
                channel.send(&Command::Adopt { protocol: PROTOCOL }, &[signing.as_fd()])?;
                // One of another version ends by itself.
                let is_told = match channel.receive::<Event>(Some(ANSWER)) {
                    Ok((_, sockets)) => {
                        channel.hold(sockets);
                        channel.send(&Command::Stop, &[]).is_ok()
                    }
                    Err(_) => false,
                };
                end(process.as_ref(), if is_told { ENDING } else { Duration::ZERO });
                channel.dispose();
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
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
        let Self { path, channel, has_tls, process, pid, .. } = self;
        let channel = match AsyncChannel::new(channel) {
            Ok(channel) => channel,
            Err(error) => return warn!(pid, %error, "the former guest-facing process is left"),
        };
        let renewal = Renewal::new(dialler.clone());
        let talked = talk(&channel, Dials::new(dialler), has_tls.then_some(renewal), serving).await;
        let patience = if talked.is_ok() { ENDING } else { Duration::ZERO };
        let how = talked.err().map_or_else(|| "it has hung up".to_owned(), |error| error.to_string());
        let ended = spawn_blocking(move || {
            let is_killed = end(process.as_ref(), patience);
            channel.dispose();
            is_killed
        });
        match ended.await {
            Ok(false) => info!(pid, "the former guest-facing process has ended"),
            Ok(true) => warn!(pid, how, "the former guest-facing process does not end, and was killed"),
            Err(error) => warn!(pid, %error, "the former guest-facing process is left"),
        }
        // Nobody is found there any more.
        let _ = fs::remove_file(path);
        // Its connections are gone.
        let _ = orders.send(Order::Settle);
    }
}

/// Makes its connections until it has hung up.
async fn talk(
    channel: &AsyncChannel,
    mut dials: Dials,
    mut renewal: Option<Renewal>,
    serving: CancellationToken,
) -> io::Result<()> {
    let mut look = interval(RENEW);
    let mut deadline: Option<(Instant, Phase)> = None;
    loop {
        let at = deadline.map_or_else(|| Instant::now() + LINGERING, |(at, _)| at);
        tokio::select! {
            event = next(channel) => match event {
                Ok(Event::Dial { id, endpoint, within }) => dials.begin(id, endpoint, within),
                // It is asked for nothing else.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            },
            dialled = dials.next() => {
                renew(&mut renewal, channel).await?;
                in_time(dialled.hand_over(channel)).await?;
            }
            _ = look.tick() => renew(&mut renewal, channel).await?,
            () = serving.cancelled(), if deadline.is_none() => {
                in_time(channel.send(&Command::Outlive, &[])).await?;
                in_time(channel.send(&Command::Retire, &[])).await?;
                deadline = Some((Instant::now() + LINGERING, Phase::Lingering));
            }
            () = sleep_until(at), if deadline.is_some() => match deadline {
                Some((_, Phase::Lingering)) => {
                    in_time(channel.send(&Command::Stop, &[])).await?;
                    deadline = Some((Instant::now() + ENDING, Phase::Ending));
                }
                _ => return Err(io::Error::other("it does not end")),
            },
        }
    }
}

async fn renew(renewal: &mut Option<Renewal>, channel: &AsyncChannel) -> io::Result<()> {
    match renewal {
        Some(renewal) => renewal.tell(channel).await,
        None => Ok(()),
    }
}

/// State of the end of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Lingering,
    Ending,
}

/// Says that this agent has come; gives the sockets that guests connect to, and if there are certificates to be renewed.
fn adopt(channel: &Channel, dialler: &Arc<Dialler>) -> io::Result<(Vec<TcpListener>, bool)> {
    let signing = signer::start(dialler.clone())?;
    channel.send(&Command::Adopt { protocol: PROTOCOL }, &[signing.as_fd()])?;
    let (event, given) = channel.receive::<Event>(Some(ANSWER))?;
    // To close another one may take its time.
    let is_listener = |socket: &OwnedFd| SockRef::from(socket).is_listener().unwrap_or(false);
    let (listeners, others) = given.into_iter().partition::<Vec<_>, _>(is_listener);
    channel.hold(others);
    // Which process it is says the name of the socket: its own word may be a lie.
    match event {
        Event::Adopted { has_tls, .. } => {
            Ok((listeners.into_iter().map(TcpListener::from).collect(), has_tls))
        }
        _ => Err(io::Error::other("it says something else")),
    }
}

/// Waits for so long until that process has ended, and then kills it; tells whether it had to.
fn end(process: Option<&Former>, patience: Duration) -> bool {
    let Some(process) = process else { return false };
    if process.has_ended(patience) {
        return false;
    }
    process.kill();
    process.has_ended(ENDING);
    true
}

/// Sockets of guest-facing processes, with the processes' ids.
fn sockets(run_dir: &Path) -> io::Result<Vec<(PathBuf, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(ADOPTION)?.strip_suffix(".sock"));
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            found.push((entry.path(), id));
        }
    }
    Ok(found)
}
