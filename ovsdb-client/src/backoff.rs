//! How long to wait before the next attempt to connect.

use std::time::Duration;

const INITIAL: Duration = Duration::from_secs(1);

/// The delays of Open vSwitch's clients: each server once without delay, then 1 s doubling up to a maximum, and from the
/// start again after a connection that lasted.
#[derive(Debug)]
pub(crate) struct Backoff {
    max: Duration,
    servers: usize,
    failures: usize,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(max: Duration, servers: usize) -> Self {
        Self { max, servers, failures: 0, next: INITIAL.min(max) }
    }

    /// The delay after an attempt that failed, or a connection that was good for `lasted`.
    ///
    /// `jitter`, from 0 to 1, takes up to a quarter off it, so that the clients of a server that restarts do not all
    /// come back at once.
    pub(crate) fn after(&mut self, lasted: Duration, jitter: f64) -> Duration {
        if lasted >= self.max {
            *self = Self::new(self.max, self.servers);
        }
        self.failures += 1;
        if self.failures < self.servers || (self.failures == 1 && lasted >= self.max) {
            return Duration::ZERO;
        }
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        delay.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Duration = Duration::ZERO;

    fn delays(backoff: &mut Backoff, lasted: &[Duration]) -> Vec<u64> {
        lasted.iter().map(|lasted| backoff.after(*lasted, 0.0).as_secs()).collect()
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut one = Backoff::new(Duration::from_secs(8), 1);
        assert_eq!(delays(&mut one, &[FAILED; 6]), [1, 2, 4, 8, 8, 8]);
        let mut three = Backoff::new(Duration::from_secs(8), 3);
        assert_eq!(delays(&mut three, &[FAILED; 6]), [0, 0, 1, 2, 4, 8]);
    }

    #[test]
    fn a_stable_connection_starts_anew() {
        let mut one = Backoff::new(Duration::from_secs(8), 1);
        let lasted = [FAILED, FAILED, Duration::from_secs(7), Duration::from_secs(8), FAILED];
        assert_eq!(delays(&mut one, &lasted), [1, 2, 4, 0, 1]);
    }

    #[test]
    fn jitter_only_shortens() {
        let delay = Backoff::new(Duration::from_secs(8), 1).after(FAILED, 1.0);
        assert_eq!(delay, Duration::from_millis(750));
    }
}
