//! Messages of a monitor in each dialect: the request's name, the answer, and the notifications of updates.

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::replica::Dialect;

/// An `update`, `update2` or `update3`.
pub(in crate::session) struct Notification<'a> {
    pub(in crate::session) monitor: serde_json::Value,
    pub(in crate::session) dialect: Dialect,
    pub(in crate::session) transaction: Option<Uuid>,
    pub(in crate::session) updates: &'a RawValue,
}

impl<'a> Notification<'a> {
    pub(in crate::session) fn read(method: &str, params: &'a str) -> Result<Self, serde_json::Error> {
        if method == "update3" {
            let (monitor, transaction, updates) = serde_json::from_str(params)?;
            return Ok(Self {
                monitor,
                dialect: Dialect::MonitorCondSince,
                transaction: Some(transaction),
                updates,
            });
        }
        let (monitor, updates) = serde_json::from_str(params)?;
        let dialect = if method == "update" { Dialect::Monitor } else { Dialect::MonitorCond };
        Ok(Self { monitor, dialect, transaction: None, updates })
    }
}

/// The answer to `monitor_cond_since`.
#[derive(Deserialize)]
pub(super) struct Since<'a>(pub(super) bool, pub(super) Uuid, #[serde(borrow)] pub(super) &'a RawValue);

impl Dialect {
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::MonitorCond => "monitor_cond",
            Self::MonitorCondSince => "monitor_cond_since",
        }
    }

    /// The older method, for a server that does not know this one.
    pub(super) fn older(self) -> Option<Self> {
        match self {
            Self::Monitor => None,
            Self::MonitorCond => Some(Self::Monitor),
            Self::MonitorCondSince => Some(Self::MonitorCond),
        }
    }
}
