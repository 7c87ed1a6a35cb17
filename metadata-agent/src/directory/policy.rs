//! Request policy of a port: what its requests must bring to be served, and the keys of its session tokens. Plain data, made by
//! the control plane.
use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Request policy of a port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RequestPolicy {
    /// Session tokens, if there are some for this port.
    pub tokens: Option<TokenPolicy>,
    /// Refusal of requests that a proxy passed on.
    pub refuse_forwarded: bool,
    /// Hop limit of all answers; the system's default if none.
    pub hop_limit: Option<u8>,
}

/// Policy for session tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPolicy {
    /// Keys of the port's tokens.
    pub keys: TokenKeys,
    /// Requirement of tokens; without it they are checked where they are sent.
    pub required: bool,
    /// Parts of a path that need a token, or need it if they were required.
    pub required_for: Vec<String>,
    /// Time of the boot clock from which on they need it.
    pub required_from: Duration,
    /// Hop limit of the answer with a token; the system's default if none.
    pub hop_limit: Option<u8>,
}

/// Keys of a port's tokens: made for its assignment, and of no use for another's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKeys {
    /// Seals tokens, and opens them.
    pub current: TokenKey,
    /// Opens those that were sealed before the node's key was replaced.
    pub previous: Option<TokenKey>,
}

/// A key of AES-256.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKey(pub [u8; 32]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a key)")
    }
}
