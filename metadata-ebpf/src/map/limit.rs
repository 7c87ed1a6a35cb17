//! Rate limits, which the programs and the agent hold alike.

/// A rate with a burst, as the generic cell rate algorithm takes it (ITU-T I.371, annex A): its state is one time stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FrameLimit {
    /// Nanoseconds between two events at the allowed rate; 0 for no limit.
    pub interval: u64,
    /// Nanoseconds by which events may run ahead of that rate.
    pub tolerance: u64,
}

impl FrameLimit {
    /// `rate` events a second, and `burst` at once; no limit for a rate of 0.
    pub const fn new(rate: u32, burst: u32) -> Self {
        let interval = match 1_000_000_000_u64.checked_div(rate as u64) {
            Some(interval) => interval,
            None => 0,
        };
        Self { interval, tolerance: interval * burst.saturating_sub(1) as u64 }
    }

    /// The state after one more event at `now`, or `None` if that is one too many. Times are in nanoseconds.
    #[inline(always)]
    pub const fn after(self, state: u64, now: u64) -> Option<u64> {
        let ahead = state.saturating_sub(now);
        if ahead > self.tolerance { None } else { Some(now + ahead + self.interval) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_lets_the_burst_and_then_the_rate_through() {
        let limit = FrameLimit::new(100, 5);
        let mut state = 0;
        let mut passed = |now| match limit.after(state, now) {
            Some(next) => {
                state = next;
                true
            }
            None => false,
        };
        let start = 1_000_000_000;
        assert_eq!((0..10).filter(|_| passed(start)).count(), 5);
        assert_eq!((0..1000).filter(|ms| passed(start + ms * 1_000_000)).count(), 99);
        assert!(
            FrameLimit::new(0, 0).after(u64::MAX / 2, 1).is_none() && FrameLimit::new(0, 0).interval == 0
        );
    }
}
