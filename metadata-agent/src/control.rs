//! The control plane: one thread that takes events, derives what should be served, and applies it.
use std::{sync::Arc, time::Duration};

use http::StatusCode;
use sd_notify::NotifyState;
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    admin::{Answer, Exchange, Question},
    config::{Config, Source},
    inventory::{Desired, Links, Ovn, StaticInventory},
    logging::LogFilter,
    metrics::Metrics,
    proxy::{Nova, Proxy},
    reconcile::{Applied, Reconciler},
};

/// How long after a failure things are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a static inventory is looked at for changes.
const FILE_CHECK: Duration = Duration::from_secs(2);

/// Everything the control plane owns.
#[derive(Debug)]
pub struct Control {
    links: Links,
    source: PortSource,
    reconciler: Reconciler,
    admin: mpsc::Receiver<Exchange>,
    log: LogFilter,
    metrics: Metrics,
    proxy: Arc<Proxy>,
    /// Why not every port is served, if so.
    unable: Option<&'static str>,
    /// Cancelled when guests can be served: the first time everything was applied.
    serving: CancellationToken,
}

/// Where ports and identities come from.
#[derive(Debug)]
enum PortSource {
    Ovn(Box<Ovn>),
    Static(StaticInventory),
}

impl PortSource {
    fn open(config: &Config, nova: Arc<Nova>) -> anyhow::Result<Self> {
        Ok(match &config.source {
            Source::Ovn { ovs, southbound, down_time } => {
                let (ovs, southbound) = (ovs.as_ref().clone(), southbound.as_ref().clone());
                Self::Ovn(Box::new(Ovn::connect(ovs, southbound, *down_time, &config.state_dir, nova)))
            }
            Source::Static(path) => Self::Static(StaticInventory::read(path)?),
        })
    }

    /// Waits for a change. May be cancelled.
    async fn changed(&mut self) {
        match self {
            Self::Ovn(ovn) => ovn.changed().await,
            Self::Static(inventory) => {
                while !inventory.is_outdated() {
                    tokio::time::sleep(FILE_CHECK).await;
                }
                reread(inventory);
            }
        }
    }

    /// Takes what an operator changed by hand.
    fn reload(&mut self) {
        match self {
            Self::Static(inventory) => reread(inventory),
            Self::Ovn(_) => info!("nothing to reload: the databases tell of every change"),
        }
    }

    /// What should be served; nothing as long as that cannot be said.
    fn desired(&mut self, links: &Links, reconciler: &Reconciler) -> Option<Desired> {
        match self {
            Self::Ovn(ovn) => {
                ovn.has_interfaces().then(|| ovn.desired(links.table(), |key| reconciler.served(key)))
            }
            Self::Static(inventory) => Some(inventory.desired(links.table())),
        }
    }

    fn set_able(&mut self, able: bool) {
        match self {
            Self::Ovn(ovn) => ovn.set_able(able),
            Self::Static(_) => {}
        }
    }

    fn stop(&mut self) {
        match self {
            Self::Ovn(ovn) => ovn.stop(),
            Self::Static(_) => {}
        }
    }

    fn pending(&self) -> Vec<String> {
        match self {
            Self::Ovn(ovn) => ovn.pending(),
            Self::Static(_) => Vec::new(),
        }
    }
}

fn reread(inventory: &mut StaticInventory) {
    match inventory.reread() {
        Ok(()) => info!("inventory read again"),
        Err(error) => error!(%error, "the inventory has an error, what was read before stays in force"),
    }
}

impl Control {
    /// Subscribes to links and begins to connect to the source.
    pub async fn start(
        config: &Config,
        reconciler: Reconciler,
        log: LogFilter,
        nova: Arc<Nova>,
        metrics: Metrics,
        proxy: Arc<Proxy>,
        serving: CancellationToken,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            source: PortSource::open(config, nova)?,
            links: Links::subscribe(reconciler.is_removable()).await?,
            reconciler,
            admin: crate::admin::serve(&config.run_dir, config.admin_listen)?,
            log,
            metrics,
            proxy,
            unable: None,
            serving,
        })
    }

    /// Runs until the agent is told to stop.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        let mut stop = Stop::new()?;
        let mut hangup = signal(SignalKind::hangup())?;
        // Not before a signal is heard. What is served yet, `/ready` says: whoever waits for us to start does not wait for
        // databases as well.
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            warn!(%error, "the service manager cannot be told that the agent has started");
        }
        let mut retry: Option<Instant> = None;
        self.reconcile(&mut retry);
        loop {
            let at = retry.unwrap_or_else(|| Instant::now() + RETRY);
            tokio::select! {
                changed = self.links.changed() => {
                    if let Err(error) = changed {
                        warn!(%error, "cannot list network devices, trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                () = self.source.changed() => {}
                () = sleep_until(at), if retry.is_some() => retry = None,
                Some((question, answer)) = self.admin.recv() => {
                    // Whoever asked may be gone.
                    let _ = answer.send(self.answer(question));
                    continue;
                }
                _ = hangup.recv() => self.source.reload(),
                () = stop.wait() => {
                    self.source.stop();
                    return Ok(());
                }
            }
            self.reconcile(&mut retry);
        }
    }

    fn reconcile(&mut self, retry: &mut Option<Instant>) {
        let Some(desired) = self.source.desired(&self.links, &self.reconciler) else { return };
        self.reconciler.restore(&self.links.take_stripped());
        let applied = self.reconciler.apply(&desired);
        self.unable = match applied {
            Applied::Complete => None,
            Applied::Partly => Some("not every tap has its program yet"),
            Applied::Failed => Some("not every port can be served: `show ports` and the log say why"),
        };
        self.source.set_able(self.unable.is_none());
        match applied {
            Applied::Complete => {}
            Applied::Partly => *retry = Some(Instant::now()),
            Applied::Failed => {
                retry.get_or_insert_with(|| Instant::now() + RETRY);
            }
        }
        if !self.serving.is_cancelled() {
            info!(ports = desired.len(), "serving");
            self.serving.cancel();
        }
    }

    /// What is missing, for every guest to be served.
    fn pending(&self) -> Vec<String> {
        self.source.pending().into_iter().chain(self.unable.map(str::to_owned)).collect()
    }

    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Ready => {
                let pending = self.pending();
                if pending.is_empty() {
                    let notes = self.proxy.notes().into_iter().map(|note| format!("note: {note}\n"));
                    Answer::ok(format!("ready\n{}", notes.collect::<String>()))
                } else {
                    Answer::error(StatusCode::SERVICE_UNAVAILABLE, pending.join("\n") + "\n")
                }
            }
            Question::Ports => Answer::json(&self.reconciler.describe()),
            Question::Counters => match self.reconciler.datapath().counters() {
                Ok(counters) => {
                    let object: serde_json::Map<_, _> = counters
                        .into_iter()
                        .map(|(counter, value)| (counter.name().to_owned(), json!(value)))
                        .collect();
                    Answer::json(&object.into())
                }
                Err(error) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            Question::Metrics => {
                let pending = self.pending();
                match self.metrics.text(&self.reconciler, pending.is_empty()) {
                    Ok(text) => Answer::metrics(text),
                    Err(error) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                }
            }
            Question::LogLevel(filter) => match self.log.set(&filter) {
                Ok(()) => Answer::ok(format!("logging {filter}\n")),
                Err(error) => Answer::error(StatusCode::BAD_REQUEST, format!("{filter:?}: {error}\n")),
            },
            Question::LogDatapath(on) => match self.reconciler.datapath_mut().set_logging(on) {
                Ok(()) => {
                    Answer::ok(format!("log records of the datapath: {}\n", if on { "on" } else { "off" }))
                }
                Err(error) => Answer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
        }
    }
}

/// SIGTERM or SIGINT.
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
