//! Requests as they end, for an operator who watches. Nothing is kept while nobody does, and who is slow loses some: no request
//! waits for that.
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use crate::{
    directory::{Port, Record},
    link::{MOST_SEEN, Seen, Watched},
};

/// Requests that wait to be told of.
const MOST: usize = 8 * MOST_SEEN;

/// The requests that were not told of yet.
#[derive(Debug, Default)]
pub struct Watch {
    is_on: AtomicBool,
    waiting: Mutex<Seen>,
    news: Notify,
}

impl Watch {
    /// Begins, or ends.
    pub fn set(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
        if !on {
            *self.waiting() = Seen::default();
        }
    }

    /// Notes a request that has ended.
    pub(super) fn note(&self, port: &Port, record: &Record) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut waiting = self.waiting();
        if waiting.requests.len() < MOST {
            let (port, tap) = (port.id.clone(), port.tap.to_string());
            waiting.requests.push(Watched { port, tap, record: record.clone() });
        } else {
            waiting.lost += 1;
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// Waits until there is something to tell, and takes as much as goes into one message. May be cancelled.
    pub async fn take(&self) -> Seen {
        loop {
            let news = self.news.notified();
            let seen = {
                let mut waiting = self.waiting();
                let count = waiting.requests.len().min(MOST_SEEN);
                let requests = waiting.requests.drain(..count).collect();
                Seen { requests, lost: std::mem::take(&mut waiting.lost) }
            };
            if !seen.requests.is_empty() || seen.lost > 0 {
                return seen;
            }
            news.await;
        }
    }

    /// Counts what could not be told.
    pub fn lose(&self, seen: &Seen) {
        self.waiting().lost += seen.requests.len() as u64 + seen.lost;
    }

    fn waiting(&self) -> MutexGuard<'_, Seen> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
