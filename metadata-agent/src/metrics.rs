//! Everything that is counted, in Prometheus' text format.
#![forbid(unsafe_code)]
mod databases;

use databases::Databases;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::{inventory::DatabaseStatus, reconcile::Reconciler, version};

/// Before each name.
pub const PREFIX: &str = "metadata";

/// The registry, and the numbers of the control plane, which are looked up when somebody asks.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    frames: Family<Frames, Counter>,
    ports: Family<IdentityLabel, Gauge>,
    unserved: Gauge,
    ready: Gauge,
    restarts: Counter,
    databases: Databases,
}

/// State of the whole node, as the control plane knows it.
#[derive(Debug, Clone)]
pub struct Overview {
    /// True if nothing is missing that concerns all guests.
    pub ready: bool,
    /// Ports that are plugged and not served.
    pub unserved: usize,
    /// Guest-facing processes that ended and were replaced.
    pub restarts: u64,
    /// The databases that the ports come from.
    pub databases: Vec<DatabaseStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Frames {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabel {
    identity: &'static str,
}

impl Metrics {
    /// With those of the control plane.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let (frames, ports) = (Family::default(), Family::default());
        let (unserved, ready) = (Gauge::default(), Gauge::default());
        let build = Info::new([("version", version::RELEASE), ("commit", version::COMMIT)]);
        registry.register("build", "Version of the agent, and the commit that it was built from", build);
        registry.register("frames", "Frames that the datapath took, by what became of them", frames.clone());
        registry.register(
            "ports",
            "IdentityLabel of this host, by what is known of their identity",
            ports.clone(),
        );
        registry.register("ports_unserved", "Ports that are plugged here and not served", unserved.clone());
        registry.register("ready", "Whether nothing is missing that concerns all guests", ready.clone());
        let restarts = Counter::default();
        registry.register(
            "guest_process_restarts",
            "Guest-facing processes that ended and were replaced",
            restarts.clone(),
        );
        let databases = Databases::register(&mut registry);
        Self { registry, frames, ports, unserved, ready, restarts, databases }
    }

    /// All of it, as it is now.
    pub fn text(&self, reconciler: &Reconciler, overview: Overview) -> anyhow::Result<String> {
        for (counter, value) in reconciler.datapath().counters()? {
            // The kernel counts; what is here is a copy.
            let copy = self.frames.get_or_create(&Frames { outcome: counter.name() });
            copy.inner().store(value, std::sync::atomic::Ordering::Relaxed);
        }
        for (identity, count) in reconciler.identities() {
            self.ports.get_or_create(&IdentityLabel { identity }).set(count);
        }
        self.unserved.set(i64::try_from(overview.unserved)?);
        self.ready.set(overview.ready.into());
        self.restarts.inner().store(overview.restarts, std::sync::atomic::Ordering::Relaxed);
        for database in overview.databases {
            self.databases.set(database);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A name with the prefix that all have.
    pub fn name(name: &str) -> String {
        format!("{PREFIX}_{name}")
    }

    /// That text, with the numbers of the guest-facing process, which have no end.
    pub fn join(text: &str, others: &str) -> String {
        const END: &str = "# EOF\n";
        format!("{}{others}{END}", text.strip_suffix(END).unwrap_or(text))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_told() {
        let mut text = String::new();
        encode(&mut text, &Metrics::new().registry).unwrap();
        let labels = format!("version=\"{}\",commit=\"{}\"", version::RELEASE, version::COMMIT);
        assert!(text.contains(&format!("\nmetadata_build_info{{{labels}}} 1\n")), "{text}");
    }
}
