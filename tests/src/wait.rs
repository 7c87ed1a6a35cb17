//! Waiting for a condition with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Short enough not to blur what is measured, long enough not to take the processor from what is waited for.
const PAUSE: Duration = Duration::from_millis(5);

/// Repeats `probe` until it succeeds; past the limit its last error is returned.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("after {limit:?} still waiting: {what}"));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
