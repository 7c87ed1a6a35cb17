//! The task that keeps a client connected: it moves bytes between sockets and the session, and waits.

mod backlog;
mod outgoing;
mod reason;
mod rotation;
mod wire;

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::condition::Conditions;
use crate::config::Config;
use crate::counters::SharedTally;
use crate::error::Error;
use crate::event::Mark;
use crate::message::Payload;
use crate::remote::{Remote, Remotes};
use crate::session::{Hangup, Session, SessionEvent};
use crate::splitter::Splitter;
use crate::transport::{self, Stream};
use backlog::Backlog;
pub(crate) use backlog::{Charged, Notice};
use outgoing::Outgoing;
pub use reason::DisconnectReason;
use reason::Progress;
use rotation::Rotation;

const READ_SIZE: usize = 64 * 1024;

/// A server hangs up on a client that it does not hear from: by default it asks after 5 s and waits 5 s more. While the
/// consumer is behind nothing is read, its question neither, so that it has to hear from us unasked.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Time to look for the reason after a failed write.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Requests of users to the task.
#[derive(Debug)]
pub(crate) enum Command {
    Request { method: String, params: serde_json::Value, reply: Reply },
    Lock { name: String, steal: bool },
    Unlock { name: String },
}

/// The way back to who made a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Plain(oneshot::Sender<Result<Payload, Error>>),
    /// With a mark that the events pass when they have told all that the server sent before its answer.
    Marked(oneshot::Sender<Result<(Payload, Mark), Error>>),
}

impl Reply {
    fn is_closed(&self) -> bool {
        match self {
            Self::Plain(sender) => sender.is_closed(),
            Self::Marked(sender) => sender.is_closed(),
        }
    }

    /// Fails the request with `error`; the caller may have stopped waiting.
    fn fail(self, error: Error) {
        match self {
            Self::Plain(sender) => drop(sender.send(Err(error))),
            Self::Marked(sender) => drop(sender.send(Err(error))),
        }
    }
}

impl Command {
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Request { reply, .. } if reply.is_closed())
    }
}

/// State that the owner of the replica wants, of which only the latest counts.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) generation: u64,
    pub(crate) conditions: Vec<Conditions>,
    pub(crate) paused: bool,
    pub(crate) remotes: Remotes,
    /// The number of times that another connection was asked for.
    pub(crate) reconnections: u64,
    /// The number of times that a complete copy was asked for, and why the last time.
    pub(crate) resyncs: u64,
    pub(crate) reason: String,
}

pub(crate) struct Driver {
    config: Config,
    session: Session,
    commands: mpsc::Receiver<Command>,
    /// A command for which there was no room yet among what waits to be written.
    held: Option<Command>,
    wanted: watch::Receiver<Wanted>,
    resyncs: u64,
    reconnections: u64,
    /// Reason to give the connection up in favour of another one.
    restart: Option<DisconnectReason>,
    /// The servers changed, and have not been tried in their new order.
    are_remotes_new: bool,
    backlog: Backlog,
    replies: HashMap<u64, Reply>,
    marks: u64,
    remote: Remote,
    tally: SharedTally,
}

impl Driver {
    pub(crate) fn new(
        config: Config,
        session: Session,
        commands: mpsc::Receiver<Command>,
        wanted: watch::Receiver<Wanted>,
        notices: mpsc::Sender<Charged>,
        tally: SharedTally,
    ) -> Self {
        let remote = config.remotes.first().clone();
        let backlog = Backlog::new(notices, config.backlog_limit);
        Self {
            config,
            session,
            commands,
            held: None,
            wanted,
            resyncs: 0,
            reconnections: 0,
            restart: None,
            are_remotes_new: false,
            backlog,
            replies: HashMap::new(),
            marks: 0,
            remote,
            tally,
        }
    }

    /// Connects, again and again, until the task is aborted.
    pub(crate) async fn run(mut self) -> Infallible {
        let mut remotes = Rotation::new(&self.config.remotes);
        let mut backoff = Backoff::new(self.config.backoff_max, remotes.len());
        loop {
            if std::mem::take(&mut self.are_remotes_new) {
                remotes = Rotation::new(&self.config.remotes);
                backoff = Backoff::new(self.config.backoff_max, remotes.len());
            }
            self.remote = remotes.next().unwrap_or_else(|| self.config.remotes.first().clone());
            let (reason, lasted) = self.attempt().await;
            self.session.disconnected();
            self.execute_held(false);
            self.collect();
            let retry = if reason.is_wanted() { Duration::ZERO } else { backoff.after(lasted, random()) };
            let database = &self.config.database;
            tracing::debug!(database, remote = %self.remote, %reason, ?retry, "disconnected");
            self.backlog.push(Notice::Disconnected { remote: self.remote.clone(), reason, retry });
            let until = Instant::now() + retry;
            while self.has_to_wait(until) || !self.backlog.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep_until(until), if self.has_to_wait(until) => {}
                    () = self.background(false) => {}
                }
            }
        }
    }

    /// Until the next attempt, unless the program wants another connection at once.
    fn has_to_wait(&self, until: Instant) -> bool {
        Instant::now() < until && !self.are_remotes_new && !self.is_recalled()
    }

    /// True if the program wants another connection than this one.
    fn is_recalled(&self) -> bool {
        self.restart.as_ref().is_some_and(DisconnectReason::is_wanted)
    }

    /// One connection, and how long it was of use.
    async fn attempt(&mut self) -> (DisconnectReason, Duration) {
        self.restart = None;
        self.tally.attempts.add(1);
        let (remote, tls, timeout) =
            (self.remote.clone(), self.config.tls.clone(), self.config.connect_timeout);
        let stream = {
            let mut connecting = pin!(transport::connect(&remote, tls.as_ref(), timeout));
            loop {
                tokio::select! {
                    result = &mut connecting => match result {
                        Ok(stream) => break stream,
                        Err(error) => return (error.into(), Duration::ZERO),
                    },
                    () = self.background(false) => {
                        if self.is_recalled() && let Some(reason) = self.restart.take() {
                            return (reason, Duration::ZERO);
                        }
                    }
                }
            }
        };
        let mut progress = Progress::default();
        let reason = match self.converse(stream, &mut progress).await {
            Ok(never) => match never {},
            Err(reason) => {
                reason.explain(&progress, tls.as_ref().filter(|_| matches!(remote, Remote::Ssl(_))))
            }
        };
        let lasted = progress.lasted(&reason);
        (reason, lasted)
    }

    /// Speaks with a server until that fails. Every branch can be dropped half done without losing anything.
    async fn converse(
        &mut self,
        stream: Box<dyn Stream>,
        progress: &mut Progress,
    ) -> Result<Infallible, DisconnectReason> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut splitter = Splitter::new(self.config.message_limit);
        let mut buffer = vec![0; READ_SIZE];
        let mut stalled_since = None;
        let mut kept_alive = Instant::now();
        let mut outgoing = Outgoing::default();
        self.restart = None;
        self.session.connected(Instant::now().into_std());
        loop {
            self.execute_held(outgoing.is_full());
            while let Some(transmit) = self.session.poll_transmit() {
                wire::sent(&self.remote, &transmit.message);
                self.tally.messages_sent.add(1);
                self.tally.bytes_sent.add(transmit.message.len());
                outgoing.push(transmit);
            }
            self.collect();
            if let Some(reason) = self.restart.take() {
                return Err(reason);
            }
            if progress.ready.is_none() && self.session.is_ready() {
                progress.ready = Some(Instant::now());
            }
            let (outgoing_is_done, full, flooded) =
                (outgoing.is_done(), outgoing.is_full(), outgoing.is_flooded());
            self.drop_replies();
            let stalled = self.is_stalled();
            if !stalled && let Some(since) = stalled_since.take() {
                let now = Instant::now();
                self.session.listening(now.into_std(), now - since);
            }
            let timeout = if stalled {
                stalled_since.get_or_insert_with(|| {
                    kept_alive = Instant::now();
                    kept_alive
                });
                Some(kept_alive + KEEPALIVE)
            } else {
                self.session.timeout().map(Instant::from_std)
            };
            tokio::select! {
                read = reader.read(&mut buffer), if !stalled && !flooded => match read {
                    Ok(0) => return Err(DisconnectReason::Closed),
                    Ok(length) => {
                        let now = Instant::now().into_std();
                        progress.heard = true;
                        self.tally.bytes_received.add(length);
                        self.session.activity(now);
                        splitter.push(&buffer[..length])?;
                        while let Some(message) = splitter.next_message() {
                            wire::received(&self.remote, &message);
                            self.tally.messages_received.add(1);
                            self.session.receive(now, message)?;
                        }
                        if splitter.is_within_message() {
                            self.session.arriving(now);
                        }
                    }
                    Err(error) => return Err(DisconnectReason::Io(error)),
                },
                written = outgoing.write(&mut writer), if !outgoing_is_done => {
                    if let Err(error) = written {
                        return Err(DisconnectReason::Io(last_words(&mut reader).await.unwrap_or(error)));
                    }
                }
                () = sleep_until(timeout) => {
                    if stalled {
                        kept_alive = Instant::now();
                        if outgoing_is_done {
                            self.session.probe();
                        }
                    } else {
                        self.session.handle_timeout(Instant::now().into_std())?;
                    }
                }
                () = self.background(full) => {}
            }
        }
    }

    /// Waits for one thing that has to be done whether there is a connection or not, and does it. While what waits to be
    /// written is `full`, a command is held, and so are all behind it.
    async fn background(&mut self, full: bool) {
        let command = tokio::select! {
            Some(command) = self.commands.recv(), if self.held.is_none() => Some(command),
            Ok(()) = self.wanted.changed() => None,
            Some(()) = self.backlog.send(), if !self.backlog.is_empty() => return,
            // The owner and all who could ask for something are gone; the task is about to be aborted.
            else => std::future::pending().await,
        };
        match command {
            None => self.take_wanted(),
            held => {
                self.held = held;
                self.execute_held(full);
            }
        }
    }

    /// True if to leave everything in the socket because the consumer is behind.
    ///
    /// Not while somebody waits for an answer: that may be the consumer itself, and the answer be behind the updates.
    fn is_stalled(&self) -> bool {
        !self.backlog.is_empty() && self.replies.is_empty() && self.held.is_none()
    }

    /// True if the consumer is so far behind that no answer is worth the memory for the updates before it.
    fn is_overrun(&self) -> bool {
        self.backlog.bytes() > self.config.message_limit
    }

    /// Gives up the answers that are not to be waited for, so that they do not count in [`Self::is_stalled`].
    fn drop_replies(&mut self) {
        if self.is_overrun() {
            for (_, reply) in self.replies.drain() {
                reply.fail(Error::Overrun);
            }
        } else if !self.backlog.is_empty() {
            self.replies.retain(|_, reply| !reply.is_closed());
        }
    }

    fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update();
        self.session.set_paused(wanted.paused);
        self.session.set_conditions(wanted.generation, wanted.conditions.clone());
        if self.resyncs != wanted.resyncs {
            self.resyncs = wanted.resyncs;
            self.session.forget();
            self.restart = Some(Hangup::Inconsistent(wanted.reason.clone()).into());
        }
        if self.reconnections != wanted.reconnections {
            self.reconnections = wanted.reconnections;
            self.restart = Some(DisconnectReason::Asked);
        }
        if self.config.remotes != wanted.remotes {
            self.config.remotes = wanted.remotes.clone();
            self.are_remotes_new = true;
            self.session.set_servers(self.config.remotes.as_slice().len());
            if !self.config.remotes.as_slice().contains(&self.remote) {
                self.restart = Some(DisconnectReason::NotListed);
            }
        }
    }

    /// Executes the command that is held, unless it has to wait for room, or nobody waits for it any more.
    fn execute_held(&mut self, full: bool) {
        let wait = full && !self.is_overrun();
        match self.held.take() {
            Some(command) if command.is_abandoned() => {}
            Some(command) if wait => self.held = Some(command),
            Some(command) => self.execute(command),
            None => {}
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Request { method, params, reply } => {
                let overrun = if self.is_overrun() { Err(Error::Overrun) } else { Ok(()) };
                match overrun.and_then(|()| self.session.request(&method, &params)) {
                    Ok(id) => drop(self.replies.insert(id, reply)),
                    Err(error) => reply.fail(error),
                }
            }
            Command::Lock { name, steal } => self.session.lock(&name, steal),
            Command::Unlock { name } => self.session.unlock(&name),
        }
    }

    /// Answers who asked. A server sends what a transaction changed before its answer (RFC 7047, section 4.1.3), so that a
    /// mark at this place is behind that.
    fn give(&mut self, reply: Reply, result: Result<Payload, Error>) {
        match (reply, result) {
            (Reply::Plain(sender), result) => drop(sender.send(result)),
            (Reply::Marked(sender), Ok(payload)) => {
                self.marks += 1;
                self.backlog.push(Notice::Mark(Mark(self.marks)));
                drop(sender.send(Ok((payload, Mark(self.marks)))));
            }
            (reply, Err(error)) => reply.fail(error),
        }
    }

    /// Takes what happened out of the session: answers go to who asked, all else to the owner of the replica.
    fn collect(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                SessionEvent::Reply { id, result } => {
                    if let Some(reply) = self.replies.remove(&id) {
                        self.give(reply, result);
                    }
                }
                SessionEvent::Waiting(awaited) => {
                    tracing::debug!(remote = %self.remote, %awaited, "waiting");
                    self.backlog.push(Notice::Waiting(self.remote.clone(), awaited));
                }
                SessionEvent::Ready => self.backlog.push(Notice::Connected(self.remote.clone())),
                event => self.backlog.push(Notice::Session(event)),
            }
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Reason for which a server no longer takes what is written: a TLS alert may still be waiting to be read.
async fn last_words(reader: &mut (impl AsyncReadExt + Unpin)) -> Option<io::Error> {
    let mut sink = tokio::io::sink();
    tokio::time::timeout(LAST_WORDS, tokio::io::copy(reader, &mut sink)).await.ok()?.err()
}

/// A number from 0 to 1 that is different in each process: the standard library seeds its hash tables with one.
pub(crate) fn random() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

/// The task; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Task(tokio::task::JoinHandle<Infallible>);

impl Task {
    pub(crate) fn spawn(driver: Driver) -> Self {
        Self(tokio::spawn(driver.run()))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
