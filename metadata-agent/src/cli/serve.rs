//! Puts the parts of a running agent together. Nothing else knows both planes.
use std::{sync::Arc, time::Instant};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use metadata_ebpf::map::Limit;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::{Config, Rate},
    control::{Control, Ending, Parts},
    datapath::{Datapath, ServiceDevice},
    directory::{Directory, Signer},
    health::DataPlane,
    logging::{self, LogFilter},
    memory,
    metrics::Metrics,
    proxy::{self, Nova, Proxy, Workers},
    reconcile::{self, Reconciler},
    startup,
};

/// Serves guests until told to stop.
pub(super) fn serve(config: &Config) -> anyhow::Result<Ending> {
    let (log, _writer) = LogFilter::install(config.debug)?;
    for warning in config.warnings() {
        warn!("{warning}");
    }
    startup::check_capabilities()?;
    startup::check_kernel()?;
    startup::allow_connections(config.limits.connections)?;
    let _lock = startup::lock(&config.run_dir)?;

    let mut service = ServiceDevice::set_up(&config.netns, Datapath::former_maps(&config.run_dir)?)?;
    let mut datapath = Datapath::open(&config.run_dir, &service, config.attach, config.lease)?;
    service.mark(datapath.maps_id()?)?;
    let sources = datapath.source_table()?;
    let datapath_log = datapath.logger().context("log records of the datapath are not available")?;

    let directory = Arc::new(Directory::default());
    let signer = Signer::new(config.nova.secret.reveal());
    let reconciler = Reconciler::new(datapath, limits(config), directory.clone(), signer)?;

    let mut metrics = Metrics::new();
    let proxy_metrics = metrics.register(proxy::Metrics::register);
    let nova = Arc::new(Nova::new(&config.nova, Arc::new(proxy_metrics.clone()))?);
    let proxy = Arc::new(Proxy::new(directory, Arc::new(sources), config.limits.clone(), proxy_metrics));
    let (serving, stop) = (CancellationToken::new(), CancellationToken::new());

    // The control plane has a thread of its own: however busy the guests are, it goes on.
    let control_plane = runtime::Builder::new_current_thread().enable_all().build()?;
    let mut control = control_plane.block_on(async {
        tokio::spawn(logging::follow_datapath(datapath_log));
        tokio::spawn(memory::give_back_after_bursts());
        let guests = Arc::new(GuestFacing { proxy: proxy.clone(), nova: nova.clone() });
        let serving = serving.clone();
        Control::start(config, Parts { reconciler, service, log, metrics, guests, serving }).await
    })?;
    // Not before everything that can be wrong was found good: a connection that was made is reset if we end, and while
    // nobody listens guests try again.
    let listeners = control.service().listen(config.workers)?;
    let workers = Workers::start(listeners, &proxy, &nova, &serving, &stop)?;
    let result = control_plane.block_on(control.run());
    // A name that is being looked up is not waited for.
    control_plane.shutdown_background();
    info!("stopping");
    stop.cancel();
    workers.join();
    result
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
