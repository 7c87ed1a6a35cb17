//! Everything that is counted, in Prometheus' text format.
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::reconcile::Reconciler;

/// Before each name.
const PREFIX: &str = "metadata";

/// The registry, and the numbers of the control plane, which are looked up when somebody asks.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    frames: Family<Frames, Counter>,
    ports: Family<Ports, Gauge>,
    ready: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Frames {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ports {
    identity: &'static str,
}

impl Metrics {
    /// With those of the control plane.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let (frames, ports, ready) = (Family::default(), Family::default(), Gauge::default());
        registry.register("frames", "Frames that the datapath took, by what became of them", frames.clone());
        registry.register("ports", "Ports of this host, by what is known of their identity", ports.clone());
        registry.register("ready", "Whether every input is there and every port is served", ready.clone());
        Self { registry, frames, ports, ready }
    }

    /// Lets another part add its own.
    pub fn register<T>(&mut self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry)
    }

    /// All of it, as it is now.
    pub fn text(&self, reconciler: &Reconciler, ready: bool) -> anyhow::Result<String> {
        for (counter, value) in reconciler.datapath().counters()? {
            // The kernel counts; what is here is a copy.
            let copy = self.frames.get_or_create(&Frames { outcome: counter.name() });
            copy.inner().store(value, std::sync::atomic::Ordering::Relaxed);
        }
        for (identity, count) in reconciler.identities() {
            self.ports.get_or_create(&Ports { identity }).set(count);
        }
        self.ready.set(ready.into());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
