//! What failures and answers say about an endpoint. Pure logic, with the time passed in.
use std::time::{Duration, Instant};

/// For how long an endpoint is avoided after its first failure, and doubled with each further one.
const BACKOFF: Duration = Duration::from_millis(500);
/// Doubled up to this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Failures in a row, and until when they count.
#[derive(Debug, Default)]
pub(super) struct Health {
    down: Option<Down>,
}

#[derive(Debug)]
struct Down {
    failures: u32,
    avoided_until: Instant,
    /// Whether a request has it on trial.
    on_trial: bool,
}

impl Health {
    pub(super) fn is_up(&self) -> bool {
        self.down.is_none()
    }

    /// Gives an endpoint that is down, and was avoided long enough, to one request: it is for that one to find out, for
    /// so long, and others stay away until it has.
    pub(super) fn try_again(&mut self, now: Instant, time: Duration) -> bool {
        match &mut self.down {
            Some(down) if down.avoided_until <= now => {
                down.avoided_until = now + time;
                down.on_trial = true;
                true
            }
            _ => false,
        }
    }

    /// The trial ended and proved nothing: it is avoided as long as after the last failure.
    pub(super) fn undecided(&mut self, now: Instant) {
        if let Some(down) = self.down.as_mut().filter(|down| down.on_trial) {
            down.on_trial = false;
            down.avoided_until = now + backoff(down.failures);
        }
    }

    /// Whether it was down until now.
    pub(super) fn succeed(&mut self) -> bool {
        self.down.take().is_some()
    }

    /// For how long it is to be avoided. Requests that were under way together count as one failure.
    pub(super) fn fail(&mut self, now: Instant) -> Duration {
        let failures = match &self.down {
            None => 1,
            Some(down) if down.on_trial || down.avoided_until <= now => down.failures.saturating_add(1),
            Some(down) => down.failures,
        };
        let backoff = backoff(failures);
        self.down = Some(Down { failures, avoided_until: now + backoff, on_trial: false });
        backoff
    }
}

/// After so many failures, of which there was one at least.
fn backoff(failures: u32) -> Duration {
    BACKOFF.saturating_mul(1 << (failures.min(16) - 1)).min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAL: Duration = Duration::from_secs(5);

    #[test]
    fn failures_are_avoided_longer_and_longer_until_one_succeeds() {
        let mut now = Instant::now();
        let mut health = Health::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = health.fail(now);
            assert_eq!(health.fail(now), wait, "at the same time");
            assert!(!health.try_again(now + wait - Duration::from_millis(1), TRIAL), "too soon");
            now += wait;
            waits.push(wait.as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert!(health.succeed());
        assert!(!health.succeed());
        assert_eq!(health.fail(now), BACKOFF);
    }

    #[test]
    fn one_request_at_a_time_finds_out_whether_it_is_up_again() {
        let mut now = Instant::now();
        let mut health = Health::default();
        assert!(!health.try_again(now, TRIAL), "what is up needs no trial");
        now += health.fail(now);
        assert!(health.try_again(now, TRIAL));
        assert!(!health.try_again(now, TRIAL), "another has it");
        assert!(!health.is_up());

        // It fails at once: that is another failure, though it was avoided.
        assert_eq!(health.fail(now), 2 * BACKOFF);
        now += 2 * BACKOFF;
        assert!(health.try_again(now, TRIAL));
        // The request went away and never told.
        now += TRIAL;
        assert!(health.try_again(now, TRIAL));
        assert!(health.succeed() && health.is_up());
    }

    #[test]
    fn a_trial_that_proves_nothing_is_followed_by_another() {
        let mut now = Instant::now();
        let mut health = Health::default();
        health.undecided(now);
        assert!(health.is_up());
        now += health.fail(now);
        health.undecided(now);
        assert!(health.try_again(now, TRIAL), "there was none to end");
        health.undecided(now);
        assert!(!health.try_again(now, TRIAL));
        now += BACKOFF;
        assert!(health.try_again(now, TRIAL));
    }
}
