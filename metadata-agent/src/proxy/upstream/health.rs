//! Circuit breaker of an endpoint, with one for each tap whose requests fail. Pure logic, with the time passed in.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Time for which an endpoint is avoided after its first failure, doubled with each further one.
const BACKOFF: Duration = Duration::from_millis(500);
/// Doubled up to this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Number of taps whose requests must fail, with no answer to anybody in between, before an endpoint is down for all: what
/// one guest asks for may be to blame, and that is for nobody else to suffer.
const SEVERAL: usize = 3;
/// Number of taps that are remembered whose requests failed.
const SUSPECTS: usize = 64;

/// Failures in a row, and until when they count: those to connect for everybody, those of requests for the tap that made them.
#[derive(Debug, Default)]
pub(super) struct Health {
    down: Option<Down>,
    suspects: Vec<Suspect>,
}

#[derive(Debug, Clone, Copy)]
struct Down {
    failures: u32,
    avoided_until: Instant,
    /// Half-open: a request has the endpoint on trial.
    on_trial: bool,
}

/// A tap that avoids the endpoint, or is to blame itself.
#[derive(Debug)]
struct Suspect {
    tap: Arc<str>,
    down: Down,
    /// True if nobody was answered since.
    counts: bool,
}

impl Down {
    /// After one more failure. Those of requests that were under way together count as one.
    fn after(former: Option<Self>, now: Instant) -> Self {
        let failures = match former {
            None => 1,
            Some(down) if down.on_trial || down.avoided_until <= now => down.failures.saturating_add(1),
            Some(down) => down.failures,
        };
        Self { failures, avoided_until: now + backoff(failures), on_trial: false }
    }

    fn is_avoided(&self, now: Instant) -> bool {
        self.avoided_until > now
    }

    fn put_on_trial(&mut self, until: Instant) {
        (self.avoided_until, self.on_trial) = (until, true);
    }

    fn end_trial(&mut self, now: Instant) {
        if self.on_trial {
            self.on_trial = false;
            self.avoided_until = now + backoff(self.failures);
        }
    }
}

impl Health {
    /// For everybody.
    pub(super) fn is_up(&self) -> bool {
        self.down.is_none()
    }

    /// For requests of that tap.
    pub(super) fn is_up_for(&self, tap: &str) -> bool {
        self.is_up() && self.suspects.iter().all(|suspect| *suspect.tap != *tap)
    }

    /// Gives an endpoint that is down, and was avoided long enough, to one request: it is for that one to find out, for
    /// so long, and others stay away until it has.
    pub(super) fn try_again(&mut self, tap: &str, now: Instant, time: Duration) -> bool {
        let suspect = self.suspects.iter_mut().find(|suspect| *suspect.tap == *tap);
        let mut downs: Vec<_> =
            self.down.iter_mut().chain(suspect.map(|suspect| &mut suspect.down)).collect();
        let may_try = !downs.is_empty() && downs.iter().all(|down| !down.is_avoided(now));
        if may_try {
            downs.iter_mut().for_each(|down| down.put_on_trial(now + time));
        }
        may_try
    }

    /// The trial ended and proved nothing: it is avoided as long as after the last failure.
    pub(super) fn undecided(&mut self, now: Instant) {
        let suspects = self.suspects.iter_mut().map(|suspect| &mut suspect.down);
        self.down.iter_mut().chain(suspects).for_each(|down| down.end_trial(now));
    }

    /// A request of that tap was answered. Whether the endpoint was down until now.
    pub(super) fn succeed(&mut self, tap: &str) -> bool {
        self.suspects.retain_mut(|suspect| {
            suspect.counts = false;
            *suspect.tap != *tap
        });
        self.down.take().is_some()
    }

    /// No connection was made. For how long it is to be avoided.
    pub(super) fn fail(&mut self, now: Instant) -> Duration {
        let down = Down::after(self.down, now);
        self.down = Some(down);
        backoff(down.failures)
    }

    /// A request of that tap failed, over a connection that was made. For how long it is to be avoided by all, if it is.
    pub(super) fn fail_request(&mut self, tap: &Arc<str>, now: Instant) -> Option<Duration> {
        let known = self.suspects.iter().position(|suspect| suspect.tap == *tap);
        let former = known.map(|known| self.suspects.remove(known));
        if self.suspects.len() >= SUSPECTS {
            self.suspects.remove(0);
        }
        let is_new = former.is_none();
        let down = Down::after(former.map(|suspect| suspect.down), now);
        // The last that failed at the end.
        self.suspects.push(Suspect { tap: tap.clone(), down, counts: true });
        let several = self.suspects.iter().filter(|suspect| suspect.counts).count() >= SEVERAL;
        match self.down {
            None if several => Some(self.fail(now)),
            None => None,
            Some(_) if is_new && several => Some(self.fail(now)),
            // It proves no more than what it proved before.
            Some(_) => {
                self.undecided(now);
                None
            }
        }
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
    const TAP: &str = "tap0";

    #[test]
    fn failures_are_avoided_longer_and_longer_until_one_succeeds() {
        let mut now = Instant::now();
        let mut health = Health::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = health.fail(now);
            assert_eq!(health.fail(now), wait, "at the same time");
            assert!(!health.try_again(TAP, now + wait - Duration::from_millis(1), TRIAL), "too soon");
            now += wait;
            waits.push(wait.as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert!(health.succeed(TAP));
        assert!(!health.succeed(TAP));
        assert_eq!(health.fail(now), BACKOFF);
    }

    #[test]
    fn one_request_at_a_time_finds_out_whether_it_is_up_again() {
        let mut now = Instant::now();
        let mut health = Health::default();
        assert!(!health.try_again(TAP, now, TRIAL), "what is up needs no trial");
        now += health.fail(now);
        assert!(health.try_again(TAP, now, TRIAL));
        assert!(!health.try_again(TAP, now, TRIAL), "another has it");
        assert!(!health.is_up());

        // It fails at once: that is another failure, though it was avoided.
        assert_eq!(health.fail(now), 2 * BACKOFF);
        now += 2 * BACKOFF;
        assert!(health.try_again(TAP, now, TRIAL));
        // The request went away and never told.
        now += TRIAL;
        assert!(health.try_again(TAP, now, TRIAL));
        assert!(health.succeed(TAP) && health.is_up());
    }

    #[test]
    fn a_trial_that_proves_nothing_is_followed_by_another() {
        let mut now = Instant::now();
        let mut health = Health::default();
        health.undecided(now);
        assert!(health.is_up());
        now += health.fail(now);
        health.undecided(now);
        assert!(health.try_again(TAP, now, TRIAL), "there was none to end");
        health.undecided(now);
        assert!(!health.try_again(TAP, now, TRIAL));
        now += BACKOFF;
        assert!(health.try_again(TAP, now, TRIAL));
    }

    #[test]
    fn one_guest_takes_an_endpoint_down_for_itself_only() {
        let taps: Vec<Arc<str>> = (0..5).map(|number| format!("tap{number}").into()).collect();
        let mut now = Instant::now();
        let mut health = Health::default();
        for _ in 0..100 {
            assert_eq!(health.fail_request(&taps[0], now), None);
            assert!(health.is_up() && !health.is_up_for(&taps[0]) && health.is_up_for(&taps[1]));
            now += LONGEST_BACKOFF;
        }
        assert!(health.try_again(&taps[0], now, TRIAL));
        assert!(!health.try_again(&taps[0], now, TRIAL));
        assert!(!health.try_again(&taps[1], now, TRIAL), "what is up needs no trial");

        // Two of them are no more, as long as somebody else is answered.
        assert_eq!(health.fail_request(&taps[1], now), None);
        assert!(!health.succeed(&taps[4]));
        assert_eq!(health.fail_request(&taps[2], now), None);
        assert_eq!(health.fail_request(&taps[0], now), None);
        assert!(health.is_up());
        assert_eq!(health.fail_request(&taps[3], now), Some(BACKOFF));
        assert!(!health.is_up() && !health.is_up_for(&taps[4]));

        // One that failed before says nothing new, and keeps nobody else from trying.
        now += LONGEST_BACKOFF;
        assert!(health.try_again(&taps[0], now, TRIAL));
        assert_eq!(health.fail_request(&taps[0], now), None);
        now += BACKOFF;
        assert!(!health.try_again(&taps[0], now, TRIAL));
        assert!(health.try_again(&taps[4], now, TRIAL));
        assert_eq!(health.fail_request(&taps[4], now), Some(2 * BACKOFF));
        now += LONGEST_BACKOFF;
        assert!(health.try_again(&taps[4], now, TRIAL));
        assert!(health.succeed(&taps[4]));
        assert!(health.is_up() && health.is_up_for(&taps[4]) && !health.is_up_for(&taps[0]));
    }

    #[test]
    fn so_many_guests_are_remembered() {
        let (mut health, now) = (Health::default(), Instant::now());
        for number in 0..10 * SUSPECTS {
            health.succeed(TAP);
            assert_eq!(health.fail_request(&format!("tap{number}").into(), now), None);
        }
        assert_eq!(health.suspects.len(), SUSPECTS);
    }
}
