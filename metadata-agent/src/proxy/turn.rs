//! Clock of a turn: from when a conversation is woken until it waits again, all that it decides is as of one time.
//!
//! A turn takes some microseconds, in which a request would read the clock a dozen times, for as much as it costs to parse
//! its head.
use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::time::{error::Elapsed, timeout_at};

thread_local! {
    static CLOCK: Cell<Clock> = const { Cell::new(Clock::Outside) };
}

#[derive(Debug, Clone, Copy)]
enum Clock {
    /// There is no turn.
    Outside,
    /// The clock was not read yet in this turn.
    Unread,
    /// Time of this turn.
    At(Instant),
}

/// The time of this turn; outside of turns the time.
pub(super) fn now() -> Instant {
    match CLOCK.get() {
        Clock::At(time) => time,
        Clock::Unread => read(),
        Clock::Outside => Instant::now(),
    }
}

/// The time, which is that of the rest of this turn too.
pub(super) fn read() -> Instant {
    let now = Instant::now();
    if !matches!(CLOCK.get(), Clock::Outside) {
        CLOCK.set(Clock::At(now));
    }
    now
}

/// The output of a future, which is run in turns. It may not panic.
pub(super) async fn in_turns<F: Future>(mut future: Pin<&mut F>) -> F::Output {
    poll_fn(|context| {
        CLOCK.set(Clock::Unread);
        let polled = future.as_mut().poll(context);
        CLOCK.set(Clock::Outside);
        polled
    })
    .await
}

/// Waits for so long at most, from the time of this turn on. No alarm is set for what is ready at once.
///
/// The awaited future stays where it is pinned: one that takes another by value has room for it twice, and moves it.
pub(super) async fn within<F: Future>(
    limit: Duration,
    mut awaited: Pin<&mut F>,
) -> Result<F::Output, Elapsed> {
    match poll_fn(|context| Poll::Ready(awaited.as_mut().poll(context))).await {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => timeout_at((now() + limit).into(), awaited).await,
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, thread};

    use tokio::time::sleep;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(2);

    #[tokio::test]
    async fn the_time_goes_on_between_turns_and_when_it_is_read() {
        let (before, outside) = (now(), thread::sleep(MOMENT));
        assert!(now() > before, "{outside:?}");
        let turns = pin!(async {
            let first = now();
            thread::sleep(MOMENT);
            assert_eq!(now(), first);
            sleep(MOMENT).await;
            let second = now();
            assert!(second >= first + 2 * MOMENT);
            thread::sleep(MOMENT);
            assert!(read() > second && now() > second);
        });
        in_turns(turns).await;
        assert!(matches!(CLOCK.get(), Clock::Outside));
    }

    #[tokio::test]
    async fn what_is_ready_is_not_late() {
        assert_eq!(within(Duration::ZERO, pin!(async { 1 })).await.ok(), Some(1));
        assert!(within(Duration::ZERO, pin!(sleep(10 * MOMENT))).await.is_err());
        assert!(within(Duration::from_secs(60), pin!(sleep(MOMENT))).await.is_ok());
    }
}
