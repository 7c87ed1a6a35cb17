//! Carries out a plan, and undoes what it did when a step fails.
use std::{
    fmt, io,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::runtime::Runtime;

use super::{
    incumbent::{Found, Provision, find, has_device},
    plan::{Plan, Ports, Step},
};
use crate::{
    datapath::{Netns, remove_device},
    inventory::{Bound, bind, bound_by_others, release},
};

/// Time for this agent to serve what it has been given. Its device has to be made and bound by ovn-controller.
const OWN: Duration = Duration::from_secs(30);
/// Time for the other agent to serve: it makes one network after the other.
const OTHER: Duration = Duration::from_secs(180);
/// Time for the other agent to be gone.
const GONE: Duration = Duration::from_secs(30);
/// Time for haproxy to answer what is under way, and then to end.
const HAPROXY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// The host, as the steps need it.
pub struct Host<'a> {
    /// The local Open vSwitch.
    pub ovs: ovsdb_client::Config,
    /// Asks the running agent for its ports.
    pub ports: &'a dyn Fn() -> Result<Ports, String>,
    /// Has it leave for good.
    pub leave: &'a dyn Fn() -> Result<(), String>,
    /// Tells the operator a line.
    pub tell: &'a dyn Fn(fmt::Arguments<'_>),
    /// For questions to the databases and the kernel.
    pub runtime: Runtime,
}

impl fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// A step that failed, and what became of those before it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {problem}; {undone}")]
pub struct Failure {
    step: Box<str>,
    problem: String,
    undone: String,
}

impl Host<'_> {
    /// What the other agent has here now.
    pub fn find(&self) -> Result<Found, String> {
        let bound = self.runtime.block_on(bound_by_others(self.ovs.clone()));
        let bound = bound.map_err(|error| format!("the local Open vSwitch: {error}"))?;
        find(bound).map_err(|error| format!("this host's processes and namespaces: {error}"))
    }
}

/// Does one step after the other.
pub fn carry_out(plan: &Plan, host: &Host<'_>) -> Result<(), Failure> {
    let mut released = Vec::new();
    let mut is_changed = false;
    for (number, step) in plan.steps.iter().enumerate() {
        (host.tell)(format_args!("[{}/{}] {step}", number + 1, plan.steps.len()));
        if let Err(problem) = take(step, host, &mut released, &mut is_changed) {
            let undone = undo(plan, host, &released, is_changed);
            return Err(Failure { step: step.to_string().into(), problem, undone });
        }
    }
    Ok(())
}

fn take(
    step: &Step,
    host: &Host<'_>,
    released: &mut Vec<Bound>,
    is_changed: &mut bool,
) -> Result<(), String> {
    match step {
        Step::Release { bound, .. } => {
            released.push(bound.clone());
            host.runtime.block_on(release(host.ovs.clone(), bound))
        }
        Step::AwaitOwn { ports } => until(OWN, || {
            let told = (host.ports)()?;
            match told.unserved.iter().find(|(port, _)| ports.contains(port)) {
                None => Ok(()),
                Some((port, reason)) => Err(format!("port {port} is not served: {reason}")),
            }
        }),
        Step::Stop { command } => {
            *is_changed = true;
            shell(command)?;
            until(GONE, || match host.find()?.serves() {
                true => Err("the other agent still runs".into()),
                false => Ok(()),
            })
        }
        Step::Remove(provision) => {
            // It may have been provisioned anew since it was looked for.
            let found = host.find()?.provisions.remove(&provision.network);
            found.map_or(Ok(()), |provision| remove(&provision, host))
        }
        Step::Start { command } => {
            *is_changed = true;
            shell(command)
        }
        Step::AwaitOther { networks } => until(OTHER, || {
            let found = host.find()?;
            if !found.serves() {
                return Err("the other agent does not run".into());
            }
            let is_there = |network: &&String| {
                found
                    .provisions
                    .get(*network)
                    .is_some_and(|provision| provision.listens && provision.bound.is_some())
            };
            match networks.iter().find(|network| !is_there(network)) {
                None => Ok(()),
                Some(network) => Err(format!("it does not serve network {network}")),
            }
        }),
        Step::Leave => (host.leave)(),
    }
}

/// Puts things back, and tells what came of it.
fn undo(plan: &Plan, host: &Host<'_>, released: &[Bound], is_changed: bool) -> String {
    let mut problems = Vec::new();
    for bound in released {
        // What has no device any more is made anew by the other agent when it starts.
        if has_device(&bound.device)
            && !host
                .find()
                .is_ok_and(|found| found.provisions.values().any(|of| of.bound.as_ref() == Some(bound)))
            && let Err(error) = host.runtime.block_on(bind(host.ovs.clone(), bound))
        {
            problems.push(format!("port {} is not back: {error}", bound.device));
        }
    }
    if let Some(command) = plan.undo.as_ref().filter(|_| is_changed)
        && let Err(error) = shell(command)
    {
        problems.push(format!("`{command}` failed: {error}"));
    }
    match (&problems[..], released.is_empty() && !is_changed) {
        ([], true) => "nothing was changed".into(),
        ([], false) => "what had been done is undone".into(),
        (problems, _) => format!("not all of what had been done is undone: {}", problems.join("; ")),
    }
}

/// Port first, so that nothing new comes in; then haproxy, the devices and the namespace.
fn remove(provision: &Provision, host: &Host<'_>) -> Result<(), String> {
    if let Some(bound) = &provision.bound {
        host.runtime.block_on(release(host.ovs.clone(), bound))?;
    }
    for process in &provision.haproxies {
        end(*process)?;
    }
    let (device, namespace) = (provision.device(), provision.namespace());
    host.runtime.block_on(remove_device(&device)).map_err(|error| format!("device {device}: {error}"))?;
    Netns::remove(&namespace).map_err(|error| format!("namespace {namespace}: {error}"))
}

/// What is under way is answered (SIGUSR1); then the process ends, whatever it does.
fn end(haproxy: u32) -> Result<(), String> {
    let process = Pid::from_raw(haproxy.cast_signed());
    for signal in [Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGKILL] {
        match kill(process, signal) {
            Err(nix::errno::Errno::ESRCH) => return Ok(()),
            other => other.map_err(|error| format!("haproxy ({haproxy}): {error}"))?,
        }
        let ended = until(HAPROXY, || match is_haproxy(haproxy) {
            true => Err(format!("haproxy ({haproxy}) does not end")),
            false => Ok(()),
        });
        if ended.is_ok() {
            return Ok(());
        }
    }
    Err(format!("haproxy ({haproxy}) does not end"))
}

/// True if the process is there and no zombie, which has no memory.
fn is_haproxy(process: u32) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
    read("comm").trim_end() == "haproxy" && !read("cmdline").is_empty()
}

fn shell(command: &str) -> Result<(), String> {
    let status: io::Result<_> = Command::new("/bin/sh").args(["-c", command]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{status}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks again until it is so; past the limit the last problem is returned.
fn until(limit: Duration, mut is_so: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        match is_so() {
            Ok(()) => return Ok(()),
            Err(problem) if Instant::now() >= deadline => {
                return Err(format!("{problem}, after {} s", limit.as_secs()));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
