//! Explanation of why a guest gets its answers or does not: what was seen at each stage of its way, and the first stage that
//! fails, with its remedy. Pure.
//!
//! ```text
//! facts    what was seen, of the node and of a port     stages   what it means, stage by stage
//! node     the stages that all ports have in common     words    what the stages have in common
//! ```
#![forbid(unsafe_code)]
mod facts;
mod node;
mod stages;
mod words;

use std::time::Duration;

use serde_json::{Value, json};

pub use facts::{BindingSeen, DatabaseSeen, Evidence, InterfaceSeen, NodeFacts, PortFacts, ServedSeen, Word};
pub use stages::explain;
pub use words::RECENT_MS;

/// A stage of the way from a guest to Nova, in the order in which it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The agent itself, and the way from taps to its workers.
    Agent,
    /// The guest's device.
    Device,
    /// The row of the local Open vSwitch.
    OpenVSwitch,
    /// The row of the Southbound.
    Southbound,
    /// Instance and project.
    Identity,
    /// The program on the device.
    Program,
    /// Frames, by outcome.
    Frames,
    /// Addresses that the guest asks from.
    Sources,
    /// Connections, requests and limits.
    Limits,
    /// The last requests.
    Requests,
    /// Nova.
    Nova,
}

impl Stage {
    /// All, in their order.
    pub const ALL: [Self; 11] = [
        Self::Agent,
        Self::Device,
        Self::OpenVSwitch,
        Self::Southbound,
        Self::Identity,
        Self::Program,
        Self::Frames,
        Self::Sources,
        Self::Limits,
        Self::Requests,
        Self::Nova,
    ];

    /// Name as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Device => "device",
            Self::OpenVSwitch => "openvswitch",
            Self::Southbound => "southbound",
            Self::Identity => "identity",
            Self::Program => "program",
            Self::Frames => "frames",
            Self::Sources => "sources",
            Self::Limits => "limits",
            Self::Requests => "requests",
            Self::Nova => "nova",
        }
    }

    /// Exit status of `explain` where this is the first stage that fails.
    pub fn status(self) -> u8 {
        10 + self as u8
    }
}

/// State of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Good,
    /// Worth to be known; guests may be served all the same.
    Note,
    /// Guests get no answer, or a wrong one.
    Failed,
    /// Nothing can be said, mostly since an earlier stage fails.
    Unknown,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// Finding at one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The stage.
    pub stage: Stage,
    /// Its state.
    pub state: State,
    /// Observation, in words.
    pub seen: String,
    /// Age of the observation; nothing if it was asked for just now.
    pub age: Option<Duration>,
    /// Remedy, in one sentence.
    pub remedy: Option<String>,
}

/// The explanation of one port, or of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Subject of the explanation, in words.
    pub subject: String,
    /// Neutron's port, if it is one.
    pub port: Option<String>,
    /// The findings, in the order of the stages.
    pub findings: Vec<Finding>,
}

impl Explanation {
    /// The first stage that fails.
    pub fn failure(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.state == State::Failed)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let failure = self.failure();
        let findings: Vec<Value> = self.findings.iter().map(Finding::to_json).collect();
        json!({
            "subject": self.subject,
            "port": self.port,
            "failed": failure.map(|failure| failure.stage.name()),
            "status": failure.map_or(0, |failure| failure.stage.status()),
            "stages": findings,
        })
    }
}

impl Finding {
    fn to_json(&self) -> Value {
        json!({
            "stage": self.stage.name(),
            "state": self.state.name(),
            "seen": self.seen,
            "age_ms": self.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            "remedy": self.remedy,
        })
    }
}
