//! Happy eyeballs (RFC 8305): several attempts at one end, each begun a little after the one before.
use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use tokio::time::timeout;

/// After how long the next is begun: the Connection Attempt Delay of RFC 8305, section 5.
pub(crate) const STAGGER: Duration = Duration::from_millis(250);

/// The first success, or all failures. An attempt that fails lets the next begin at once.
pub(crate) async fn race<F, T, E>(attempts: Vec<F>, stagger: Duration) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = attempts.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut failures = Vec::new();
    loop {
        running.extend(waiting.next().map(Box::pin));
        if running.is_empty() {
            return Err(failures);
        }
        let ended = poll_fn(|context| {
            for index in 0..running.len() {
                if let Poll::Ready(ended) = running[index].as_mut().poll(context) {
                    drop(running.swap_remove(index));
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        });
        let ended = if waiting.len() > 0 { timeout(stagger, ended).await.ok() } else { Some(ended.await) };
        match ended {
            Some(Ok(won)) => return Ok(won),
            Some(Err(failure)) => failures.push(failure),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Instant};

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> (T, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let began = Instant::now();
        (runtime.block_on(future), began.elapsed())
    }

    async fn attempt(number: u32) -> Result<u32, u32> {
        match number {
            0 => pending().await,
            1..10 => Err(number),
            _ => Ok(number),
        }
    }

    #[test]
    fn a_silent_attempt_delays_the_next_by_the_stagger_and_a_failed_one_by_nothing() {
        const LONG: Duration = Duration::from_secs(60);
        let (ended, took) = run(race([0, 0, 10, 11].map(attempt).into(), Duration::from_millis(50)));
        assert_eq!(ended, Ok(10));
        assert!(took >= Duration::from_millis(100), "{took:?}");
        assert_eq!(run(race([1, 2, 10].map(attempt).into(), LONG)).0, Ok(10));
        assert_eq!(run(race([1, 2].map(attempt).into(), LONG)).0, Err(vec![1, 2]));
        assert_eq!(run(race([0; 0].map(attempt).into(), LONG)).0, Err(vec![]));
    }

    #[test]
    fn an_early_attempt_can_still_win() {
        let slow = async |number: u64| -> Result<u64, u64> {
            tokio::time::sleep(Duration::from_millis(number)).await;
            Ok(number)
        };
        assert_eq!(run(race([100, 60_000].map(slow).into(), Duration::from_millis(10))).0, Ok(100));
    }
}
