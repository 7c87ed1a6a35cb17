//! What guests may take, by Neutron's options and ours.
use std::time::Duration;

use super::{
    Error, SECTION,
    options::{Options, boolean, number, seconds, timeout},
};
use crate::proxy::{Limits, RequestLimits, WindowLimit};

/// Neutron's section for what haproxy did.
const HAPROXY: &str = "metadata_haproxy";
const RATE_LIMITING: &str = "metadata_rate_limiting";

/// The bounds of the guest-facing half.
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
