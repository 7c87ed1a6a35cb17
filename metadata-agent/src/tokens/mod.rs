//! Session tokens (IMDSv2), the control plane's half: which ports have them, and the keys that they are made with.
//!
//! ```text
//! node_key    the node's key, in the run directory     appearance   when a guest was served first
//! ```
#![forbid(unsafe_code)]
mod appearance;
mod node_key;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use metadata_ebpf::map::{Owner, PortKey};
use serde::{Deserialize, Serialize};

use crate::{
    config::{self, TokenMode},
    datapath::Assignment,
    directory::{Identity, RequestPolicy, TokenPolicy},
};

use appearance::Appearances;
use node_key::NodeKeys;

/// Names of the files in the run directory.
pub const FILES: [&str; 2] = [node_key::FILE, appearance::FILE];

/// Token policies of ports, and what they are made from.
#[derive(Debug)]
pub struct Tokens {
    settings: config::Tokens,
    state: Option<State>,
}

/// State in the run directory, if there are tokens.
#[derive(Debug)]
struct State {
    keys: NodeKeys,
    appearances: Appearances,
}

/// First time that a guest was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FirstServed {
    /// At that time of the boot clock.
    At(Duration),
    /// By a former agent that did not note when: its guest has booted long ago.
    Before,
}

impl FirstServed {
    /// Time of the boot clock from which on its guest needs tokens that are required so long after its first appearance.
    fn required_from(self, after: Duration) -> Duration {
        match self {
            Self::At(time) => time.saturating_add(after),
            Self::Before => Duration::ZERO,
        }
    }
}

/// An error in what the run directory keeps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or a file in it.
    #[error("cannot keep what session tokens need in {path}: {error}; remove what is in the way, or set token_mode = off", path = .path.display())]
    Keep {
        /// The folder or file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The kernel does not tell one boot of the host from another.
    #[error("cannot read {path}, by which tokens of another boot are told: {0}", path = node_key::BOOT_ID)]
    Boot(io::Error),
    /// No random bytes, most likely.
    #[error("cannot make a key for session tokens: the cryptographic library fails")]
    Library,
}

impl Error {
    fn keep(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Keep { path: path.into(), error }
    }
}

impl Tokens {
    /// With what a former agent of this boot kept in the run directory, or with a new key. Without tokens nothing is read.
    pub fn open(settings: config::Tokens, run_dir: &Path, now: Duration) -> Result<Self, Error> {
        let state = if settings.are_used() {
            let boot = node_key::boot_id()?;
            let keys = NodeKeys::open(run_dir, &boot, now)?;
            Some(State { keys, appearances: Appearances::open(run_dir, boot)? })
        } else {
            None
        };
        Ok(Self { settings, state })
    }

    /// Policy for a port's requests; none if they need bring nothing.
    pub fn policy(
        &self,
        identity: &Identity,
        assignment: Assignment,
        first_served: FirstServed,
    ) -> Result<Option<RequestPolicy>, Error> {
        let settings = &self.settings;
        let mode = settings.mode_of(&identity.project, &identity.network);
        let tokens = match &self.state {
            Some(state) if mode != TokenMode::Off => Some(TokenPolicy {
                keys: state.keys.for_assignment(identity, assignment)?,
                required: mode == TokenMode::Required,
                required_for: settings.required_for.clone(),
                required_from: first_served.required_from(settings.required_after),
                hop_limit: settings.token_hop_limit,
            }),
            _ => None,
        };
        let policy = RequestPolicy {
            tokens,
            refuse_forwarded: settings.refuse_forwarded,
            hop_limit: settings.answer_hop_limit,
        };
        Ok((policy != RequestPolicy::default()).then_some(policy))
    }

    /// Replaces the node's key if it has served its time; whether policies have to be made anew.
    pub fn renew_key(&mut self, now: Duration) -> Result<bool, Error> {
        self.state.as_mut().map_or(Ok(false), |state| state.keys.renew(now))
    }

    /// First time that a former agent served that owner's guest behind a tap, if it noted one.
    pub fn first_served(&self, key: PortKey, owner: Owner) -> Option<FirstServed> {
        self.state.as_ref()?.appearances.of(key, owner)
    }

    /// Notes when each guest was served first, for a next agent. Nothing is written if nothing changed.
    pub fn note_served(
        &mut self,
        served: impl Iterator<Item = (PortKey, Owner, FirstServed)>,
    ) -> io::Result<()> {
        self.state.as_mut().map_or(Ok(()), |state| state.appearances.replace(served))
    }
}
