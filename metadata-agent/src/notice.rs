//! Warnings about what can happen with each request: one a minute, which says how often it did.
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_secs(60);

/// A rate-limited message: counts the events that were not told yet.
#[derive(Debug, Default)]
pub(crate) struct Notice(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    times: u64,
}

impl Notice {
    /// Counts it; how many times it is to be told of now, if it is.
    pub(crate) fn times(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.times += 1;
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < INTERVAL) {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_then_how_many_in_a_minute() {
        let notice = Notice::default();
        let start = Instant::now();
        let told: Vec<_> =
            (0..130).filter_map(|second| notice.times(start + Duration::from_secs(second))).collect();
        assert_eq!(told, [1, 60, 60]);
        assert_eq!(notice.times(start + Duration::from_secs(1000)), Some(10));
    }
}
