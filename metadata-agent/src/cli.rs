//! Commands.
#![forbid(unsafe_code)]
mod agent_place;
mod config_files;
mod explain;
mod kolla;
mod log;
mod migrate;
mod preflight;
mod proxy;
mod serve;
mod show;
mod top;
mod watch;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::runtime;

use self::{
    config_files::ConfigFiles, explain::Explain, log::Log, migrate::Migrate, serve::serve, show::Show,
    top::Top, watch::Watch,
};
use crate::{
    admin,
    config::{self, Config, SourceOptions},
    control::{self, Ending},
    datapath::{Datapath, Netns, ServiceDevice},
    inventory::remove_network_devices,
    link, startup,
    supervisor::Orphan,
    takeover, tokens, version,
};

/// Instance metadata for the guests of this host.
#[derive(Debug, Parser)]
#[command(name = "metadata-agent", version = version::VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the guests of this host until told to stop. Programs and pins stay when it does. An agent that runs already
    /// is replaced, without a gap.
    Run {
        /// Fail if another agent runs, rather than replace it.
        #[arg(long)]
        no_takeover: bool,
        #[command(flatten)]
        files: ConfigFiles,
    },
    /// Serve guests as another process says, which has started this one.
    #[command(hide = true)]
    Proxy,
    /// Start a program that nobody waits for, and print its process id.
    #[command(hide = true)]
    Detach {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Check the configuration and the files it names, and print what is in effect: options that have their default are
    /// commented out, and the secret is not shown.
    CheckConfig(ConfigFiles),
    /// Ask the running agent.
    Show(Show),
    /// Explain why a guest gets its answers or does not, stage by stage. The exit status tells the first stage that fails.
    Explain(Explain),
    /// Show the ports by what their guests ask for, live.
    Top(Top),
    /// Show requests and dropped frames as they happen.
    Watch(Watch),
    /// Change what the running agent logs.
    Log(Log),
    /// Take the node over from neutron-ovn-metadata-agent (or the extension metadata of neutron-ovn-agent) while this agent
    /// runs beside it, or give it back. Tells what it would do, unless told to do it.
    Migrate(Migrate),
    /// Remove programs, pins, the service device and its namespace, and the devices of networks. A running agent is ended,
    /// for good: from then on new
    /// connections go to whoever else serves the taps, while those under way are served.
    Cleanup(ConfigFiles),
}

/// Grace period of an agent that leaves: what is under way is served for some seconds.
const LEAVING: Duration = Duration::from_secs(30);

/// Exit status for a configuration at fault (`EX_CONFIG` of sysexits.h): trying again would not help.
const EX_CONFIG: u8 = 78;

/// Exit status of an agent that was told to leave: it is not to be started again.
const EX_LEFT: u8 = 79;

/// Exit status of the process after that error.
pub fn status(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<config::Error>() {
        Some(error) if error.is_lasting() => ExitCode::from(EX_CONFIG),
        _ => ExitCode::FAILURE,
    }
}

/// The command line, for its manual.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line, does what it says, and tells what the process ends with.
pub fn run() -> anyhow::Result<ExitCode> {
    if kolla::is_asked() {
        return Ok(kolla::answer());
    }
    match Cli::parse().command {
        Command::Run { no_takeover, files } => {
            return Ok(match serve(&files.read()?, !no_takeover)? {
                Ending::Stopped | Ending::Succeeded => ExitCode::SUCCESS,
                Ending::Left => ExitCode::from(EX_LEFT),
            });
        }
        Command::Proxy => proxy::serve_guests()?,
        Command::Detach { program, arguments } => control::detach(&program, &arguments)?,
        Command::CheckConfig(files) => {
            let config = files.read()?;
            io::stdout().write_all(files.effective()?.as_bytes())?;
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            let problems = preflight::problems(&config);
            for problem in &problems {
                eprintln!("error: {problem:#}");
            }
            if !problems.is_empty() {
                bail!("the configuration names what cannot be used ({} of it)", problems.len());
            }
        }
        Command::Show(show) => show.run()?,
        Command::Explain(explain) => return explain.run(),
        Command::Top(top) => top.run()?,
        Command::Watch(watch) => watch.run()?,
        Command::Log(log) => log.run()?,
        Command::Migrate(migrate) => migrate.run()?,
        Command::Cleanup(files) => cleanup(&files.read()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells a running agent to leave; where there is none, returns the lock, which lasts as long as this process. Where that fails
/// the agent stays.
fn tell_to_leave(run_dir: &Path) -> anyhow::Result<Option<startup::RunLock>> {
    startup::check_capabilities()?;
    let Ok(socket) = show::connect(run_dir) else {
        return startup::lock(run_dir)?.with_context(|| held(run_dir)).map(Some);
    };
    // One that leaves may be gone before it has answered; its lock tells.
    if let Ok((false, answer)) = show::ask(socket, "PUT", "/leave") {
        bail!("the running agent does not leave: {answer}");
    }
    Ok(None)
}

/// Waits until an agent that leaves is gone.
fn await_gone(run_dir: &Path) -> anyhow::Result<startup::RunLock> {
    let deadline = Instant::now() + LEAVING;
    loop {
        match startup::lock(run_dir)? {
            Some(lock) => return Ok(lock),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            None => bail!(held(run_dir)),
        }
    }
}

fn held(run_dir: &Path) -> String {
    format!("another agent runs in {}, and does not answer: stop it first", run_dir.display())
}

/// Removes the devices that ports without a tap were served by.
fn remove_devices(ovs: &ovsdb_client::Config) -> Result<(), String> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(remove_network_devices(ovs.clone())).map(drop)
}

fn cleanup(config: &Config) -> anyhow::Result<()> {
    takeover::check_alone(&config.run_dir)?;
    let lock = tell_to_leave(&config.run_dir)?;
    remove_all(config, lock)
}

/// Removes what an agent that leaves, or has gone, has on this host. The lock is missing while it leaves.
fn remove_all(config: &Config, lock: Option<startup::RunLock>) -> anyhow::Result<()> {
    let _lock = lock.map_or_else(|| await_gone(&config.run_dir), Ok)?;
    Orphan::end_all(&config.run_dir)
        .context("cannot end the guest-facing process of an agent that was killed")?;
    // Before their programs go: what these devices receive is for nobody else.
    if let SourceOptions::Ovn { ovs, .. } = &config.source
        && let Err(error) = remove_devices(ovs)
    {
        eprintln!(
            "warning: the local Open vSwitch cannot be asked for devices of networks ({error}): if `ovs-vsctl \
             --columns=name find Interface external_ids:metadata-agent-network!=''` names any, remove them with `ovs-vsctl \
             del-port`"
        );
    }
    Datapath::remove(&config.run_dir)?;
    ServiceDevice::remove().context("cannot remove the service device")?;
    Netns::remove(&config.netns).with_context(|| format!("cannot remove the namespace {}", config.netns))?;
    for file in [admin::SOCKET, takeover::SOCKET, kolla::FILE, "lock"].into_iter().chain(tokens::FILES) {
        match std::fs::remove_file(config.run_dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    match std::fs::remove_dir(config.run_dir.join(link::EMPTY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    match std::fs::remove_dir(&config.run_dir) {
        // Somebody else's files are theirs to remove.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.with_context(|| format!("cannot remove {}", config.run_dir.display())),
    }
}
