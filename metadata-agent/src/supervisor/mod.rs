//! Supervisor of the guest-facing process: starts it, tells it what it needs, makes its connections to Nova, and starts
//! another one when it has ended.
//!
//! ```text
//! process   one of them, from its start to its end     session   what is said to it and heard from it
//! backoff   when the next one is started               numbers   what it says of itself, checked
//! dials     connections that are made for it           signer    handshakes that are signed for it
//! orphan    one that has lost its agent
//! speech    with limits, since it may be taken over       inquiries  what operators ask it
//! renewal   certificates that it has
//! ```
//!
//! All of it is done by a thread of its own: the control plane may be waiting for the kernel, and a request of a guest's does
//! not wait for that.
#![forbid(unsafe_code)]
mod backoff;
mod dials;
#[cfg(test)]
mod hostile;
mod inquiries;
mod numbers;
mod orphan;
mod process;
mod renewal;
mod session;
mod signer;
mod speech;

use std::{
    net::TcpListener,
    os::fd::OwnedFd,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{error, warn};

use self::{
    backoff::Backoff,
    session::{Ended, Wanted},
};
pub use self::{orphan::Orphan, process::command};
use crate::{
    directory::Directory,
    health::{DataPlane, Problem},
    link::{Inquiry, Seen, Setup, Told},
    nova::Dialler,
};

/// Timeout of the first process until it is ready.
const START: Duration = Duration::from_secs(20);
/// Timeout of its numbers.
const ASKING: Duration = Duration::from_secs(2);
/// Ends in a row, each soon after the start, that make it a trouble of the node.
const CRASHING: u32 = 3;

/// Parts of a guest-facing process.
#[derive(Debug)]
pub struct Parts {
    /// Command that starts it.
    pub command: fn() -> Command,
    /// Set-up that it begins with.
    pub setup: Setup,
    /// Set if a process that is not wholly confined is of no use.
    pub required: bool,
    /// The sockets that guests connect to, of all workers.
    pub listeners: Vec<TcpListener>,
    /// Run directory, where a process is found that loses its agent.
    pub run_dir: PathBuf,
    /// Processes that have lost theirs.
    pub orphans: Vec<Orphan>,
    /// The map `OPEN`.
    pub open: OwnedFd,
    /// The ports.
    pub directory: Arc<Directory>,
    /// Names of the numbers that it has: others are not believed.
    pub numbers: Vec<String>,
}

/// Orders of the control plane's to the guest-facing process.
#[derive(Debug)]
enum Order {
    Serve,
    Log(String),
    Ask(oneshot::Sender<()>),
    Inquire(Inquiry, oneshot::Sender<Told>),
    Watch(Option<mpsc::Sender<Seen>>),
    Settle,
    Outlive,
    Retire,
    Stop,
}

/// The guest-facing process, whichever it is at the time.
#[derive(Debug)]
pub struct Supervisor {
    guests: Arc<Guests>,
    thread: JoinHandle<()>,
}

/// The guest-facing process as the control plane asks it.
#[derive(Debug)]
pub struct Guests {
    orders: mpsc::UnboundedSender<Order>,
    dialler: Arc<Dialler>,
    report: Mutex<Report>,
    restarts: AtomicU64,
}

/// State of the process, as it was last heard of.
#[derive(Debug, Default)]
struct Report {
    /// Parts that its confinement lacks.
    lacking: Vec<String>,
    notes: Vec<String>,
    numbers: String,
    /// Reason for which none serves, and number of those that ended soon after their start.
    ended: Option<String>,
    crashes: u32,
}

impl Supervisor {
    /// Starts a process; an error if it does not get ready. It is what `guests` speaks of, whose orders are `orders`.
    pub fn start(parts: Parts, guests: Arc<Guests>, orders: Orders) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (started, is_started) = std::sync::mpsc::channel();
        let supervise = {
            let guests = guests.clone();
            move || {
                runtime.block_on(supervise(parts, orders.0, &guests, &started));
                // A name that is being looked up is not waited for.
                runtime.shutdown_background();
            }
        };
        let thread = thread::Builder::new().name("metadata-guests".to_owned()).spawn(supervise)?;
        match is_started.recv_timeout(START) {
            Ok(Ok(())) => Ok(Self { guests, thread }),
            Ok(Err(reason)) => anyhow::bail!("the guest-facing process cannot be started: {reason}"),
            Err(_) => anyhow::bail!("the guest-facing process does not get ready"),
        }
    }

    /// True once its process has ended, as it was told.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Has it end, and waits until it has, which takes some seconds at most.
    pub fn stop(self) {
        self.guests.order(Order::Stop);
        if self.thread.join().is_err() {
            error!("the supervisor of the guest-facing process panicked");
        }
    }
}

/// Orders that were not heard yet.
#[derive(Debug)]
pub struct Orders(mpsc::UnboundedReceiver<Order>);

impl Guests {
    /// None yet.
    pub fn new(dialler: Arc<Dialler>) -> (Arc<Self>, Orders) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (report, restarts) = (Mutex::default(), AtomicU64::default());
        (Arc::new(Self { orders, dialler, report, restarts }), Orders(receiver))
    }

    /// Has it accept connections.
    pub fn serve(&self) {
        self.order(Order::Serve);
    }

    /// Has it forget the connections of a process that has ended.
    pub fn settle(&self) {
        self.order(Order::Settle);
    }

    /// Leaves connections that it has not accepted to others, who listen with the same sockets.
    pub fn outlive(&self) {
        self.order(Order::Outlive);
    }

    /// Has it take nothing new.
    pub fn retire(&self) {
        self.order(Order::Retire);
    }

    /// Once it was told to end, nobody is there to be told anything.
    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DataPlane for Guests {
    fn notes(&self) -> Vec<String> {
        let report = self.report();
        let lacking = report
            .lacking
            .iter()
            .map(|lacking| format!("the guest-facing process is not confined: {lacking}"));
        lacking.chain(report.notes.iter().cloned()).collect()
    }

    fn problem(&self) -> Option<Problem> {
        let report = self.report();
        let reason = report.ended.as_ref().filter(|_| report.crashes >= CRASHING)?;
        let text = format!("the guest-facing process ends again and again: {reason}; the log says more");
        Some(Problem::of("guest-facing process", text))
    }

    fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    fn numbers(&self) -> BoxFuture<'_, String> {
        Box::pin(async {
            let (asked, answered) = oneshot::channel();
            self.order(Order::Ask(asked));
            // What it said last is better than nothing.
            let _ = timeout(ASKING, answered).await;
            self.report().numbers.clone()
        })
    }

    fn inquire(&self, inquiry: Inquiry, within: Duration) -> BoxFuture<'_, Option<Told>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.order(Order::Inquire(inquiry, answer));
            timeout(within, answered).await.ok()?.ok()
        })
    }

    fn watch(&self, sink: Option<mpsc::Sender<Seen>>) {
        self.order(Order::Watch(sink));
    }

    fn set_log(&self, filter: &str) {
        self.order(Order::Log(filter.to_owned()));
    }
}

/// Has one process after another, until it is told to end.
async fn supervise(
    mut parts: Parts,
    mut orders: mpsc::UnboundedReceiver<Order>,
    guests: &Guests,
    started: &std::sync::mpsc::Sender<Result<(), String>>,
) {
    let mut backoff = Backoff::default();
    let orphans = std::mem::take(&mut parts.orphans);
    let mut wanted = Wanted::new(parts);
    for orphan in orphans {
        let (dialler, serving) = (guests.dialler.clone(), wanted.serving.clone());
        tokio::spawn(orphan.accompany(dialler, serving, guests.orders.clone()));
    }
    loop {
        let began = Instant::now();
        let mut was_ready = false;
        let ready = || {
            was_ready = true;
            let _ = started.send(Ok(()));
        };
        let ended = session::run(&mut wanted, &mut orders, guests, ready).await;
        let reason = match ended {
            Ended::AsTold => return,
            Ended::Died(reason) => reason,
        };
        if !was_ready {
            // Whoever waits for the first one is told; later on nobody is.
            let _ = started.send(Err(reason.clone()));
        }
        if wanted.is_ending() {
            warn!(reason, "the guest-facing process has ended before its guests were served");
            return;
        }
        let delay = backoff.after(began.elapsed());
        error!(
            reason,
            delay_ms = delay.as_millis(),
            "the guest-facing process has ended, starting another one"
        );
        guests.restarts.fetch_add(1, Ordering::Relaxed);
        {
            let mut report = guests.report();
            report.ended = Some(reason);
            report.crashes = backoff.in_a_row();
        }
        if !session::wait(delay, &mut wanted, &mut orders).await {
            return;
        }
    }
}

/// Text that cannot pass for something else in a log or on a terminal, of so many characters.
fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|character| !character.is_control()).take(most).collect()
}
