//! Puts the parts of a running agent together. Nothing else knows both planes.
use std::{io, net::TcpListener, os::fd::AsFd as _, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use metadata_ebpf::map::FrameLimit;
use nix::unistd::geteuid;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{kolla, preflight};
use crate::{
    boot_clock,
    config::{Config, Rate},
    control::{Control, Ending, Farewell, Parts},
    datapath::{self, Datapath, NAMESPACES, ServiceDevice},
    directory::{Directory, Signer},
    link::{NovaSettings, PROTOCOL, Setup},
    logging::LogFilter,
    memory::Memory,
    metrics::Metrics,
    mounts,
    nova::Dialler,
    proxy,
    reconcile::{self, Reconciler},
    startup::{self, RunLock},
    supervisor::{self, Guests, Orphan, Supervisor},
    takeover::{self, Offering, Predecessor, store},
    tokens::Tokens,
    version::VERSION,
    watchdog,
};

/// Serves guests until told to stop. An agent that runs already is replaced, if it may be.
pub(super) fn serve(config: &Config, may_replace: bool) -> anyhow::Result<Ending> {
    let (log, _writer) = LogFilter::install(config.debug, config.log_format)?;
    info!(version = VERSION, files = ?config.files, differing = ?config.differing, "starting");
    for warning in config.warnings() {
        warn!("{warning}");
    }
    startup::check_capabilities()?;
    startup::check_kernel()?;
    mounts::check(&[&config.run_dir, Path::new(NAMESPACES)])
        .context("cannot read this process' mounts")??;
    startup::allow_connections(config.limits.connections)?;
    takeover::check_alone(&config.run_dir)?;
    let mut former = store::take();
    let (lock, mut predecessor) = match startup::lock(&config.run_dir)? {
        Some(lock) => (lock, None),
        None if !may_replace => {
            bail!("another agent runs in {}, and --no-takeover leaves it alone", config.run_dir.display())
        }
        None => {
            let (lock, predecessor) = prepare_takeover(config)?;
            (lock, Some(predecessor))
        }
    };

    let mut service = ServiceDevice::set_up(&config.netns, Datapath::former_maps(&config.run_dir)?)?;
    let datapath = Datapath::open(&config.run_dir, &service, config.attach, config.lease)?;
    service.mark(datapath.maps_id()?)?;
    let open = datapath.open_sources()?;

    let directory = Arc::new(Directory::default());
    let signer = Signer::new(config.nova.secret.reveal());
    let tokens = Tokens::open(config.tokens.clone(), &config.run_dir, boot_clock::now())?;
    let reconciler =
        Reconciler::new(datapath, limits(config), directory.clone(), signer)?.with_tokens(tokens);
    let dialler = Arc::new(Dialler::new(&config.nova)?);
    let mut orphans = Vec::new();
    match &mut predecessor {
        Some(predecessor) => former.extend(predecessor.listeners()),
        None => orphans = Orphan::find(&config.run_dir, &dialler),
    }
    former.extend(orphans.iter_mut().flat_map(Orphan::listeners));
    Memory::open()?.give_back_after_bursts()?;

    let (guests, orders) = Guests::new(dialler.clone());
    let of_frames = directory.clone();

    // The control plane has a thread of its own: however busy the guests are, it goes on.
    let control_plane = runtime::Builder::new_current_thread().enable_all().build()?;
    let is_successor = predecessor.is_some();
    let lingers = is_successor || !orphans.is_empty();
    let (filter, settle) = (log.text(), guests.clone());
    let serving = CancellationToken::new();
    let is_serving = serving.clone();
    let predecessor =
        predecessor.map(|predecessor| (predecessor, Farewell(Box::new(move || settle.settle()))));
    let mut control = control_plane.block_on(async {
        let (metrics, guests) = (Metrics::new(), guests.clone());
        let parts = Parts {
            directory: of_frames,
            reconciler,
            service,
            log,
            metrics,
            guests,
            nova: dialler,
            serving,
            predecessor,
        };
        Control::start(config, parts).await
    })?;
    // Not before everything that can be wrong was found good: a connection that was made is reset if we end, and while
    // nobody listens guests try again.
    let listeners = control.service().listeners(config.workers, former, is_successor)?;
    let are_kept = store::keep(listeners.iter().flatten());
    let sockets = listeners.iter().flatten().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
    control.offer(offering(config, &lock, &listeners)?);
    let parts = supervisor::Parts {
        command: supervisor::command,
        setup: setup(config, &listeners, lingers, filter)?,
        required: config.confinement_required,
        listeners: listeners.into_iter().flatten().collect(),
        run_dir: config.run_dir.clone(),
        orphans,
        open,
        directory,
        numbers: proxy::Metrics::names().into_iter().map(Metrics::name).collect(),
    };
    let supervisor = Supervisor::start(parts, guests.clone(), orders)?;
    let (waiting, run_dir, digest) = (guests.clone(), config.run_dir.clone(), config.digest.clone());
    control_plane.spawn(async move {
        is_serving.cancelled().await;
        for socket in &sockets {
            if let Err(error) = datapath::listen(socket) {
                error!(%error, "one of the sockets for guests does not listen, and some guests are not answered: restart the agent");
            }
        }
        waiting.serve();
        if let Err(error) = kolla::remember(&run_dir, &digest) {
            warn!(%error, "kolla-ansible will not hear that this configuration is in effect");
        }
    });
    if is_successor {
        watchdog::warn_if_unwatched();
    }
    // On the thread that may hang.
    control_plane.spawn(watchdog::give_signs_of_life());
    let result = control_plane.block_on(control.run());
    match result {
        Ok(Ending::Succeeded) => {
            guests.outlive();
            guests.retire();
            // Should the successor end, the next agent need not wait until this one's connections are done. It may forget them: then
            // the place of one of its port's sources is given to another source of that port too early, and no more.
            drop(lock);
            control_plane.block_on(control.linger(|| supervisor.has_ended()));
        }
        Ok(Ending::Stopped) if are_kept => guests.outlive(),
        // Between two agents, of which the other one may go on.
        _ if control.shares_sockets() => guests.outlive(),
        _ => {}
    }
    // A name that is being looked up is not waited for.
    control_plane.shutdown_background();
    info!("stopping");
    supervisor.stop();
    result
}

/// Everything that the guest-facing process is told when it begins.
fn setup(
    config: &Config,
    listeners: &[Vec<TcpListener>],
    lingers: bool,
    log: String,
) -> anyhow::Result<Setup> {
    let nova = &config.nova;
    Ok(Setup {
        protocol: PROTOCOL,
        limits: config.limits.clone(),
        nova: NovaSettings {
            endpoints: nova.endpoints.clone(),
            connect_timeout: nova.connect_timeout,
            response_timeout: nova.response_timeout,
        },
        has_tls: nova.tls.is_some(),
        workers: listeners.iter().map(Vec::len).collect(),
        lingers,
        lease: config.lease,
        owner: geteuid().as_raw(),
        log,
        log_format: config.log_format,
        confinement: startup::confinement(&config.run_dir, &config.guest_user)?,
    })
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
    Ok((RunLock::inherited(lock), predecessor))
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

fn limits(config: &Config) -> reconcile::FrameLimits {
    let limit = |rate: Rate| FrameLimit::new(rate.rate, rate.burst);
    reconcile::FrameLimits { connections: limit(config.connections), answers: limit(config.answers) }
}
