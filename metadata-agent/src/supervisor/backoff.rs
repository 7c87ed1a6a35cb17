//! Exponential back-off of starting processes that end. Pure logic, with the time passed in.
use std::time::Duration;

/// A process that lived at least that long was a good one.
pub(super) const GOOD: Duration = Duration::from_secs(10);
/// First and longest delay; doubled with each that was not.
const DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Delays before the next start.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    in_a_row: u32,
}

impl Backoff {
    /// Delay after a process that has lived so long. The first that ends is replaced at once.
    pub(super) fn after(&mut self, lived: Duration) -> Duration {
        self.in_a_row = if lived >= GOOD { 1 } else { self.in_a_row.saturating_add(1) };
        match self.in_a_row {
            1 => Duration::ZERO,
            number => (DELAY.0 * 2_u32.saturating_pow(number - 2)).min(DELAY.1),
        }
    }

    /// Processes that ended, each soon after its start but for the first.
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_ends_is_replaced_at_once_and_a_loop_is_slowed_down() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..12).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000, 10_000]);
        assert_eq!((backoff.after(GOOD), backoff.in_a_row()), (Duration::ZERO, 1));
    }
}
