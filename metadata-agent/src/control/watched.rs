//! Requests on their way from the guest-facing process to operators who watch.
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    health::DataPlane,
    link::{Seen, Watched},
    watchers::Watchers,
};

/// Messages that wait to be passed on.
const QUEUE: usize = 64;

/// Has the guest-facing process tell of requests while somebody watches, and of none while nobody does.
pub(super) fn follow(watchers: &Watchers, guests: &dyn DataPlane) {
    if !watchers.any() {
        guests.watch(None);
        return;
    }
    let (sink, mut seen) = mpsc::channel::<Seen>(QUEUE);
    guests.watch(Some(sink));
    let watchers = watchers.clone();
    tokio::spawn(async move {
        while let Some(Seen { requests, lost }) = seen.recv().await {
            if lost > 0 {
                watchers.lose(lost);
            }
            for request in &requests {
                watchers.publish(&event(request));
            }
        }
    });
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_millis() as f64 / 1e3)
}

fn event(request: &Watched) -> Value {
    let Watched { port, tap, record } = request;
    json!({
        "kind": "request",
        "time": now(),
        "tap": tap,
        "port": port,
        "source": record.source,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "by": if record.by_nova { "nova" } else { "agent" },
        "bytes": record.bytes,
        "ms": record.us as f64 / 1e3,
        "nova_ms": record.nova_us.map(|us| us as f64 / 1e3),
        "refusal": record.refusal,
        "reason": record.reason,
    })
}
