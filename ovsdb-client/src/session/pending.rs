//! Requests that the server has not answered.

use crate::replica::Dialect;

/// A request, by what its answer is for.
#[derive(Debug)]
pub(super) enum Pending {
    Probe,
    ChangeAware,
    Server,
    LogEnd,
    Schema,
    Monitor(Dialect),
    Fill,
    StartOver,
    ConditionChange,
    Cancel,
    Turn,
    Lock(String),
    Unlock,
    User(String),
}

impl Pending {
    /// True if the answer brings a new connection forward.
    pub(super) fn is_step(&self) -> bool {
        matches!(
            self,
            Self::Server | Self::LogEnd | Self::Schema | Self::Monitor(_) | Self::Fill | Self::StartOver
        )
    }
}
