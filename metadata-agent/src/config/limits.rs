//! Limits on guests, by Neutron's options and ours.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Error, Rate,
    options::Options,
    setting::{Number, Setting},
    table,
};

/// Limits on guests: on each tap for itself, and on all of them together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Limits {
    /// Connections of all guests together.
    pub connections: u32,
    /// Requests of all guests together that are complete, and with Nova.
    pub requests: u32,
    /// Bytes of all guests together: of requests that are not complete, and of answers that are not acknowledged, in the
    /// kernel too.
    pub unfinished_bytes: u32,
    /// Connections of one tap; 0 for no limit.
    pub port_connections: u32,
    /// Requests of one tap that are with Nova; 0 for no limit.
    pub port_requests: u32,
    /// Requests of one tap that wait for their identity; 0 for no limit.
    pub port_held: u32,
    /// Requests of one tap in time.
    pub rates: RequestLimits,
    /// Answered to a request beyond a limit: 503, or 429 for those who want it.
    pub limit_status: u16,
    /// Time for which a request waits for its guest to become known.
    pub hold: Duration,
    /// Timeout of a request's head.
    pub head: Duration,
    /// Timeout of a pause within a request's body, or while the guest takes the response.
    pub pause: Duration,
    /// Keep-alive timeout: a connection's wait for a next request.
    pub idle: Duration,
    /// Maximum age of a connection.
    pub lifetime: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Bytes of a request's body; Nova takes 1020 for the password, the only body there is.
    pub body_bytes: usize,
}

#[cfg(test)]
impl Default for Limits {
    fn default() -> Self {
        limits(&Options::new(&super::Ini::default())).unwrap()
    }
}

/// Rate limits on the requests of a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLimits {
    /// Ours.
    pub rate: Rate,
    /// Neutron's base and burst windows, where `[metadata_rate_limiting]` is on.
    pub windows: [Option<WindowLimit>; 2],
}

/// So many events in each window of that length: how Neutron's options say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowLimit {
    /// Events.
    pub count: u32,
    /// In that time.
    pub window: Duration,
}

/// As the options have them.
pub(super) fn limits(options: &Options<'_>) -> Result<Limits, Error> {
    let head_bytes = options.get(&table::HEAD_BYTES)?;
    let body_bytes = options.get(&table::BODY_BYTES)?;
    let unfinished_bytes = options.get(&table::UNFINISHED_BYTES)?;
    // One request must fit, or none would ever be complete.
    let least = head_bytes + body_bytes;
    if (unfinished_bytes as usize) < least {
        let problem =
            format!("expected a whole number from {least} on, which is one request's head and body");
        return Err(options.unusable(&table::UNFINISHED_BYTES, problem));
    }
    Ok(Limits {
        connections: options.get(&table::CONNECTIONS)?,
        requests: options.get(&table::REQUESTS)?,
        unfinished_bytes,
        port_connections: options.get(&table::PORT_CONNECTIONS)?,
        port_requests: options.get(&table::PORT_REQUESTS)?,
        port_held: options.get(&table::PORT_HELD)?,
        rates: RequestLimits {
            rate: options.rate(&table::REQUEST_RATE, &table::REQUEST_BURST)?,
            windows: windows(options)?,
        },
        limit_status: options.get(&table::LIMIT_STATUS)?,
        hold: options.get(&table::HOLD)?,
        head: options.get(&table::REQUEST_TIMEOUT)?,
        pause: options.get(&table::CLIENT_TIMEOUT)?,
        idle: options.get(&table::IDLE_TIMEOUT)?,
        lifetime: options.get(&table::LIFETIME)?,
        head_bytes,
        body_bytes,
    })
}

fn windows(options: &Options<'_>) -> Result<[Option<WindowLimit>; 2], Error> {
    let enabled = options.get(&table::RATE_LIMIT)?;
    // For its errors only.
    options.get(&table::IP_VERSIONS)?;
    let window = |window: &Setting<Number<u32>>, count: &Setting<Number<u32>>| {
        let window = Duration::from_secs(options.get(window)?.into());
        let limit = WindowLimit { count: options.get(count)?, window };
        Ok::<_, Error>(enabled.then_some(limit))
    };
    Ok([window(&table::BASE_WINDOW, &table::BASE_COUNT)?, window(&table::BURST_WINDOW, &table::BURST_COUNT)?])
}
