//! Events of the agents' connections, counted from what agents and their OVSDB client log.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer, Registry,
    filter::Targets,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use super::DATABASE;

/// The name of the threads of whose events are counted.
pub const AGENTS: &str = "agents";

/// So often, since the beginning.
#[derive(Debug, Default)]
pub struct Events {
    complete: AtomicUsize,
    resumed: AtomicUsize,
    /// Connections that were lost, and attempts that failed, by the reason.
    failed: Mutex<BTreeMap<String, usize>>,
}

/// The same at some moment.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Connections that began with all rows.
    pub complete: usize,
    /// Connections that began with the changes since the one before.
    pub resumed: usize,
    pub failed: BTreeMap<String, usize>,
}

impl Events {
    /// Counts in all of this process, from the first time on that this is called.
    pub fn subscribe() -> Arc<Self> {
        static EVENTS: OnceLock<Arc<Events>> = OnceLock::new();
        EVENTS.get_or_init(Self::begin).clone()
    }

    fn begin() -> Arc<Self> {
        let events = Arc::new(Self::default());
        let targets = Targets::new()
            .with_target("ovsdb_client::session", Level::DEBUG)
            .with_target("ovsdb_client::connection", Level::DEBUG);
        // Somebody else may listen in the same process, and then nothing is counted.
        if let Err(error) = Registry::default().with(Counting(events.clone()).with_filter(targets)).try_init()
        {
            eprintln!("warning: events are not counted: {error}");
        }
        events
    }

    pub fn counts(&self) -> Counts {
        let failed = self.failed.lock().map(|failed| failed.clone()).unwrap_or_default();
        Counts { complete: self.complete.load(Relaxed), resumed: self.resumed.load(Relaxed), failed }
    }
}

impl Counts {
    /// Events since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let failed = self.failed.iter().filter_map(|(reason, count)| {
            let count = count - before.failed.get(reason).unwrap_or(&0);
            (count > 0).then(|| (reason.clone(), count))
        });
        Self {
            complete: self.complete - before.complete,
            resumed: self.resumed - before.resumed,
            failed: failed.collect(),
        }
    }
}

#[derive(Debug)]
struct Counting(Arc<Events>);

impl<S: Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        if thread::current().name() != Some(AGENTS) {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.database != DATABASE {
            return;
        }
        match (fields.complete, fields.reason) {
            (Some(true), _) => drop(self.0.complete.fetch_add(1, Relaxed)),
            (Some(false), _) => drop(self.0.resumed.fetch_add(1, Relaxed)),
            (None, Some(reason)) => {
                if let Ok(mut failed) = self.0.failed.lock() {
                    *failed.entry(reason).or_default() += 1;
                }
            }
            (None, None) => {}
        }
    }
}

#[derive(Debug, Default)]
struct Fields {
    database: String,
    complete: Option<bool>,
    reason: Option<String>,
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "complete" {
            self.complete = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "database" {
            value.clone_into(&mut self.database);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "database" => self.database = format!("{value:?}"),
            // How far a server is behind is another number each time.
            "reason" => {
                let reason = format!("{value:?}");
                self.reason =
                    Some(reason.split(|c: char| c.is_ascii_digit()).next().unwrap_or(&reason).to_owned());
            }
            _ => {}
        }
    }
}
