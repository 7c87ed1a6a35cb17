//! Rate limits: a token bucket and a sliding window, with the time passed in.
use std::time::{Duration, Instant};

use crate::config::{Rate, WindowLimit};

/// A leaky bucket, as the generic cell rate algorithm keeps it: the time at which it will be empty.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    empty: Option<Instant>,
}

impl Bucket {
    /// Time that an event has to wait, if it has to.
    pub(crate) fn wait(&self, limit: Rate, now: Instant) -> Option<Duration> {
        let interval = interval(limit)?;
        let earliest = self.empty?.checked_sub(interval.saturating_mul(limit.burst.saturating_sub(1)))?;
        earliest.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Counts an event.
    pub(crate) fn add(&mut self, limit: Rate, now: Instant) {
        if let Some(interval) = interval(limit) {
            self.empty = Some(self.empty.map_or(now, |empty| empty.max(now)) + interval);
        }
    }
}

fn interval(limit: Rate) -> Option<Duration> {
    Duration::from_secs(1).checked_div(limit.rate)
}

/// Counts in a window that slides, the way haproxy's `http_req_rate` does: this period's events, and the last one's as
/// far as it still reaches into the window.
#[derive(Debug, Default)]
pub(super) struct SlidingWindow {
    began: Option<Instant>,
    current: u32,
    previous: u32,
}

impl SlidingWindow {
    /// Time that an event has to wait, if it has to.
    pub(super) fn wait(&mut self, limit: WindowLimit, now: Instant) -> Option<Duration> {
        let began = self.advance(limit.window, now);
        let passed = now.saturating_duration_since(began);
        let left = limit.window.saturating_sub(passed);
        let reaching = f64::from(self.previous) * left.div_duration_f64(limit.window);
        (f64::from(self.current) + reaching + 1.0 > f64::from(limit.count)).then_some(left)
    }

    /// Counts an event.
    pub(super) fn add(&mut self, limit: WindowLimit, now: Instant) {
        self.advance(limit.window, now);
        self.current += 1;
    }

    fn advance(&mut self, window: Duration, now: Instant) -> Instant {
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        if passed < window {
            return began;
        }
        // A pause of more than a window leaves nothing of what was before.
        let follows = passed < window * 2;
        self.previous = if follows { self.current } else { 0 };
        self.current = 0;
        let began = if follows { began + window } else { now };
        self.began = Some(began);
        began
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of the events offered each millisecond that pass.
    fn passed(from: u64, to: u64, mut take: impl FnMut(Instant) -> bool) -> usize {
        let start = Instant::now();
        (from..to).filter(|millisecond| take(start + Duration::from_millis(*millisecond))).count()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let limit = Rate { rate: 100, burst: 20 };
        let start = Instant::now();
        let mut bucket = Bucket::default();
        let mut take = |millisecond: u64| {
            let now = start + Duration::from_millis(millisecond);
            let free = bucket.wait(limit, now).is_none();
            if free {
                bucket.add(limit, now);
            }
            free
        };
        assert_eq!((0..50).filter(|_| take(0)).count(), 20);
        assert_eq!((1..=1000).filter(|at| take(*at)).count(), 100);
        assert_eq!((0..50).filter(|_| take(10_000)).count(), 20);
        assert_eq!(
            bucket.wait(limit, start + Duration::from_millis(10_000)),
            Some(Duration::from_millis(10))
        );
        assert_eq!(
            passed(0, 1000, |now| Bucket::default().wait(Rate { rate: 0, burst: 1 }, now).is_none()),
            1000
        );
    }

    #[test]
    fn a_window_gives_its_count() {
        let limit = WindowLimit { count: 10, window: Duration::from_secs(10) };
        let start = Instant::now();
        let mut window = SlidingWindow::default();
        let mut taken = Vec::new();
        for second in 0..40 {
            let now = start + Duration::from_secs(second);
            for _ in 0..5 {
                match window.wait(limit, now) {
                    None => {
                        window.add(limit, now);
                        taken.push(second);
                    }
                    Some(wait) => assert!(wait <= limit.window),
                }
            }
        }
        let in_window = |from: u64| taken.iter().filter(|second| (from..from + 10).contains(*second)).count();
        assert_eq!(in_window(0), 10);
        assert!((0..30).all(|from| in_window(from) <= 11), "{taken:?}");
        assert!(taken.len() >= 35, "{taken:?}");
        assert_eq!(window.wait(limit, start + Duration::from_secs(100)), None);
    }
}
