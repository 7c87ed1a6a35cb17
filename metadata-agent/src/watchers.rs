//! Operators who watch requests and dropped frames as they happen. Each has a queue of lines that is bounded: who is slow loses
//! some, is told how many, and holds up nobody.
#![forbid(unsafe_code)]
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// Most that watch at a time.
const MOST: usize = 8;
/// Lines that wait for one of them.
const QUEUE: usize = 512;

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Watchers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    all: Mutex<Vec<Watcher>>,
    /// Ports that they watch together: nothing without anybody.
    watched: watch::Sender<Watched>,
}

/// Everything that somebody watches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Watched {
    /// Nobody watches.
    #[default]
    Nothing,
    /// All that there is, to somebody at least.
    Everything,
    /// These taps and ports, by the words for them, and nothing else.
    Of(BTreeSet<String>),
}

#[derive(Debug)]
struct Watcher {
    /// Tap or port that is watched; everything without.
    of: Option<String>,
    lines: mpsc::Sender<Bytes>,
    lost: u64,
}

impl Watchers {
    /// One more, who watches a tap, a port, or everything; nothing if there are too many.
    pub fn subscribe(&self, of: Option<String>) -> Option<mpsc::Receiver<Bytes>> {
        let mut all = self.all();
        all.retain(|watcher| !watcher.lines.is_closed());
        if all.len() == MOST {
            return None;
        }
        let (lines, receiver) = mpsc::channel(QUEUE);
        all.push(Watcher { of, lines, lost: 0 });
        self.note(&all);
        Some(receiver)
    }

    /// Forgets those that have gone.
    pub fn prune(&self) {
        let mut all = self.all();
        all.retain(|watcher| !watcher.lines.is_closed());
        self.note(&all);
    }

    fn note(&self, all: &[Watcher]) {
        let words: Option<BTreeSet<String>> = all.iter().map(|watcher| watcher.of.clone()).collect();
        let watched = match words {
            Some(words) if words.is_empty() => Watched::Nothing,
            Some(words) => Watched::Of(words),
            None => Watched::Everything,
        };
        self.0.watched.send_if_modified(|was| {
            let is_news = *was != watched;
            *was = watched;
            is_news
        });
    }

    /// Tells of what is watched, each time that changes.
    pub fn news(&self) -> watch::Receiver<Watched> {
        self.0.watched.subscribe()
    }

    /// Ports that are watched now.
    pub fn watched(&self) -> Watched {
        self.0.watched.borrow().clone()
    }

    /// True if there are some.
    pub fn any(&self) -> bool {
        *self.0.watched.borrow() != Watched::Nothing
    }

    /// True if somebody watches that port, by its id, or that tap.
    pub fn is_watched(&self, port: Option<&str>, tap: &str) -> bool {
        let is_of = |of: &str| Some(of) == port || of == tap;
        self.all().iter().any(|watcher| watcher.of.as_deref().is_none_or(is_of))
    }

    /// Tells those of an event who watch its `port` or its `tap`.
    pub fn publish(&self, event: &Value) {
        let line = line(event);
        let is_of = |of: &str| event["port"] == of || event["tap"] == of;
        for watcher in self.all().iter_mut().filter(|watcher| watcher.of.as_deref().is_none_or(is_of)) {
            watcher.tell(line.clone());
        }
    }

    /// Tells all that so many events were lost before they could be told to anybody.
    pub fn lose(&self, events: u64) {
        for watcher in self.all().iter_mut() {
            // A guest's word.
            watcher.lost = watcher.lost.saturating_add(events);
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    fn tell(&mut self, event: Bytes) {
        // What was lost is told first, in a place that is kept for it.
        if self.lost > 0 && self.lines.capacity() >= 2 {
            let lost = line(&json!({ "kind": "lost", "events": self.lost }));
            if self.lines.try_send(lost).is_ok() {
                self.lost = 0;
            }
        }
        if self.lost > 0 || self.lines.try_send(event).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }
}

fn line(event: &Value) -> Bytes {
    format!("{event}\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &mut mpsc::Receiver<Bytes>) -> Vec<Value> {
        std::iter::from_fn(|| lines.try_recv().ok())
            .map(|line| serde_json::from_slice(&line).unwrap())
            .collect()
    }

    #[test]
    fn who_is_slow_is_told_how_much_was_lost() {
        let watchers = Watchers::default();
        assert!(!watchers.any());
        let mut lines = watchers.subscribe(None).unwrap();
        let mut of_port = watchers.subscribe(Some("p7".to_owned())).unwrap();
        assert!(watchers.any());
        for number in 0..QUEUE + 100 {
            watchers.publish(&json!({ "port": format!("p{number}"), "tap": "t" }));
        }
        assert_eq!(read(&mut of_port), [json!({ "port": "p7", "tap": "t" })]);
        assert_eq!(read(&mut lines).len(), QUEUE);
        watchers.publish(&json!({ "port": "p", "tap": "t" }));
        let told = read(&mut lines);
        assert_eq!(told, [json!({ "kind": "lost", "events": 100 }), json!({ "port": "p", "tap": "t" })]);
        drop((lines, of_port));
        watchers.prune();
        assert!(!watchers.any());
    }

    #[test]
    fn there_is_an_end_of_watchers() {
        let watchers = Watchers::default();
        let all: Vec<_> = (0..MOST).map(|_| watchers.subscribe(None).unwrap()).collect();
        assert!(watchers.subscribe(None).is_none());
        drop(all);
        assert!(watchers.subscribe(None).is_some());
    }
}
