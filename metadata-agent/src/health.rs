//! Readiness: the troubles of a node that make it not ready, for operators and for Neutron alike; one rule, in one place.
//!
//! Trouble of one port is said for that port, and the node stays ready: nobody else is better off with an agent that is
//! taken for dead. What concerns every guest makes the node not ready, and most guests count as all: the databases, the
//! way from a tap to a worker, Nova, and programs that most taps lack.
#![forbid(unsafe_code)]
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    datapath::Family,
    link::{Inquiry, Seen, Told},
    nova::Dialler,
};

/// Timeout of a check that Nova is there.
const REACH: Duration = Duration::from_secs(5);
/// Intervals between checks of Nova where no request does it, while it is there and while it is not. A connection is all it
/// costs.
const NOVA_EVERY: Duration = Duration::from_secs(15);
const NOVA_AGAIN: Duration = Duration::from_secs(2);
/// Failures in a row, after each of which the path was repaired, that make it a broken one.
const BROKEN: u32 = 2;

/// Something that is missing, and concerns all guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Subject of the problem, which lasts, while its text may be another one with each attempt.
    pub subject: &'static str,
    /// Message to the operator.
    pub text: String,
}

impl Problem {
    /// Of that, in these words.
    pub fn of(subject: &'static str, text: String) -> Self {
        Self { subject, text }
    }

    /// All that is said.
    pub fn texts(problems: &[Self], separator: &str) -> String {
        problems.iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join(separator)
    }
}

/// Result of a reconciliation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Taps that nothing is wrong with and whose turn has not come: to be called again as soon as events have had theirs.
    pub waiting: usize,
    /// Ports that could not be served: to be called again soon.
    pub failed: usize,
    /// Ports that should be served.
    pub ports: usize,
}

/// The node's troubles.
#[derive(Debug, Default)]
pub struct Health {
    programs: Option<String>,
    /// Failures in a row, and the last of them, over IPv4 and IPv6.
    paths: [(u32, String); 2],
    datapath: Option<String>,
    /// Reason for which the way to the service cannot be repaired, while it needs that.
    unrepaired: Option<String>,
    /// Reason for which nobody asks for the service.
    unwatched: Option<String>,
}

impl Health {
    /// Notes what came of applying.
    pub fn applied(&mut self, applied: Applied) {
        let Applied { waiting, failed, ports } = applied;
        self.programs = if waiting > 0 {
            Some(format!("{waiting} of {ports} ports wait for their taps to get the program"))
        } else if failed * 2 > ports {
            Some(format!("{failed} of {ports} ports cannot be served: `show ports` and the log say why"))
        } else {
            None
        };
    }

    /// Notes what came of one connection from inside; tells whether it was the first that failed.
    pub fn probed(&mut self, family: Family, result: Result<(), String>) -> bool {
        let path = &mut self.paths[usize::from(family == Family::V6)];
        *path = match result {
            Ok(()) => {
                self.unrepaired = None;
                (0, String::new())
            }
            Err(problem) => (path.0.saturating_add(1), problem),
        };
        path.0 == 1
    }

    /// Notes why the path could not be repaired, if so; returns that if it is news.
    pub fn repaired(&mut self, problem: Option<String>) -> Option<&str> {
        note(&mut self.unrepaired, problem)
    }

    /// Notes why the agent has no guest of its own, if so; returns that if it is news. That keeps no other guest from being
    /// served, and what the former one has found lasts no longer than it did.
    pub fn watched(&mut self, problem: Option<String>) -> Option<&str> {
        self.paths = Default::default();
        note(&mut self.unwatched, problem)
    }

    /// A warning for operators, though the node is ready.
    pub fn note(&self) -> Option<String> {
        self.unwatched
            .as_ref()
            .map(|problem| format!("whether guests reach the service is not watched: {problem}"))
    }

    /// Notes why programs, pins and device cannot be looked after, if so; returns that if it is news.
    pub fn looked_after(&mut self, problem: Option<String>) -> Option<&str> {
        note(&mut self.datapath, problem)
    }

    /// Problems that make the node not ready.
    pub fn problems(&self) -> Vec<Problem> {
        let broken = self.paths.iter().filter(|(failures, _)| *failures >= BROKEN);
        let paths = broken.map(|(_, problem)| {
            let text = format!(
                "guests do not reach the service, nor does the agent itself: {problem}; the log says what was tried"
            );
            Problem::of("path", text)
        });
        let lasting =
            [("programs", &self.programs), ("datapath", &self.datapath), ("repair", &self.unrepaired)];
        let lasting =
            lasting.into_iter().filter_map(|(subject, text)| Some(Problem::of(subject, text.clone()?)));
        lasting.chain(paths).collect()
    }
}

/// Puts the new state in place of the former; returns it if it is a problem that was not there.
fn note(state: &mut Option<String>, problem: Option<String>) -> Option<&str> {
    let is_news = problem != *state;
    *state = problem;
    state.as_deref().filter(|_| is_news)
}

/// The data plane as the control plane asks it, without knowing it.
pub trait DataPlane: fmt::Debug + Send + Sync {
    /// Warnings for operators, though nothing is missing.
    fn notes(&self) -> Vec<String>;

    /// A trouble of it that concerns all guests.
    fn problem(&self) -> Option<Problem>;

    /// Processes of it that ended and were replaced.
    fn restarts(&self) -> u64;

    /// Its numbers as they are now, in Prometheus' text format without the end.
    fn numbers(&self) -> BoxFuture<'_, String>;

    /// Asks it about ports; nothing if it does not answer in time.
    fn inquire(&self, inquiry: Inquiry, within: Duration) -> BoxFuture<'_, Option<Told>>;

    /// Has it tell of each request as it ends, or of none any more.
    fn watch(&self, sink: Option<mpsc::Sender<Seen>>);

    /// Has it log by that filter, which is a good one.
    fn set_log(&self, filter: &str);
}

/// Health check of Nova: the result of the last one, and when it was made.
#[derive(Debug)]
pub struct Reachability {
    nova: Arc<Dialler>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
struct State {
    asked: Instant,
    problem: Option<String>,
}

impl Reachability {
    /// Nothing is known yet, which is no problem.
    pub fn new(nova: Arc<Dialler>) -> Self {
        Self { nova, state: watch::Sender::new(State { asked: Instant::now(), problem: None }) }
    }

    /// Makes a connection to any endpoint.
    pub async fn check(&self) -> Result<(), String> {
        self.state.send_modify(|state| state.asked = Instant::now());
        let reached = timeout(REACH, self.nova.reach()).await;
        let reached = reached.unwrap_or_else(|_| Err("nova does not answer in time".to_owned()));
        self.state.send_modify(|state| state.problem = reached.clone().err());
        reached
    }

    /// True if it is time to check again.
    pub fn is_due(&self, now: Instant) -> bool {
        let state = self.state.borrow();
        match state.problem {
            Some(_) => now.saturating_duration_since(state.asked) >= NOVA_AGAIN,
            None => {
                let reached =
                    self.nova.last_connected().map_or(state.asked, |reached| reached.max(state.asked));
                now.saturating_duration_since(reached) >= NOVA_EVERY
            }
        }
    }

    /// Problem that Nova cannot be reached, if so.
    pub fn problem(&self) -> Option<Problem> {
        self.state.borrow().problem.clone().map(|problem| Problem::of("Nova", problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trouble_of_one_is_not_that_of_all() {
        let mut health = Health::default();
        let mut after = |waiting, failed, ports| {
            health.applied(Applied { waiting, failed, ports });
            health.problems().len()
        };
        assert_eq!([after(0, 0, 0), after(0, 1, 2), after(0, 2, 3), after(0, 1, 1)], [0, 0, 1, 1]);
        assert_eq!(after(1, 0, 200), 1);
    }

    #[test]
    fn a_path_is_broken_when_repairing_it_did_not_help() {
        let mut health = Health::default();
        let failed = || Err("no answer".to_owned());
        assert!(health.probed(Family::V4, failed()) && health.problems().is_empty());
        assert!(!health.probed(Family::V6, Ok(())), "the other family says nothing of this one");
        assert!(!health.probed(Family::V4, failed()));
        assert!(health.problems()[0].text.contains("no answer"));
        assert!(!health.probed(Family::V4, Ok(())) && health.problems().is_empty());
        assert!(health.probed(Family::V4, failed()));
    }

    #[test]
    fn what_lasts_is_news_once() {
        let mut health = Health::default();
        let mut news = |problem: Option<&str>| health.looked_after(problem.map(str::to_owned)).is_some();
        assert_eq!(
            [news(None), news(Some("a")), news(Some("a")), news(Some("b"))],
            [false, true, false, true]
        );
        assert_eq!([news(None), news(Some("b"))], [false, true]);
        assert_eq!(health.problems(), [Problem::of("datapath", "b".to_owned())]);
    }
}
