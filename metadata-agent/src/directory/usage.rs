//! Accounting: how much of each resource is held, and the limits that it can meet.
use std::sync::atomic::{AtomicU32, Ordering};

/// A limited resource: for a tap, for all of them together, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Connections,
    /// Places with Nova.
    Requests,
    /// Requests that wait for their identity.
    Held,
    /// Bytes of requests that are not complete, and of answers that are not acknowledged.
    Bytes,
}

impl Resource {
    /// Number of resources.
    pub(crate) const COUNT: usize = 4;
    pub(crate) const ALL: [Self; Self::COUNT] = [Self::Connections, Self::Requests, Self::Held, Self::Bytes];
}

/// One holder's amount of each resource.
pub(crate) type Holds = [u32; Resource::COUNT];

/// Total held of each resource.
#[derive(Debug, Default)]
pub(crate) struct Amounts([AtomicU32; Resource::COUNT]);

impl Amounts {
    pub(crate) fn of(&self, resource: Resource) -> u32 {
        self.0[resource as usize].load(Ordering::Relaxed)
    }

    /// Adds, and returns the new total.
    pub(crate) fn add(&self, resource: Resource, amount: u32) -> u32 {
        self.0[resource as usize].fetch_add(amount, Ordering::Relaxed).saturating_add(amount)
    }

    pub(crate) fn subtract(&self, resource: Resource, amount: u32) {
        self.0[resource as usize].fetch_sub(amount, Ordering::Relaxed);
    }
}

/// The limits that a guest can meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    Connections,
    Requests,
    UnfinishedBytes,
    PortConnections,
    PortRequests,
    PortHeld,
    RequestRate,
}

impl Limit {
    /// The option that sets it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::UnfinishedBytes => "unfinished_bytes",
            Self::PortConnections => "port_connections",
            Self::PortRequests => "port_requests",
            Self::PortHeld => "port_held",
            Self::RequestRate => "request_rate",
        }
    }
}
