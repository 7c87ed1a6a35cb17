//! Commands, and how the parts of a running agent are put together.
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use metadata_ebpf::map::Limit;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    admin,
    config::{self, Config, Rate},
    control::Control,
    datapath::{self, Datapath, Netns, ServiceDevice},
    logging::{self, LogFilter},
    memory,
    metrics::Metrics,
    proxy::{
        self, Nova, Proxy, Workers,
        directory::{Directory, Signer},
    },
    reconcile::Reconciler,
    startup,
};

/// Instance metadata for the guests of this host.
#[derive(Debug, Parser)]
#[command(name = "metadata-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the guests of this host until told to stop. Programs and pins stay when it does.
    Run(ConfigFiles),
    /// Check the configuration and print it as understood.
    CheckConfig(ConfigFiles),
    /// Ask the running agent.
    Show {
        /// What to show.
        what: What,
        #[command(flatten)]
        files: ConfigFiles,
    },
    /// Remove programs, pins, the service device and its namespace. The agent must not be running.
    Cleanup(ConfigFiles),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Whether guests can be served, and if not, why.
    Ready,
    /// The ports and who is behind each.
    Ports,
    /// What the datapath counted.
    Counters,
    /// Everything that is counted, in Prometheus' text format.
    Metrics,
}

#[derive(Debug, Args)]
struct ConfigFiles {
    /// An INI file; may be given several times, later ones win.
    #[arg(long = "config-file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A folder of INI files (*.conf), read after the files.
    #[arg(long = "config-dir", value_name = "FOLDER")]
    folders: Vec<PathBuf>,
}

impl ConfigFiles {
    fn read(&self) -> anyhow::Result<Config> {
        if self.files.is_empty() && self.folders.is_empty() {
            bail!("no configuration: name at least one with --config-file or --config-dir");
        }
        Ok(Config::read(&self.files, &self.folders)?)
    }
}

/// What a process ends with whose configuration is at fault (`EX_CONFIG` of sysexits.h): trying again would not help.
const EX_CONFIG: u8 = 78;

/// What the process ends with after that error.
pub fn status(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<config::Error>() {
        Some(error) if error.is_lasting() => ExitCode::from(EX_CONFIG),
        _ => ExitCode::FAILURE,
    }
}

/// Parses the command line and does what it says.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(files) => serve(&files.read()?),
        Command::CheckConfig(files) => {
            let config = files.read()?;
            // For the certificates, which are part of it.
            Nova::new(&config.nova, Arc::new(Metrics::new().register(proxy::Metrics::register)))?;
            println!("{config:#?}");
            Ok(())
        }
        Command::Show { what, files } => show(what, &files.read()?),
        Command::Cleanup(files) => cleanup(&files.read()?),
    }
}

fn serve(config: &Config) -> anyhow::Result<()> {
    let (log, _writer) = LogFilter::install(config.debug)?;
    startup::check_capabilities()?;
    startup::check_kernel()?;
    startup::allow_connections(config.limits.connections)?;
    let _lock = startup::lock(&config.run_dir)?;

    let netns = Netns::open_or_create(&config.netns)
        .with_context(|| format!("cannot make the service namespace {}", config.netns))?;
    let service = ServiceDevice::set_up(&netns)?;
    let mut datapath = Datapath::open(&config.run_dir, &service.host_end, config.attach, limits(config))?;
    let sources = datapath.source_table()?;
    let datapath_log = datapath.logger().context("log records of the datapath are not available")?;

    let directory = Arc::new(Directory::default());
    let reconciler = Reconciler::new(datapath, directory.clone(), Signer::new(config.nova.secret.reveal()))?;

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
        Control::start(config, reconciler, log, nova.clone(), metrics, proxy.clone(), serving.clone()).await
    })?;
    // Not before everything that can be wrong was found good: a connection that was made is reset if we end, and while
    // nobody listens guests try again.
    let listeners = service.listen(&netns, config.workers)?;
    let workers = Workers::start(listeners, &proxy, &nova, &serving, &stop)?;
    let result = control_plane.block_on(control.run());
    // A name that is being looked up is not waited for.
    control_plane.shutdown_background();
    info!("stopping");
    stop.cancel();
    workers.join();
    result
}

fn limits(config: &Config) -> datapath::Limits {
    let limit = |rate: Rate| Limit::new(rate.rate, rate.burst);
    datapath::Limits { connections: limit(config.connections), answers: limit(config.answers) }
}

fn show(what: What, config: &Config) -> anyhow::Result<()> {
    let path = config.run_dir.join(admin::SOCKET);
    let mut socket = UnixStream::connect(&path)
        .with_context(|| format!("no agent answers at {}: is it running?", path.display()))?;
    let target = match what {
        What::Ready => "/ready",
        What::Ports => "/ports",
        What::Counters => "/counters",
        What::Metrics => "/metrics",
    };
    write!(socket, "GET {target} HTTP/1.0\r\n\r\n")?;
    let mut response = String::new();
    socket.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("the agent broke off")?;
    print!("{body}");
    if head.split(' ').nth(1) != Some("200") {
        bail!("not ready");
    }
    Ok(())
}

fn cleanup(config: &Config) -> anyhow::Result<()> {
    startup::check_capabilities()?;
    let _lock = startup::lock(&config.run_dir)?;
    Datapath::remove(&config.run_dir)?;
    ServiceDevice::remove().context("cannot remove the service device")?;
    Netns::remove(&config.netns).with_context(|| format!("cannot remove the namespace {}", config.netns))?;
    for file in [admin::SOCKET, "lock"] {
        match std::fs::remove_file(config.run_dir.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    match std::fs::remove_dir(&config.run_dir) {
        // Somebody else's files are theirs to remove.
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.with_context(|| format!("cannot remove {}", config.run_dir.display())),
    }
}
