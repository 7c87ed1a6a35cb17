//! Questions to the guest-facing process about ports, and its answers, which are a guest's word until they were checked.
use serde::{Deserialize, Serialize};

use crate::directory::{TallyReport, Totals};

/// Most ports in one question, for which there is room in an answer unless their records are long.
pub const MOST_PORTS: usize = 24;

/// Most tallies in one answer.
pub const MOST_TALLIES: usize = 400;

/// An assignment of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortNumber {
    /// Its index.
    pub index: u32,
    /// Its generation.
    pub generation: u8,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inquiry {
    /// Reports of these ports, [`MOST_PORTS`] of them at most.
    Ports(Vec<PortNumber>),
    /// The same for ports of which a request was refused or a limit was met in the last so many milliseconds, those that
    /// it happened to last first.
    Troubled(u64),
    /// The sums of the ports that have another index than those up to this one, the first [`MOST_TALLIES`] of them.
    Tallies {
        /// The last index that is known.
        after: Option<u32>,
    },
    /// Ask Nova once in the name of that port, as its guest would.
    Probe(PortNumber),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Of those ports that are known, and the number of those for which there was no room.
    Ports {
        /// The ports.
        reports: Vec<PortReport>,
        /// Number of those that are left off.
        left_off: u32,
    },
    /// Of ports by their indexes.
    Tallies(Vec<PortTally>),
    /// Result of the request.
    Probe(ProbeReport),
}

/// Sums of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortTally {
    /// The assignment.
    pub port: PortNumber,
    /// Connections that its tap has open.
    pub connections: u32,
    /// Its requests.
    pub totals: Totals,
}

/// One port, as the guest-facing process has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// The assignment.
    pub port: PortNumber,
    /// Connections that its tap has open.
    pub connections: u32,
    /// Requests of its tap that are with Nova.
    pub requests: u32,
    /// Requests of its tap that wait for an identity.
    pub held: u32,
    /// Its requests.
    pub tally: TallyReport,
}

/// A request that the agent made itself in the name of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Status of Nova's answer.
    pub status: Option<u16>,
    /// Time until the answer began, in microseconds.
    pub us: u64,
    /// Name of what kept Nova from being asked, or from answering.
    pub refusal: Option<String>,
    /// The same in words.
    pub reason: Option<String>,
}
