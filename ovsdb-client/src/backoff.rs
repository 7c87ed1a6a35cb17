//! Delays between attempts to connect.

use std::time::Duration;

const INITIAL: Duration = Duration::from_secs(1);

/// The delays of Open vSwitch's clients (reconnect.c): 1 s, doubling up to a maximum, and from the start again after a
/// connection that lasted. Each other server is tried once before, without delay; but all clients of a server that is gone
/// lose their connections in the same instant, and come to the others within a second.
#[derive(Debug)]
pub(crate) struct Backoff {
    max: Duration,
    servers: usize,
    failures: usize,
    /// The delay before the present attempt, without jitter.
    delay: Duration,
}

impl Backoff {
    /// `max` is at least the first delay: clients must not hammer at a server, whatever is configured.
    pub(crate) fn new(max: Duration, servers: usize) -> Self {
        Self { max: max.max(INITIAL), servers, failures: 0, delay: Duration::ZERO }
    }

    /// The delay after an attempt that failed, or a connection that was good for `lasted`.
    ///
    /// To have lasted is to have outlasted the delay before. `jitter`, from 0 to 1, takes up to a half off the delay, so
    /// that the clients of a server that restarts do not all come back at once.
    pub(crate) fn after(&mut self, lasted: Duration, jitter: f64) -> Duration {
        let jitter = jitter.clamp(0.0, 1.0);
        let has_lasted = lasted >= self.delay.max(INITIAL);
        if has_lasted {
            (self.failures, self.delay) = (0, Duration::ZERO);
        }
        self.failures += 1;
        self.delay = if self.failures < self.servers {
            Duration::ZERO
        } else {
            (self.delay * 2).clamp(INITIAL, self.max)
        };
        if has_lasted && self.delay.is_zero() {
            return INITIAL.mul_f64(jitter);
        }
        self.delay.mul_f64(1.0 - jitter / 2.0)
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
        let lasted = [0, 0, 1, 4, 0, 0, 0, 8].map(Duration::from_secs);
        assert_eq!(delays(&mut one, &lasted), [1, 2, 4, 1, 2, 4, 8, 1]);
        // Less than the first delay is not lasting, although there was none before.
        let mut one = Backoff::new(Duration::from_secs(8), 1);
        assert_eq!(delays(&mut one, &[Duration::from_millis(999); 3]), [1, 2, 4]);
    }

    #[test]
    fn other_servers_are_tried_at_once_and_the_same_one_is_not() {
        let lasted = [0, 0, 0, 9, 0, 0, 0].map(Duration::from_secs);
        let mut three = Backoff::new(Duration::from_secs(8), 3);
        assert_eq!(delays(&mut three, &lasted), [0, 0, 1, 0, 0, 1, 2]);
        let mut one = Backoff::new(Duration::from_secs(8), 1);
        assert_eq!(delays(&mut one, &[Duration::from_secs(9); 3]), [1; 3]);
    }

    #[test]
    fn nothing_makes_a_client_hammer_at_a_server() {
        for max in [0, 1, 999] {
            let mut one = Backoff::new(Duration::from_millis(max), 1);
            assert_eq!(delays(&mut one, &[FAILED; 4]), [1; 4]);
        }
        let mut one = Backoff::new(Duration::ZERO, 1);
        assert_eq!(delays(&mut one, &[Duration::from_millis(500); 4]), [1; 4]);
    }

    #[test]
    fn jitter_shortens_delays_and_spreads_those_who_lost_a_server() {
        let delay = Backoff::new(Duration::from_secs(8), 1).after(FAILED, 1.0);
        assert_eq!(delay, Duration::from_millis(500));
        let mut three = Backoff::new(Duration::from_secs(8), 3);
        assert_eq!(three.after(FAILED, 0.5), Duration::ZERO, "a server that was never good has no crowd");
        assert_eq!(three.after(Duration::from_secs(9), 0.5), Duration::from_millis(500));
        assert_eq!(three.after(FAILED, 0.5), Duration::ZERO);
    }
}
