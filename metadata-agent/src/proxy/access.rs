//! Access log: one line for each request, and the numbers.
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http1::Request;
use tracing::info;

use super::{answer::Refusal, forward, metrics::Metrics, outcome::Outcome, token, turn};
use crate::directory::{Identity, LONGEST_REASON, OpenConnection, Port, Record, Resolution};

/// The guest behind a connection, decided once, when it is accepted.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) port: Arc<Port>,
    /// The address the guest used.
    pub(super) source: Option<IpAddr>,
    /// True if it came over IPv4.
    pub(super) is_v4: bool,
    /// Held for the datapath to keep the way back to this source.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) open: Option<OpenConnection>,
}

/// Entry of the access log for one request, written when its handling ends, however it ends: also when its future is dropped,
/// with the port or the agent gone.
#[derive(Debug)]
pub(super) struct AccessEntry<'a> {
    metrics: &'a Metrics,
    caller: &'a Caller,
    /// Missing if what came was none.
    request: Option<&'a Request<'a>>,
    started: Instant,
    pub(super) outcome: Outcome,
}

impl<'a> AccessEntry<'a> {
    pub(super) fn begin(metrics: &'a Metrics, caller: &'a Caller, request: Option<&'a Request<'a>>) -> Self {
        // Who it is, if that can be said at once.
        let who = match caller.port.resolution() {
            Resolution::Known(who) => Some(who),
            _ => None,
        };
        Self {
            metrics,
            caller,
            request,
            started: turn::now(),
            outcome: Outcome { who, ..Outcome::default() },
        }
    }
}

impl Drop for AccessEntry<'_> {
    /// Never headers, query strings, odd paths or bodies: they hold secrets.
    fn drop(&mut self) {
        let Self { metrics, caller, request, started, outcome } = self;
        let now = turn::read();
        let total = now.saturating_duration_since(*started);
        metrics.request(outcome, total);
        let (method, path) = (
            request.map(|request| method(request.method)),
            request.map(|request| forward::path_class(&request.target)),
        );
        let reason = outcome.reason();
        let record = Record {
            source: caller.source,
            method: method.map(Into::into),
            path: path.map(Into::into),
            status: outcome.status,
            by_nova: !outcome.is_ours(),
            bytes: outcome.bytes,
            us: microseconds(total),
            nova_us: outcome.nova.map(microseconds),
            refusal: outcome.refusal.as_ref().map(|refusal| refusal.name().into()),
            reason: reason.as_deref().map(|reason| reason.chars().take(LONGEST_REASON).collect()),
        };
        let limit = outcome.refusal.as_ref().and_then(Refusal::limit);
        metrics.watch.note(&caller.port, &record);
        caller.port.tally.note(record, limit, now);
        let identity = outcome.who.as_deref().map(|who| &who.identity);
        let of = |field: fn(&Identity) -> &String| identity.map(|identity| field(identity).as_str());
        info!(
            target: "access",
            tap = %caller.port.tap,
            port = caller.port.id,
            network = of(|identity| &identity.network),
            instance = of(|identity| &identity.instance),
            project = of(|identity| &identity.project),
            source = caller.source.map(tracing::field::display),
            method,
            path,
            status = outcome.status,
            bytes = outcome.bytes,
            ms = milliseconds(total),
            nova_ms = outcome.nova.map(milliseconds),
            token = outcome.token.map(token::Outcome::name),
            reason,
            "request"
        );
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// A guest can make up methods as it can make up paths.
fn method(method: &[u8]) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    KNOWN.into_iter().find(|known| known.as_bytes() == method).unwrap_or("other")
}
