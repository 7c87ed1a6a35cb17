//! Speaking with a guest-facing process, which guests may have taken over: nobody waits for one that does not listen, and
//! descriptors are not taken from it.
use std::{io, time::Duration};

use tokio::time::timeout;

use crate::{link::Event, packets::AsyncChannel};

/// Time that a process may say nothing, or not listen, until it is taken for stuck.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// Waits until something was said to it, or it has not listened for too long.
pub(super) async fn in_time(sending: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let deaf = |_| Err(io::Error::other("it does not listen"));
    timeout(SILENCE, sending).await.unwrap_or_else(deaf)
}

/// The next that it says. May be cancelled.
///
/// An honest one gives descriptors only when it is adopted. What comes is not closed before the process has ended, see
/// [`Channel::dispose`](crate::packets::Channel::dispose).
pub(super) async fn next(channel: &AsyncChannel) -> io::Result<Event> {
    let (event, given) = channel.receive().await?;
    if given.is_empty() {
        return Ok(event);
    }
    channel.hold(given);
    Err(io::Error::other("it sends descriptors, and may be taken over"))
}
