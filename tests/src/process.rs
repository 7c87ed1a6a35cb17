//! Daemons: processes with a log that end when dropped, and with us however we end.
#![allow(unsafe_code, reason = "what happens between fork and exec")]

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
    },
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use crate::{sandbox, wait::until};

/// Age of an agent from which on it has given back what its start took.
pub const AT_REST: Duration = Duration::from_secs(8);
const GRACE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the program with its output appended to the log.
    pub fn spawn(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Ctrl-C at a terminal is for us: we stop what we started in the right order.
        command.process_group(0);
        // A child inherits which signals are blocked, and who waits for Ctrl-C blocks the one that stops a daemon.
        // SAFETY: prctl and sigprocmask are system calls; nothing is allocated or locked.
        unsafe {
            command.pre_exec(|| {
                SigSet::empty().thread_set_mask()?;
                Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
            });
        }
        let description = format!("{command:?}");
        let child =
            spawn_from_lasting_thread(command).with_context(|| format!("cannot start {description}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Fails with the end of its log when the daemon is gone.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}):\n{}", self.name, sandbox::tail(&self.log));
        }
        Ok(())
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid out of range")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// SIGTERM, and SIGKILL when that is not heard.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait().or_else(|_| self.kill())
    }

    /// Waits for one that was told to end in its own way.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        until(&format!("{} ends", self.name), GRACE, || self.child.try_wait()?.context("it still runs"))
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("warning: {} may still run: {error:#}", self.name);
        }
    }
}

/// A process and those that it has started.
pub fn family(process: u32) -> Result<Vec<u32>> {
    let mut family = vec![process];
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may be gone. The name, in parentheses, may hold anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent == Some(process.to_string().as_str()) {
            family.push(pid);
        }
    }
    Ok(family)
}

/// The number of descriptors that a process has open.
pub fn descriptors(process: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/fd"))?.count())
}

/// The proportional share of memory (PSS) of a process and those that it has started, in bytes.
pub fn memory(process: u32) -> Result<u64> {
    family(process)?.into_iter().map(memory_of).sum()
}

/// The same of a process alone.
pub fn memory_of(process: u32) -> Result<u64> {
    rollup(process, "Pss:")
}

/// Anonymous memory of a process and those that it has started, in bytes: without the pages of their program, whose share
/// grows when another process of the same program ends.
pub fn anonymous_memory(process: u32) -> Result<u64> {
    family(process)?.into_iter().map(|process| rollup(process, "Anonymous:")).sum()
}

/// A field of the sums over all mappings of a process, in bytes.
fn rollup(process: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let line = line.with_context(|| format!("the kernel tells no {field}"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// Time that all threads of a process, and of those that it has started, have used in user space and the kernel.
pub fn cpu_time(process: u32) -> Result<Duration> {
    family(process)?.into_iter().map(cpu_time_of).sum()
}

/// The same of a process alone.
pub fn cpu_time_of(process: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process.cast_signed()))?;
    Ok(clock_gettime(clock)?.into())
}

/// The kernel sends the parent-death signal when the *thread* that forked ends, so one that never ends does it.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                // Who asked waits for it.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}
