//! Metrics of the data plane, in Prometheus' terms.
use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry},
};

use super::{
    outcome::{Completion, Outcome},
    upstream::Observer,
    watch::Watch,
};
use crate::directory::Limit;

/// Handles on the numbers; copies share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Requests as they end, for who watches.
    pub watch: Arc<Watch>,
    requests: Family<Answered, Counter>,
    unfinished: Family<Unfinished, Counter>,
    refusals: Family<Refused, Counter>,
    limits: Family<Limited, Counter>,
    gave_way: Family<Limited, Counter>,
    tokens: Family<ByToken, Counter>,
    bytes: Counter,
    total: Family<Answerer, Histogram>,
    nova: Histogram,
    pub(super) connections: Gauge,
    pub(super) accepted: Counter,
    pub(super) panics: Counter,
    nova_up: Family<NovaEndpoint, Gauge>,
    nova_connections: Family<NovaEndpoint, Counter>,
    nova_failures: Family<NovaEndpoint, Counter>,
}

/// A registry, and the names of what is registered. Text does not have them all: a family without a member is left out.
struct Named<'a> {
    registry: &'a mut Registry,
    names: Vec<&'static str>,
}

impl Named<'_> {
    fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.names.push(name);
        self.registry.register(name, help, metric);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    by: By,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answerer {
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "they are values of labels")]
enum By {
    nova,
    agent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unfinished {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limited {
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByToken {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NovaEndpoint {
    endpoint: String,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        Self::register_named(registry).0
    }

    fn register_named(registry: &mut Registry) -> (Self, Vec<&'static str>) {
        let mut registry = Named { registry, names: Vec::new() };
        // 50 µs to 100 s: from a local answer to the longest wait.
        fn seconds() -> Histogram {
            Histogram::new(exponential_buckets(50e-6, 2.5, 16))
        }
        let metrics = Self {
            watch: Arc::default(),
            requests: Family::default(),
            unfinished: Family::default(),
            refusals: Family::default(),
            limits: Family::default(),
            gave_way: Family::default(),
            tokens: Family::default(),
            bytes: Counter::default(),
            total: Family::new_with_constructor(seconds),
            nova: seconds(),
            connections: Gauge::default(),
            accepted: Counter::default(),
            panics: Counter::default(),
            nova_up: Family::default(),
            nova_connections: Family::default(),
            nova_failures: Family::default(),
        };
        let Self {
            requests,
            unfinished,
            refusals,
            limits,
            gave_way,
            tokens,
            bytes,
            total,
            nova,
            connections,
            accepted,
            ..
        } = metrics.clone();
        registry.register("requests", "Requests answered, by whom and with what status", requests);
        registry.register(
            "requests_unfinished",
            "Requests whose answer did not reach the guest, or not to its end",
            unfinished,
        );
        registry.register("refusals", "Requests answered by the agent itself, by reason", refusals);
        registry.register("limits_hit", "Connections and requests beyond a limit", limits);
        registry.register("gave_way", "Connections that gave way to others, by limit", gave_way);
        registry.register(
            "tokens",
            "Requests where there are session tokens, by what became of them",
            tokens,
        );
        registry.register("response_bytes", "Bytes of response bodies sent to guests", bytes);
        registry.register(
            "request_seconds",
            "Time from a request's head to its last byte of response, by who answered",
            total,
        );
        registry.register("nova_seconds", "Time until nova's answer began", nova);
        registry.register("connections", "Connections of guests", connections);
        registry.register("connections_accepted", "Connections accepted from guests", accepted);
        let panics = metrics.panics.clone();
        registry.register("panics", "Conversations that ended by an error in the agent itself", panics);
        let Self { nova_up, nova_connections, nova_failures, .. } = metrics.clone();
        registry.register("nova_up", "Whether an endpoint of nova is taken for healthy", nova_up);
        registry.register("nova_connections", "Connections made to an endpoint of nova", nova_connections);
        registry.register(
            "nova_failures",
            "Connections to and requests of an endpoint that failed",
            nova_failures,
        );
        (metrics, registry.names)
    }

    /// The names of all, without the registry's prefix.
    pub fn names() -> Vec<&'static str> {
        Self::register_named(&mut Registry::default()).1
    }

    pub(super) fn request(&self, outcome: &Outcome, total: Duration) {
        if let Some(status) = outcome.status {
            let by = if outcome.is_ours() { By::agent } else { By::nova };
            self.requests.get_or_create(&Answered { by, status }).inc();
            self.total.get_or_create(&Answerer { by }).observe(total.as_secs_f64());
        }
        let unfinished = match outcome.end {
            Completion::CutOff => Some("cut_off"),
            Completion::Left(_) => Some("guest_left"),
            Completion::BrokenOff => Some("nova_broke_off"),
            Completion::Complete => None,
        };
        if let Some(reason) = unfinished {
            self.unfinished.get_or_create(&Unfinished { reason }).inc();
        }
        if let Some(token) = outcome.token {
            self.tokens.get_or_create(&ByToken { outcome: token.name() }).inc();
        }
        self.bytes.inc_by(outcome.bytes);
        // How long one that did not answer was waited for is no time of an answer.
        if let Some(nova) = outcome.nova.filter(|_| !outcome.is_ours()) {
            self.nova.observe(nova.as_secs_f64());
        }
        if let Some(refusal) = &outcome.refusal {
            self.refusals.get_or_create(&Refused { reason: refusal.name() }).inc();
            if let Some(limit) = refusal.limit() {
                self.limit(limit);
            }
        }
    }

    pub(super) fn gave_way(&self, limit: Limit) {
        self.gave_way.get_or_create(&Limited { limit: limit.name() }).inc();
    }

    pub(super) fn limit(&self, limit: Limit) {
        self.limits.get_or_create(&Limited { limit: limit.name() }).inc();
    }
}

impl Observer for Metrics {
    fn up(&self, endpoint: &str, up: bool) {
        self.nova_up.get_or_create(&NovaEndpoint { endpoint: endpoint.to_owned() }).set(up.into());
    }

    fn connected(&self, endpoint: &str) {
        self.nova_connections.get_or_create(&NovaEndpoint { endpoint: endpoint.to_owned() }).inc();
    }

    fn failed(&self, endpoint: &str) {
        self.nova_failures.get_or_create(&NovaEndpoint { endpoint: endpoint.to_owned() }).inc();
    }
}
