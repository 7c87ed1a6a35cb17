//! Carries out a plan, and undoes what it did when a step fails.
use std::{
    collections::BTreeSet,
    fmt, io,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use super::{
    haproxy,
    incumbent::{Found, Provision, find, has_device},
    interrupt::Interrupts,
    plan::{Plan, Ports, Step, list},
};
use crate::{
    datapath::{NAMESPACES, Netns, remove_device},
    inventory::{Bound, bind, bound_by_others, release},
};

/// Time for this agent to serve what it has been given. Its device has to be made and bound by ovn-controller.
const OWN: Duration = Duration::from_secs(30);
/// Time for the other agent to serve: it makes one network after the other.
const OTHER: Duration = Duration::from_secs(180);
/// Time for the other agent to be gone.
const GONE: Duration = Duration::from_secs(30);
/// Time for this agent to be ready again, and for a port that has just been plugged to be served.
const READY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// The host, as the steps need it.
pub struct Host<'a> {
    /// The local Open vSwitch.
    pub ovs: ovsdb_client::Config,
    /// Asks the running agent for its ports.
    pub ports: &'a dyn Fn() -> Result<Ports, String>,
    /// Has it leave for good.
    pub leave: &'a dyn Fn() -> Result<(), Unfinished>,
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

/// An agent that was to leave for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfinished {
    /// It serves as before, and why.
    Stays(String),
    /// It has been told to end, and will not serve again; what is left over, and how that is removed by hand.
    LeftOver(String),
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
    /// Parts of the other agent that are here now.
    pub fn find(&self) -> Result<Found, String> {
        let bound = self.runtime.block_on(bound_by_others(self.ovs.clone()));
        let bound = bound.map_err(|error| format!("the local Open vSwitch: {error}"))?;
        find(bound).map_err(|error| format!("this host's processes and namespaces: {error}"))
    }
}

/// Does one step after the other. A signal to end is a step that fails.
pub fn carry_out(plan: &Plan, host: &Host<'_>) -> Result<(), Failure> {
    let interrupts = Interrupts::catch(&host.runtime).map_err(|error| Failure {
        step: "have signals wait for the end of a step".into(),
        problem: error.to_string(),
        undone: Done::default().tell(&[], None),
    })?;
    let mut run = Run { host, interrupts, done: Done::default() };
    for (number, step) in plan.steps.iter().enumerate() {
        (host.tell)(format_args!("[{}/{}] {step}", number + 1, plan.steps.len()));
        if let Err(problem) = run.interrupts.check().and_then(|()| run.take(step)) {
            (host.tell)(format_args!("it failed: {problem}"));
            return Err(Failure { step: step.to_string().into(), problem, undone: run.undo(plan) });
        }
    }
    Ok(())
}

/// Changes so far.
#[derive(Debug, Default)]
struct Done {
    /// Ports that were taken out of Open vSwitch.
    released: Vec<Bound>,
    /// True if the other agent was stopped or started, or that was tried.
    is_commanded: bool,
    /// Networks whose things were removed, or begun to be.
    removed: BTreeSet<String>,
    /// True if this agent will not serve again.
    is_left: bool,
}

impl Done {
    /// Outcome of putting it back: problems, and true if the other agent serves again where it was started.
    fn tell(&self, problems: &[String], other: Option<Result<(), String>>) -> String {
        if self.is_left {
            return "nothing is undone: the other agent serves, and this one was told to end for good".into();
        }
        let is_changed = self.is_commanded || !self.released.is_empty() || !self.removed.is_empty();
        let mut told = match problems {
            [] if !is_changed => "nothing was changed".to_owned(),
            [] => "what had been done is undone".to_owned(),
            problems => format!("not all of what had been done is undone: {}", problems.join("; ")),
        };
        if !self.removed.is_empty() {
            told += &format!("; what served network {} was removed, or begun to be", list(&self.removed));
        }
        told += &match other {
            None => String::new(),
            Some(Ok(())) => "; the other agent was seen serving again".into(),
            Some(Err(problem)) => {
                format!("; the other agent was started, and not seen serving again: {problem}")
            }
        };
        told
    }
}

struct Run<'a> {
    host: &'a Host<'a>,
    interrupts: Interrupts<'a>,
    done: Done,
}

impl Run<'_> {
    fn take(&mut self, step: &Step) -> Result<(), String> {
        let host = self.host;
        match step {
            Step::Release { bound, .. } => {
                self.done.released.push(bound.clone());
                host.runtime.block_on(release(host.ovs.clone(), bound))
            }
            Step::AwaitOwn { ports } => self.until(OWN, || {
                let told = (host.ports)()?;
                match told.unserved.iter().find(|(port, _)| ports.contains(port)) {
                    None => Ok(()),
                    Some((port, reason)) => Err(format!("port {port} is not served: {reason}")),
                }
            }),
            Step::Stop { command } => {
                self.done.is_commanded = true;
                shell(command)?;
                self.until(GONE, || match host.find()?.serves() {
                    true => Err("the other agent still runs".into()),
                    false => Ok(()),
                })
            }
            Step::Confirm { networks, unserved } => {
                self.until(READY, || serves_still(&(host.ports)()?, networks, unserved))
            }
            Step::Remove(provision) => {
                // It may have been provisioned anew since it was looked for.
                let Some(provision) = host.find()?.provisions.remove(&provision.network) else {
                    return Ok(());
                };
                self.done.removed.insert(provision.network.clone());
                remove(&provision, host)
            }
            Step::Start { command } => {
                self.done.is_commanded = true;
                shell(command)
            }
            Step::AwaitOther { networks } => self.until(OTHER, || other_serves(&host.find()?, networks)),
            Step::Leave => (host.leave)().map_err(|unfinished| match unfinished {
                Unfinished::Stays(problem) => problem,
                Unfinished::LeftOver(problem) => {
                    self.done.is_left = true;
                    problem
                }
            }),
        }
    }

    /// Puts things back, and tells what came of it.
    fn undo(&self, plan: &Plan) -> String {
        let (host, done) = (self.host, &self.done);
        if done.is_left {
            return done.tell(&[], None);
        }
        let mut problems = Vec::new();
        for bound in &done.released {
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
        let is_stopped = plan.steps.iter().any(|step| matches!(step, Step::Stop { .. }));
        let mut other = None;
        match &plan.undo {
            Some(command) if done.is_commanded => {
                (host.tell)(format_args!("undo: {command}"));
                match shell(command) {
                    Err(error) => problems.push(format!("`{command}` failed: {error}")),
                    Ok(()) if is_stopped => other = Some(self.await_again(plan)),
                    Ok(()) => {}
                }
            }
            _ if !done.removed.is_empty() => problems.push(
                "what was removed is not made again before the other agent starts, which was not stopped here; this agent goes on"
                    .into(),
            ),
            _ => {}
        }
        done.tell(&problems, other)
    }

    /// Waits until the other agent serves what it served before; another signal ends that.
    fn await_again(&self, plan: &Plan) -> Result<(), String> {
        let removals = plan.steps.iter().filter_map(|step| match step {
            Step::Remove(provision) if provision.listens => Some(provision.network.clone()),
            _ => None,
        });
        let step = Step::AwaitOther { networks: removals.collect() };
        (self.host.tell)(format_args!("undo: {step}"));
        let Step::AwaitOther { networks } = &step else { return Ok(()) };
        self.until(OTHER, || other_serves(&self.host.find()?, networks))
    }

    /// Asks again until it is so; past the limit the last problem is returned, and a signal at once.
    fn until(&self, limit: Duration, mut is_so: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            match is_so() {
                Ok(()) => return Ok(()),
                Err(problem) if Instant::now() >= deadline => {
                    return Err(format!("{problem}, after {} s", limit.as_secs()));
                }
                Err(_) => thread::sleep(PAUSE),
            }
            self.interrupts.check()?;
        }
    }
}

/// Fails if this agent does not serve one of the networks, or a port besides those.
fn serves_still(
    told: &Ports,
    networks: &BTreeSet<String>,
    unserved: &BTreeSet<String>,
) -> Result<(), String> {
    if let Some(network) = networks.difference(&told.networks).next() {
        return Err(format!("no port of network {network} is served any more"));
    }
    match told.unserved.iter().find(|(port, _)| !unserved.contains(port)) {
        None => Ok(()),
        Some((port, reason)) => Err(format!("port {port} is not served any more: {reason}")),
    }
}

/// Fails if the other agent does not serve one of the networks.
fn other_serves(found: &Found, networks: &BTreeSet<String>) -> Result<(), String> {
    if !found.serves() {
        return Err("the other agent does not run".into());
    }
    let is_there = |network: &&String| {
        let provision = found.provisions.get(*network);
        provision.is_some_and(|provision| provision.listens && provision.bound.is_some())
    };
    match networks.iter().find(|network| !is_there(network)) {
        None => Ok(()),
        Some(network) => Err(format!("it does not serve network {network}")),
    }
}

/// Port first, so that nothing new comes in; then haproxy, the devices and the namespace.
fn remove(provision: &Provision, host: &Host<'_>) -> Result<(), String> {
    if let Some(bound) = &provision.bound {
        host.runtime.block_on(release(host.ovs.clone(), bound))?;
    }
    let (device, namespace) = (provision.device(), provision.namespace());
    for process in &provision.haproxies {
        haproxy::end(*process, &Path::new(NAMESPACES).join(&namespace))?;
    }
    host.runtime.block_on(remove_device(&device)).map_err(|error| format!("device {device}: {error}"))?;
    Netns::remove(&namespace).map_err(|error| format!("namespace {namespace}: {error}"))
}

fn shell(command: &str) -> Result<(), String> {
    let status: io::Result<_> = Command::new("/bin/sh").args(["-c", command]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{status}")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn carry(steps: Vec<Step>, leave: &dyn Fn() -> Result<(), Unfinished>, undo: &str) -> String {
        let host = Host {
            ovs: ovsdb_client::Config::new("unix:/nonexistent/db.sock".parse().unwrap(), "Open_vSwitch"),
            ports: &|| Ok(Ports { networks: ["red".to_owned()].into(), ..Ports::default() }),
            leave,
            tell: &|_| {},
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        };
        let plan = Plan { steps, undo: Some(undo.to_owned()), ..Plan::default() };
        carry_out(&plan, &host).unwrap_err().to_string()
    }

    #[test]
    fn a_start_is_undone_only_as_long_as_this_agent_stays() {
        let file = std::env::temp_dir().join(format!("undone-{}", std::process::id()));
        let undo = format!("touch {}", file.display());
        let steps = || vec![Step::Start { command: "true".into() }, Step::Leave];
        let said = carry(steps(), &|| Err(Unfinished::LeftOver("a pin stays".into())), &undo);
        assert!(said.contains("a pin stays; nothing is undone: the other agent serves"), "{said}");
        assert!(!file.exists());
        let said = carry(steps(), &|| Err(Unfinished::Stays("it is busy".into())), &undo);
        assert!(said.contains("it is busy; what had been done is undone"), "{said}");
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn what_failed_before_any_change_has_changed_nothing() {
        let is_asked = Cell::new(false);
        let leave = || {
            is_asked.set(true);
            Ok(())
        };
        let networks = ["red", "blue"].map(str::to_owned).into();
        let steps = vec![Step::Confirm { networks, unserved: BTreeSet::new() }, Step::Leave];
        let said = carry(steps, &leave, "exit 3");
        assert!(said.contains("no port of network blue is served any more"), "{said}");
        assert!(said.ends_with("nothing was changed") && !is_asked.get(), "{said}");
    }

    #[test]
    fn this_agent_is_asked_for_ports_that_it_served_to_begin_with() {
        let told = Ports {
            networks: ["red".to_owned()].into(),
            unserved: vec![("p".into(), "its row has gone".into())],
        };
        let red = ["red".to_owned()].into();
        assert_eq!(serves_still(&told, &red, &["p".to_owned()].into()), Ok(()));
        let problem = serves_still(&told, &red, &BTreeSet::new()).unwrap_err();
        assert_eq!(problem, "port p is not served any more: its row has gone");
    }

    #[test]
    fn removals_are_told() {
        let removed = || Done { removed: ["red".to_owned()].into(), ..Done::default() };
        let said = removed().tell(&[], Some(Ok(())));
        assert!(!said.contains("nothing was changed"), "{said}");
        assert!(said.contains("what served network red was removed") && said.contains("seen serving again"));
        let said = removed().tell(&["x".into()], Some(Err("it does not run".into())));
        assert!(
            said.contains("not all") && said.contains("started, and not seen serving again: it does not run")
        );
    }
}
