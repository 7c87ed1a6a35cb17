//! Limits on guests, by Neutron's options and ours.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Error, Rate, SECTION,
    options::{Options, boolean, number, seconds, timeout},
};

/// Neutron's section for what haproxy did.
const HAPROXY: &str = "metadata_haproxy";
const RATE_LIMITING: &str = "metadata_rate_limiting";

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

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            requests: 1024,
            unfinished_bytes: 32 << 20,
            port_connections: 128,
            port_requests: 32,
            port_held: 32,
            rates: RequestLimits { rate: Rate { rate: 100, burst: 200 }, windows: [None, None] },
            limit_status: 503,
            hold: Duration::from_secs(8),
            head: Duration::from_secs(30),
            pause: Duration::from_secs(32),
            idle: Duration::from_secs(30),
            lifetime: Duration::from_secs(600),
            head_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
        }
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
    let default = Limits::default();
    let count = |option, default: u32| {
        options.parse(SECTION, option, default, |text| Ok(number(text, 0, 1_000_000)? as u32))
    };
    let most = |option, default: u32| {
        options.parse(SECTION, option, default, |text| Ok(number(text, 1, 1_000_000)? as u32))
    };
    let bytes =
        |option, default: usize| options.parse(SECTION, option, default, |text| number(text, 1024, 16 << 20));
    let time = |option, default| options.parse(HAPROXY, option, default, timeout);
    let head_bytes = bytes("request_head_bytes", default.head_bytes)?;
    let body_bytes = bytes("request_body_bytes", default.body_bytes)?;
    // One request must fit, or none would ever be complete.
    let least = (head_bytes + body_bytes).max(1 << 20);
    let unfinished_bytes = options.parse(SECTION, "unfinished_bytes", default.unfinished_bytes, |text| {
        Ok(number(text, least, 1 << 30)? as u32)
    })?;
    Ok(Limits {
        connections: most("connections", default.connections)?,
        requests: most("requests", default.requests)?,
        unfinished_bytes,
        port_connections: count("port_connections", default.port_connections)?,
        port_requests: count("port_requests", default.port_requests)?,
        port_held: count("port_held", default.port_held)?,
        rates: RequestLimits {
            rate: options.rate("request_rate", "request_burst", default.rates.rate)?,
            windows: windows(options)?,
        },
        limit_status: options.parse(SECTION, "limit_status", default.limit_status, |text| match text {
            "503" => Ok(503),
            "429" => Ok(429),
            _ => Err("expected 503 or 429".into()),
        })?,
        hold: options.parse(SECTION, "unknown_identity_hold", default.hold, seconds)?,
        head: time("timeout_http_request", default.head)?,
        pause: time("timeout_client", default.pause)?,
        idle: time("timeout_http_keep_alive", default.idle)?,
        lifetime: options.parse(SECTION, "connection_lifetime", default.lifetime, timeout)?,
        head_bytes,
        body_bytes,
    })
}

/// `ip_versions` is read for its errors only: both families count together, always.
fn windows(options: &Options<'_>) -> Result<[Option<WindowLimit>; 2], Error> {
    let enabled = options.parse(RATE_LIMITING, "rate_limit_enabled", false, boolean)?;
    options.parse(RATE_LIMITING, "ip_versions", (), |text| {
        let mut versions = text.trim_matches(['[', ']']).split(',').map(str::trim);
        versions
            .all(|version| matches!(version, "4" | "6"))
            .then_some(())
            .ok_or("expected 4, 6, or both".into())
    })?;
    let window = |window, count| {
        let seconds = options.parse(RATE_LIMITING, window, 10, |text| number(text, 1, 86_400))?;
        let count = options.parse(RATE_LIMITING, count, 10, |text| number(text, 1, 1_000_000))?;
        let limit = WindowLimit { count: count as u32, window: Duration::from_secs(seconds as u64) };
        Ok::<_, Error>(enabled.then_some(limit))
    };
    Ok([
        window("base_window_duration", "base_query_rate_limit")?,
        window("burst_window_duration", "burst_query_rate_limit")?,
    ])
}
