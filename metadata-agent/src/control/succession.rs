//! One agent after another: becoming the successor of a running one, starting one's own, and handing over to it.
#![forbid(unsafe_code)]
use std::{
    ffi::OsString,
    fmt, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::{Control, Ending};
use crate::{
    descriptors,
    takeover::{Offering, Predecessor, Step, Takeovers},
};

/// Time for which a successor tries to become able to serve. The running agent waits a little longer.
const PATIENCE: Duration = Duration::from_secs(12);

/// Something that is done once.
pub struct Farewell(pub Box<dyn FnOnce() + Send>);

impl fmt::Debug for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Farewell")
    }
}

/// Succession of agents: the one before, and the one that comes next.
#[derive(Debug)]
pub(super) struct Succession {
    run_dir: PathBuf,
    /// The program as it was found when this agent was started: by then there may be another one there.
    program: Option<PathBuf>,
    predecessor: Option<(Predecessor, Farewell)>,
    began: Instant,
    /// Offering to a successor.
    pub(super) offering: Option<Offering>,
    takeovers: Option<Takeovers>,
    /// True while another agent takes over.
    stands_still: bool,
    /// True if a successor runs that this agent started.
    is_succeeded: Arc<AtomicBool>,
}

impl Succession {
    pub(super) fn new(run_dir: &Path, predecessor: Option<(Predecessor, Farewell)>) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            program: std::env::current_exe().ok(),
            predecessor,
            began: Instant::now(),
            offering: None,
            takeovers: None,
            stands_still: false,
            is_succeeded: Arc::default(),
        }
    }

    /// True while another agent has the sockets for guests too, and may be the one that goes on: this one has not taken over from
    /// it, or stands still for it.
    pub(super) fn shares_sockets(&self) -> bool {
        self.predecessor.is_some() || self.stands_still
    }

    /// Takes the datapath over from the agent that has it, if there is one.
    pub(super) fn commit(&self) -> anyhow::Result<()> {
        match &self.predecessor {
            Some((predecessor, _)) => predecessor.commit().context("no takeover"),
            None => Ok(()),
        }
    }

    /// Guests are served: the former agent may end, and another one may come.
    pub(super) fn serving(&mut self) {
        if let Some(offering) = self.offering.take() {
            match Takeovers::accept(&self.run_dir, offering) {
                Ok(takeovers) => self.takeovers = Some(takeovers),
                Err(error) => error!(%error, "no other agent can take over from this one without a gap"),
            }
        }
        if let Some((predecessor, Farewell(farewell))) = self.predecessor.take()
            && let Err(error) = predecessor.retire(farewell)
        {
            warn!(%error, "the former agent cannot be told to end");
        }
    }

    /// The next step of a takeover; an error when the one that this agent began had its time. Waits for ever if there is
    /// none. May be cancelled.
    pub(super) async fn step(&mut self) -> anyhow::Result<Step> {
        match (&mut self.takeovers, &self.predecessor) {
            (Some(takeovers), _) => Ok(takeovers.step().await),
            (None, Some(_)) => {
                sleep_until(self.began + PATIENCE).await;
                bail!("no takeover: which interfaces there are did not become known in time");
            }
            (None, None) => std::future::pending().await,
        }
    }

    /// Starts the program that is installed now, with the arguments of this one, to take over from it.
    pub(super) fn start_successor(&self) {
        if self.is_succeeded.swap(true, Ordering::Relaxed) {
            warn!("a successor was started already, and has not ended");
            return;
        }
        if let Err(error) = self.try_start_successor() {
            self.is_succeeded.store(false, Ordering::Relaxed);
            error!("no successor can be started: {error:#}");
        }
    }

    fn try_start_successor(&self) -> anyhow::Result<()> {
        let program = self.program.as_ref().context("where this program is could not be found out")?;
        // By a process that ends at once, so that the successor is no child of this one but of the first process: systemd
        // kills a main process that is not its own child without waiting for it to end.
        let mut starter = Command::new("/proc/self/exe");
        starter.arg("detach").arg(program).args(std::env::args_os().skip(1));
        // The sockets that the service manager keeps are handed over like all others.
        for variable in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            starter.env_remove(variable);
        }
        let output = starter.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse();
        let pid: u32 = pid.with_context(|| format!("{} was not started", program.display()))?;
        info!(pid, program = %program.display(), "starting a successor");
        let is_succeeded = self.is_succeeded.clone();
        // It ends before this agent only if there is no takeover, and says why itself.
        let wait = move || {
            match wait_end(pid) {
                Ok(()) => warn!(pid, "the successor ended, this agent goes on"),
                Err(error) => warn!(pid, %error, "the successor was started, and cannot be waited for"),
            }
            is_succeeded.store(false, Ordering::Relaxed);
        };
        thread::Builder::new().name("metadata-heir".to_owned()).spawn(wait)?;
        Ok(())
    }
}

/// Waits for the end of a process that is no child of this one, which may have come already.
fn wait_end(pid: u32) -> io::Result<()> {
    let process = match descriptors::process(pid) {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return Ok(()),
        process => process?,
    };
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    Ok(())
}

/// Starts the program, tells its process on standard output, and does not wait for it.
pub fn detach(program: &Path, arguments: &[OsString]) -> anyhow::Result<()> {
    // Who reads standard output waits for its end.
    let output = io::stderr().as_fd().try_clone_to_owned()?;
    let spawned = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(output).spawn();
    println!("{}", spawned.with_context(|| program.display().to_string())?.id());
    Ok(())
}

impl Control {
    /// Stands still while another agent takes over; tells how this one ends, unless it goes on after all.
    pub(super) async fn hand_over(&mut self, step: Step) -> anyhow::Result<Option<Ending>> {
        let Step::Freeze(frozen) = step else { return Ok(None) };
        info!("standing still while another agent takes over");
        self.succession.stands_still = true;
        self.source.stop();
        self.admin.close().await;
        // It may have gone away meanwhile; the next step tells.
        let _ = frozen.send(());
        let mut is_committed = false;
        loop {
            let step = tokio::select! {
                step = self.succession.step() => step?,
                () = self.stop.wait() => {
                    self.is_told_to_stop = true;
                    return Ok(Some(if is_committed { Ending::Succeeded } else { Ending::Stopped }));
                }
            };
            match step {
                Step::Thaw => {
                    info!("there is no takeover, going on");
                    self.succession.stands_still = false;
                    if let Err(error) = self.reconciler.take_back() {
                        warn!(%error, "what a successor left cannot be put right, trying again");
                    }
                    if let Err(error) = self.admin.reopen() {
                        error!("the operator's interface is closed, trying again: {error:#}");
                    }
                    return Ok(None);
                }
                Step::Committed => is_committed = true,
                Step::Retire(pid) => {
                    info!(successor = pid, "another agent has taken over");
                    // A service manager follows who comes next.
                    if let Err(error) = sd_notify::notify(&[NotifyState::MainPid(pid)]) {
                        warn!(%error, "the service manager cannot be told who has taken over");
                    }
                    return Ok(Some(Ending::Succeeded));
                }
                Step::Lost => bail!("the successor went away after it had taken over: nobody is left"),
                Step::Freeze(_) => {}
            }
        }
    }
}
