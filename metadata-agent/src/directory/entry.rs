//! Entry of the directory as it travels from the control plane's process to the guest-facing one.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Port, Resolution, SignedIdentity};

/// One port, as it stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Index of the assignment.
    pub index: u32,
    /// Generation of the assignment.
    pub generation: u8,
    /// See [`Port::id`].
    pub port: String,
    /// Name of the tap.
    pub tap: String,
    /// See [`Port::is_probe`].
    pub is_probe: bool,
    /// Identity, as far as it is known.
    pub identity: Known,
}

/// A [`Resolution`] that travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Known {
    /// See [`Resolution::Pending`].
    Pending(String),
    /// See [`Resolution::Known`].
    As(Box<SignedIdentity>),
    /// See [`Resolution::Conflict`].
    Conflict(String),
}

impl Entry {
    /// That of a port with that identity.
    pub fn new(index: u32, port: &Port, resolution: &Resolution) -> Self {
        let identity = match resolution {
            Resolution::Pending(reason) => Known::Pending(reason.to_string()),
            Resolution::Known(who) => Known::As(Box::new(SignedIdentity::clone(who))),
            Resolution::Conflict(reason) => Known::Conflict(reason.to_string()),
        };
        Self {
            index,
            generation: port.generation,
            port: port.id.clone(),
            tap: port.tap.name().to_string(),
            is_probe: port.is_probe,
            identity,
        }
    }
}

impl From<Known> for Resolution {
    fn from(known: Known) -> Self {
        match known {
            Known::Pending(reason) => Self::Pending(reason.into()),
            Known::As(who) => Self::Known(Arc::from(who)),
            Known::Conflict(reason) => Self::Conflict(reason.into()),
        }
    }
}
