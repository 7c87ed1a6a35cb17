//! What is told of each request: one line in the log, and the numbers.
use std::{net::IpAddr, sync::Arc, time::Duration};

use tracing::info;

use super::{
    connection::Outcome,
    directory::{Identity, Port},
    forward,
    server::Proxy,
    wire::Request,
};

/// Who a connection belongs to, decided once, when it is accepted.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) port: Arc<Port>,
    /// The address the guest used.
    pub(super) source: Option<IpAddr>,
    /// Whether it came over IPv4.
    pub(super) is_v4: bool,
}

/// Never headers, query strings, odd paths or bodies: they hold secrets. `request` is missing if it was none.
pub(super) fn record(
    proxy: &Proxy,
    caller: &Caller,
    request: Option<&Request<'_>>,
    outcome: &Outcome,
    total: Duration,
) {
    proxy.metrics.request(outcome, total);
    let identity = outcome.who.as_deref().map(|who| &who.identity);
    let of = |field: fn(&Identity) -> &String| identity.map(|identity| field(identity).as_str());
    info!(
        target: "access",
        tap = %caller.port.tap,
        port = of(|identity| &identity.port),
        network = of(|identity| &identity.network),
        instance = of(|identity| &identity.instance),
        project = of(|identity| &identity.project),
        source = caller.source.map(tracing::field::display),
        method = request.map(|request| method(request.method)),
        path = request.map(|request| forward::path_class(request.target)),
        status = outcome.status,
        bytes = outcome.bytes,
        ms = milliseconds(total),
        nova_ms = outcome.nova.map(milliseconds),
        reason = outcome.refusal.as_ref().and_then(|refusal| refusal.reason()),
        "request"
    );
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// A guest can make up methods as it can make up paths.
fn method(method: &[u8]) -> &str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    KNOWN.into_iter().find(|known| known.as_bytes() == method).unwrap_or("other")
}
