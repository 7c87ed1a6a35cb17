//! A coarse timer that a worker's connections share: an alarm of its own for each request would cost the system calls that
//! rearm the runtime's.
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

/// The timer. It rests while nobody waits for it.
#[derive(Debug, Default)]
pub(super) struct Tick {
    wanted: Notify,
    is_wanted: AtomicBool,
    ticks: Notify,
}

impl Tick {
    /// Ticks for as long as it is polled, so long after the first that waits.
    pub(super) async fn run(&self, period: Duration) {
        loop {
            self.wanted.notified().await;
            sleep(period).await;
            self.is_wanted.store(false, Ordering::Relaxed);
            self.ticks.notify_waiters();
        }
    }

    /// Waits for the next tick, which comes within the period.
    pub(super) async fn next(&self) {
        let tick = self.ticks.notified();
        if !self.is_wanted.swap(true, Ordering::Relaxed) {
            self.wanted.notify_one();
        }
        tick.await;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin, time::Instant};

    use tokio::{join, select, time::timeout};

    use super::*;

    const PERIOD: Duration = Duration::from_millis(20);

    #[test]
    fn all_that_wait_are_woken_by_one_tick_and_none_without_waiting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (tick, woken) = (Tick::default(), Cell::new(0));
            let mut run = pin!(tick.run(PERIOD));
            assert!(timeout(2 * PERIOD, &mut run).await.is_err());
            let next = async {
                tick.next().await;
                woken.set(woken.get() + 1);
            };
            let began = Instant::now();
            let all = async { join!(next, tick.next(), tick.next()) };
            select! {
                () = &mut run => unreachable!("it ticks on"),
                _ = all => {}
            }
            assert!(began.elapsed() >= PERIOD);
            assert_eq!(woken.get(), 1);
            // Another tick takes another wait.
            assert!(timeout(2 * PERIOD, &mut run).await.is_err());
            select! {
                () = &mut run => unreachable!("it ticks on"),
                () = tick.next() => {}
            }
        });
    }
}
