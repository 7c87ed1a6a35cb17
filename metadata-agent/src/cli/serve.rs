//! Puts the parts of a running agent together. Nothing else knows both planes.
use std::{io, net::TcpListener, os::fd::AsFd as _, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
use metadata_ebpf::map::Limit;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::preflight;
use crate::{
    boot_clock,
    config::{Config, Rate},
    control::{Control, Ending, Farewell, Parts},
    datapath::{Datapath, ServiceDevice},
    directory::{Directory, Signer},
    health::DataPlane,
    logging::{self, LogFilter},
    memory,
    metrics::Metrics,
    proxy::{self, Nova, Proxy, Shutdown, Workers},
    reconcile::{self, Reconciler},
    startup::{self, RunLock},
    takeover::{Offering, Predecessor, store},
    tokens::Tokens,
    version::VERSION,
};

/// Serves guests until told to stop. An agent that runs already is replaced, if it may be.
pub(super) fn serve(config: &Config, may_replace: bool) -> anyhow::Result<Ending> {
    let (log, _writer) = LogFilter::install(config.debug)?;
    info!(version = VERSION, files = ?config.files, differing = ?config.differing, "starting");
    for warning in config.warnings() {
        warn!("{warning}");
    }
    startup::check_capabilities()?;
    startup::check_kernel()?;
    startup::allow_connections(config.limits.connections)?;
    let mut former = store::take();
    let (lock, predecessor) = match startup::lock(&config.run_dir)? {
        Some(lock) => (lock, None),
        None if !may_replace => bail!(
            "another agent runs in {}, and --no-takeover leaves it alone; give this one its own [metadata_ebpf] run_dir and \
             netns",
            config.run_dir.display()
        ),
        None => {
            let (lock, predecessor) = prepare_takeover(config)?;
            (lock, Some(predecessor))
        }
    };

    let mut service = ServiceDevice::set_up(&config.netns, Datapath::former_maps(&config.run_dir)?)?;
    let mut datapath = Datapath::open(&config.run_dir, &service, config.attach, config.lease)?;
    service.mark(datapath.maps_id()?)?;
    let sources = Arc::new(datapath.source_table(predecessor.is_some())?);
    let datapath_log = datapath.logger().context("log records of the datapath are not available")?;

    let directory = Arc::new(Directory::default());
    let signer = Signer::new(config.nova.secret.reveal());
    let tokens = Tokens::open(config.tokens.clone(), &config.run_dir, boot_clock::now())?;
    let reconciler =
        Reconciler::new(datapath, limits(config), directory.clone(), signer)?.with_tokens(tokens);

    let mut metrics = Metrics::new();
    let proxy_metrics = metrics.register(proxy::Metrics::register);
    let nova = Arc::new(Nova::new(&config.nova, Arc::new(proxy_metrics.clone()))?);
    let proxy = Arc::new(Proxy::new(directory, sources.clone(), config.limits.clone(), proxy_metrics));
    let (serving, shutdown) = (CancellationToken::new(), Shutdown::default());
    let predecessor = predecessor.map(|mut predecessor| {
        former.extend(predecessor.listeners());
        (predecessor, Farewell(Box::new(move || sources.settle())))
    });

    // The control plane has a thread of its own: however busy the guests are, it goes on.
    let control_plane = runtime::Builder::new_current_thread().enable_all().build()?;
    let mut control = control_plane.block_on(async {
        tokio::spawn(logging::follow_datapath(datapath_log));
        tokio::spawn(memory::give_back_after_bursts());
        let guests = Arc::new(GuestFacing { proxy: proxy.clone(), nova: nova.clone() });
        let serving = serving.clone();
        let parts = Parts { reconciler, service, log, metrics, guests, serving, predecessor };
        Control::start(config, parts).await
    })?;
    // Not before everything that can be wrong was found good: a connection that was made is reset if we end, and while
    // nobody listens guests try again.
    let listeners = control.service().listen(config.workers, former)?;
    let are_kept = store::keep(listeners.iter().flatten());
    control.offer(offering(config, &lock, &listeners)?);
    let workers = Workers::start(listeners, &proxy, &nova, &serving, &shutdown)?;
    let result = control_plane.block_on(control.run());
    match result {
        Ok(Ending::Succeeded) => {
            shutdown.outlive();
            shutdown.retire();
            control_plane.block_on(control.linger(|| workers.have_ended()));
        }
        Ok(Ending::Stopped) if are_kept => shutdown.outlive(),
        _ => {}
    }
    // A name that is being looked up is not waited for.
    control_plane.shutdown_background();
    info!("stopping");
    shutdown.stop();
    workers.join();
    result
}

/// Finds the running agent, and everything good that can be wrong, before that agent is disturbed.
fn prepare_takeover(config: &Config) -> anyhow::Result<(RunLock, Predecessor)> {
    let mut predecessor = Predecessor::find(&config.run_dir, &config.netns)?;
    let lock = predecessor.lock().context("the running agent has no lock")?;
    let problems = preflight::problems(config);
    if !problems.is_empty() {
        for problem in &problems {
            error!("{problem:#}");
        }
        bail!("no takeover: the configuration names what cannot be used, and the running agent goes on");
    }
    predecessor.freeze().context("no takeover")?;
    Ok((RunLock::Inherited(lock), predecessor))
}

/// Sockets and lock for this agent's successor.
fn offering(config: &Config, lock: &RunLock, listeners: &[Vec<TcpListener>]) -> anyhow::Result<Offering> {
    let twin = |socket: &TcpListener| socket.as_fd().try_clone_to_owned();
    let listeners: io::Result<Vec<_>> = listeners.iter().flatten().map(twin).collect();
    Ok(Offering {
        netns: config.netns.clone(),
        lock: lock.as_fd().try_clone_to_owned()?,
        listeners: listeners?,
    })
}

fn limits(config: &Config) -> reconcile::Limits {
    let limit = |rate: Rate| Limit::new(rate.rate, rate.burst);
    reconcile::Limits { connections: limit(config.connections), answers: limit(config.answers) }
}

/// The guest-facing half, as the control plane asks it.
#[derive(Debug)]
struct GuestFacing {
    proxy: Arc<Proxy>,
    nova: Arc<Nova>,
}

impl DataPlane for GuestFacing {
    fn reach_nova(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.nova.reach())
    }

    fn reached_nova(&self) -> Option<Instant> {
        self.nova.last_connected()
    }

    fn notes(&self) -> Vec<String> {
        self.proxy.notes()
    }
}
