//! The control plane: one thread that takes events, derives what should be served, and applies it.
#![forbid(unsafe_code)]
mod answers;
mod evidence;
mod frames;
mod source;
mod succession;
mod top;
mod upkeep;
mod watched;

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;
use source::PortSource;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::{Admin, Question},
    config::Config,
    datapath::{self, Family, Probe, ServiceDevice},
    directory::Directory,
    health::{DataPlane, Health, Problem, Reachability},
    inventory::{HostLinks, Unserved},
    logging::LogFilter,
    metrics::Metrics,
    nova::Dialler,
    reconcile::Reconciler,
    takeover::{Offering, Predecessor},
    watchers::Watchers,
};
pub use evidence::Subject;
use frames::FrameLog;
use succession::Succession;
pub use succession::{Farewell, detach};

/// Delay after a failure until the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// Period of the look after the datapath, and of a connection from inside.
const LOOK_AFTER: Duration = Duration::from_secs(2);

/// Time that connections that another agent did not take over may have until their next request, and how often it is
/// looked whether there are any.
const LINGERING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// Everything the control plane owns.
#[derive(Debug)]
pub struct Control {
    links: HostLinks,
    source: PortSource,
    reconciler: Reconciler,
    service: ServiceDevice,
    /// The agent's own guest, from when guests are served.
    probe: Option<Probe>,
    /// Family over which it asks next.
    family: Family,
    admin: Admin,
    log: LogFilter,
    frames: FrameLog,
    watchers: Watchers,
    metrics: Metrics,
    health: Health,
    nova: Arc<Reachability>,
    /// Ports that are plugged and cannot be served: now, at the last look, and as it was logged.
    unserved: Unserved,
    seen_unserved: Unserved,
    told_unserved: Unserved,
    /// Parts that lacked something when that was last logged.
    told_pending: Vec<&'static str>,
    guests: Arc<dyn DataPlane>,
    /// Cancelled when guests can be served: the first time everything was applied.
    serving: CancellationToken,
    succession: Succession,
    stop: Stop,
    is_told_to_stop: bool,
}

/// End of an agent: to come back, or for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It may: programs stay in force, and guests that ask meanwhile are answered by the next one.
    Stopped,
    /// It is not: whoever serves the taps next has the new connections already.
    Left,
    /// Another agent has taken over, and accepts the guests' connections.
    Succeeded,
}

/// The parts of a control plane.
#[derive(Debug)]
pub struct Parts {
    /// The datapath with what is to be served over it.
    pub reconciler: Reconciler,
    /// The device that guests are led to.
    pub service: ServiceDevice,
    /// The ports, as they are published.
    pub directory: Arc<Directory>,
    /// The log's filter.
    pub log: LogFilter,
    /// The registry of metrics.
    pub metrics: Metrics,
    /// The guest-facing half.
    pub guests: Arc<dyn DataPlane>,
    /// The way to Nova.
    pub nova: Arc<Dialler>,
    /// Cancelled when guests can be served.
    pub serving: CancellationToken,
    /// The agent that runs, and what is to be done when it has ended.
    pub predecessor: Option<(Predecessor, Farewell)>,
}

impl Control {
    /// Subscribes to links and begins to connect to the source.
    pub async fn start(config: &Config, parts: Parts) -> anyhow::Result<Self> {
        let Parts { directory, mut reconciler, service, log, metrics, guests, nova, serving, predecessor } =
            parts;
        let nova = Arc::new(Reachability::new(nova));
        let watchers = Watchers::default();
        let frames = FrameLog::start(reconciler.datapath_mut().records()?, directory, watchers.clone());
        Ok(Self {
            source: PortSource::open(config, nova.clone())?,
            links: HostLinks::subscribe(reconciler.is_removable()).await?,
            reconciler,
            service,
            probe: None,
            family: Family::V4,
            admin: Admin::serve(&config.run_dir, config.admin_listen, watchers.clone())?,
            watchers,
            log,
            frames,
            metrics,
            health: Health::default(),
            nova,
            unserved: Unserved::new(),
            seen_unserved: Unserved::new(),
            told_unserved: Unserved::new(),
            told_pending: Vec::new(),
            guests,
            serving,
            succession: Succession::new(&config.run_dir, predecessor),
            stop: Stop::new()?,
            is_told_to_stop: false,
        })
    }

    /// The device that guests are led to.
    pub fn service(&self) -> &ServiceDevice {
        &self.service
    }

    /// True while another agent has the sockets for guests too, and may be the one that goes on.
    pub fn shares_sockets(&self) -> bool {
        self.succession.shares_sockets()
    }

    /// Lets another agent take over, from when guests are served.
    pub fn offer(&mut self, offering: Offering) {
        self.succession.offering = Some(offering);
    }

    /// Waits until connections are done that were begun before another agent took over, or had their time.
    pub async fn linger(&mut self, are_done: impl Fn() -> bool) {
        let until = Instant::now() + LINGERING;
        while !are_done() && Instant::now() < until && !self.is_told_to_stop {
            tokio::select! {
                () = self.stop.wait() => return,
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Runs until the agent is told to stop, or to leave, or another one has taken over.
    pub async fn run(&mut self) -> anyhow::Result<Ending> {
        let mut replace = signal(SignalKind::user_defined2())?;
        let mut hangup = signal(SignalKind::hangup())?;
        // Not before a signal is heard. What is served yet, `/ready` says: whoever waits for us to start does not wait for
        // databases as well.
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            warn!(%error, "the service manager cannot be told that the agent has started");
        }
        let mut watchers = self.watchers.news();
        let mut retry: Option<Instant> = None;
        let mut look_after = interval(LOOK_AFTER);
        look_after.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.reconcile(&mut retry)?;
        loop {
            let at = retry.unwrap_or_else(|| Instant::now() + RETRY);
            tokio::select! {
                changed = self.links.changed() => {
                    if let Err(error) = changed {
                        warn!(%error, "cannot list network devices, trying again");
                        sleep(RETRY).await;
                    }
                }
                () = self.source.changed() => {}
                () = sleep_until(at), if retry.is_some() => retry = None,
                _ = look_after.tick() => self.look_after(),
                probed = upkeep::next_answer(&mut self.probe) => self.probed(probed),
                (question, answer) = self.admin.question() => {
                    if question == Question::Metrics {
                        self.answer_metrics(answer);
                        continue;
                    }
                    if question == Question::Top {
                        self.answer_top(answer);
                        continue;
                    }
                    if let Question::Explain { what, probe } = question {
                        self.explain(Subject { what, probe }, answer);
                        continue;
                    }
                    let leaves = question == Question::Leave;
                    // Whoever asked may be gone.
                    let _ = answer.send(self.answer(question));
                    if leaves {
                        self.source.stop();
                        return Ok(Ending::Left);
                    }
                    continue;
                }
                Ok(()) = watchers.changed() => {
                    self.follow_watchers();
                    continue;
                }
                _ = hangup.recv() => self.source.reload(),
                _ = replace.recv() => self.succession.start_successor(),
                step = self.succession.step() => {
                    if let Some(ending) = self.hand_over(step?).await? {
                        return Ok(ending);
                    }
                }
                () = self.stop.wait() => {
                    self.source.stop();
                    return Ok(Ending::Stopped);
                }
            }
            self.reconcile(&mut retry)?;
        }
    }

    fn reconcile(&mut self, retry: &mut Option<Instant>) -> anyhow::Result<()> {
        let Some((desired, unserved)) = self.source.desired(&self.links, &self.reconciler) else {
            return Ok(());
        };
        if !self.serving.is_cancelled() {
            // Everything that can be wrong was found good.
            self.succession.commit()?;
        }
        self.unserved = unserved;
        self.reconciler.restore(&self.links.take_stripped());
        let applied = self.reconciler.apply(&desired);
        self.health.applied(applied);
        self.note_readiness();
        if applied.waiting > 0 {
            *retry = Some(Instant::now());
        } else if applied.failed > 0 {
            retry.get_or_insert_with(|| Instant::now() + RETRY);
        }
        if !self.serving.is_cancelled() {
            info!(ports = desired.len(), "serving");
            self.serving.cancel();
            self.succession.serving();
            self.start_probe();
        }
        Ok(())
    }

    /// Tells of what has come to be missing, and of what no longer is.
    fn note_readiness(&mut self) {
        self.source.set_able(&self.problems());
        let pending = self.pending();
        // Not by what is said: that counts taps, or names the server that was tried last.
        let subjects: Vec<_> = pending.iter().map(|problem| problem.subject).collect();
        if subjects != self.told_pending {
            if pending.is_empty() {
                info!("ready");
            } else {
                warn!(missing = Problem::texts(&pending, "; "), "not ready");
            }
            self.told_pending = subjects;
        }
    }

    /// Begins or ends to tell those who watch.
    fn follow_watchers(&mut self) {
        watched::follow(&self.watchers, &*self.guests);
        if let Err(error) = self.record_frames() {
            warn!(%error, "the programs cannot be told which frames to record");
        }
    }

    /// Tells the programs which frames are wanted now.
    fn record_frames(&mut self) -> Result<(), datapath::Error> {
        let wanted = self.frames.wanted(std::time::Instant::now(), |port| self.reconciler.number_of(port));
        self.reconciler.datapath_mut().set_recorded(wanted)
    }

    /// Says once of each port that is plugged why it is not served.
    fn tell_unserved(&mut self) {
        self.told_unserved.retain(|port, _| self.unserved.contains_key(port));
        // What is being plugged is not served for a moment: what is said here was so the last time as well.
        for (port, unserved) in
            self.unserved.iter().filter(|(port, _)| self.seen_unserved.contains_key(*port))
        {
            if self.told_unserved.insert(port.clone(), unserved.clone()).as_ref() == Some(unserved) {
                continue;
            }
            warn!(
                port,
                interface = unserved.interface,
                reason = unserved.reason,
                "a plugged port is not served"
            );
        }
        self.seen_unserved.clone_from(&self.unserved);
    }

    /// Troubles of all guests, databases apart.
    fn problems(&self) -> Vec<Problem> {
        let others = self.guests.problem().into_iter().chain(self.nova.problem());
        self.health.problems().into_iter().chain(others).collect()
    }

    /// Problems in the way of serving every guest.
    fn pending(&self) -> Vec<Problem> {
        self.source.pending().into_iter().chain(self.problems()).collect()
    }
}

/// SIGTERM or SIGINT.
#[derive(Debug)]
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
