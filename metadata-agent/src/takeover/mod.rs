//! Takeover of a node by another agent without a gap: the listening sockets, the lock and the datapath pass from the running
//! agent to its successor, over a socket in the run directory.
//!
//! | successor | running agent |
//! | --- | --- |
//! | `Hello` with its versions | |
//! | | `Offer` with the lock and the listening sockets, or `Refusal` |
//! | `Freeze` when all that can be wrong was found good | |
//! | | `Frozen`: nothing but the guests' connections goes on |
//! | `Commit` when it could load the programs and knows the interfaces | |
//! | | `Yours`: from now on the datapath is the successor's |
//! | `Serving` when it accepts connections | |
//! | the channel ends with the running agent | takes no more connections, and ends when those it has are done |
//!
//! Until `Commit` a successor that goes away, or hangs, leaves the running agent to go on as before. Each message is one
//! packet of JSON; fields that one side does not know are left alone.
#![forbid(unsafe_code)]
mod neighbours;
mod running;
pub mod store;
mod successor;

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use neighbours::check_alone;
pub use running::{Offering, Step, Takeovers};
pub use successor::Predecessor;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "takeover.sock";

/// Version of the messages. Another one has other messages; what may be left out needs no other one.
const PROTOCOL: u32 = 1;

/// Message between the two agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Message {
    Hello { protocol: u32, version: String },
    Offer { version: String, netns: String },
    Refusal { reason: String },
    Freeze,
    Frozen,
    Commit,
    Yours,
    Serving,
}

/// Reason for which there was no takeover. The running agent goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An agent runs and cannot be reached.
    #[error(
        "another agent runs, and no takeover is possible at {path} ({error}): stop it first",
        path = .path.display()
    )]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// It has another run directory.
    #[error(
        "another agent runs in this network namespace, with the run directory {run_dir}, and has the service device: stop that \
         one first, or run this one in a network namespace of its own, with its own [metadata_ebpf] netns",
        run_dir = .run_dir.display()
    )]
    Elsewhere {
        /// Its run directory.
        run_dir: PathBuf,
    },
    /// It does not want to.
    #[error("the running agent refuses to be replaced: {0}")]
    Refused(String),
    /// It serves elsewhere.
    #[error(
        "the running agent's service namespace is {theirs}, and this one is to have {ours}: stop the running agent first, or \
         run `metadata-agent cleanup`"
    )]
    OtherNamespace {
        /// The name of its namespace.
        theirs: String,
        /// The configured one.
        ours: String,
    },
    /// The conversation broke off.
    #[error("the running agent did not hand over ({0}); it goes on as before, if it is still there")]
    Broken(#[from] io::Error),
    /// It said something else than what comes next.
    #[error("the running agent speaks another protocol: stop it first")]
    Protocol,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_later_version_are_left_alone() {
        let text = br#"{"Hello":{"protocol":1,"version":"9.9.9","later":[1]}}"#;
        let message: Message = serde_json::from_slice(text).unwrap();
        assert_eq!(message, Message::Hello { protocol: 1, version: "9.9.9".into() });
    }
}
