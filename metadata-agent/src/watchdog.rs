//! Signs of life for the service manager: a control plane that hangs is ended and started again, while known guests are served by
//! the other process.
#![forbid(unsafe_code)]
use std::{env, sync::mpsc, thread, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// Gives signs of life for as long as it is polled, if the service manager waits for them.
pub(crate) async fn give_signs_of_life() {
    let Some(period) = env::var("WATCHDOG_USEC").ok().and_then(|text| period(&text)) else { return };
    // A service manager that does not read has whoever writes to it wait: that is a thread that nobody waits for.
    let (beat, beats) = mpsc::sync_channel(1);
    let tell = move || {
        for () in beats {
            if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                warn!(%error, "the service manager gets no signs of life");
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("watchdog".to_owned()).spawn(tell) {
        warn!(%error, "the service manager gets no signs of life");
        return;
    }
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // One that waits says as much as two.
        let _ = beat.try_send(());
    }
}

/// Warns an agent that came after another without a start of the service if nobody waits for its signs of life.
///
/// The patience that the service manager asks for is in the environment of a process that it starts, and a successor has that of its
/// predecessor. A unit that got its patience since then, by an upgrade, has it from the next start on; the service manager goes by
/// what was asked for at the last one as well (`watchdog_original_usec` in systemd's service.c).
pub(crate) fn warn_if_unwatched() {
    if env::var_os("NOTIFY_SOCKET").is_some() && env::var_os("WATCHDOG_USEC").is_none() {
        warn!(
            "the service manager waits for no signs of life, since the unit had no WatchdogSec= when the service was started last; if it \
             has one now, `systemctl restart` has it count"
        );
    }
}

/// Period of the signs: a third of the service manager's patience (sd_watchdog_enabled(3)). Its variable `WATCHDOG_PID` is not
/// looked at: a successor is a process of its predecessor's, and has its environment.
fn period(patience: &str) -> Option<Duration> {
    let patience = patience.parse().ok().filter(|patience| *patience > 0)?;
    Some((Duration::from_micros(patience) / 3).max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_come_several_times_as_often_as_they_are_waited_for() {
        assert_eq!(period("180000000"), Some(Duration::from_secs(60)));
        assert_eq!(period("1"), Some(Duration::from_millis(1)));
        assert_eq!((period("0"), period(""), period("-1")), (None, None, None));
    }
}
