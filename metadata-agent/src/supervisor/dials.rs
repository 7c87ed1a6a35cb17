//! Connections to Nova that are being made for a guest-facing process.
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::sleep,
};

use crate::{
    config::Rate,
    directory::Bucket,
    link::{Command, Failure, FailureKind, MOST_DIALS},
    nova::Dialler,
    packets::AsyncChannel,
};

/// Token bucket of a process: several times what all guests of a node ask for, where Nova ends the connection with each
/// answer. A process that was taken over would otherwise keep this machine's ports, and Nova, busy.
const PACE: Rate = Rate { rate: 4_000, burst: 8_000 };

/// Attempts that are under way, and their outcomes.
#[derive(Debug)]
pub(super) struct Dials {
    dialler: Arc<Dialler>,
    under_way: JoinSet<()>,
    places: Arc<Semaphore>,
    pace: Bucket,
    sender: mpsc::UnboundedSender<Dialled>,
    outcomes: mpsc::UnboundedReceiver<Dialled>,
}

/// Outcome of an attempt. It keeps its place until it was handed over.
#[derive(Debug)]
pub(super) struct Dialled {
    id: u64,
    result: Result<OwnedFd, Failure>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Dials {
    pub(super) fn new(dialler: Arc<Dialler>) -> Self {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(MOST_DIALS));
        Self { dialler, under_way: JoinSet::new(), places, pace: Bucket::default(), sender, outcomes }
    }

    /// Begins one, if there are not too many; with a delay, if it has the time, where they come too fast.
    pub(super) fn begin(&mut self, id: u64, endpoint: usize, within: Duration) {
        // Those that have ended take memory until they are looked at.
        while self.under_way.try_join_next().is_some() {}
        let sender = self.sender.clone();
        let now = Instant::now();
        let delay = self.pace.wait(PACE, now).unwrap_or_default();
        let place = self.places.clone().try_acquire_owned().ok().filter(|_| delay <= within);
        let Some(place) = place else {
            let failure = local("too many connections to nova are being made".to_owned());
            // Both ends are here.
            let _ = sender.send(Dialled { id, result: Err(failure), _place: None });
            return;
        };
        self.pace.add(PACE, now);
        let dialler = self.dialler.clone();
        self.under_way.spawn(async move {
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let stream = dialler.dial(endpoint, within.saturating_sub(delay)).await;
            let socket = stream
                .and_then(|stream| Ok(stream.into_std().map_err(|error| local(error.to_string()))?.into()));
            let _ = sender.send(Dialled { id, result: socket, _place: Some(place) });
        });
    }

    /// The next outcome. Waits for ever if there is none. May be cancelled.
    pub(super) async fn next(&mut self) -> Dialled {
        match self.outcomes.recv().await {
            Some(dialled) => dialled,
            None => std::future::pending().await,
        }
    }
}

impl Dialled {
    /// Gives it to who has asked.
    pub(super) async fn hand_over(self, channel: &AsyncChannel) -> io::Result<()> {
        let Self { id, result, .. } = &self;
        match result {
            Ok(socket) => channel.send(&Command::Dialled { id: *id, failure: None }, &[socket.as_fd()]).await,
            Err(failure) => {
                channel.send(&Command::Dialled { id: *id, failure: Some(failure.clone()) }, &[]).await
            }
        }
    }
}

fn local(text: String) -> Failure {
    Failure { kind: FailureKind::Local, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nova::testing::dialler;

    #[tokio::test]
    async fn connections_that_are_asked_for_too_fast_wait_or_are_refused() {
        let mut dials = Dials::new(Arc::new(dialler(&[])));
        let (began, burst) = (Instant::now(), PACE.burst as usize);
        let mut attempts = 0;
        for id in 0..3 * u64::from(PACE.burst) {
            // Who has no time does not wait.
            dials.begin(id, 0, Duration::ZERO);
            let failure = dials.next().await.result.unwrap_err();
            attempts += usize::from(!failure.text.contains("too many"));
        }
        let most = burst as f64 + began.elapsed().as_secs_f64() * f64::from(PACE.rate) + 1.0;
        assert!(attempts >= burst && attempts as f64 <= most, "{attempts} attempts of {most} at most");
        // The next ones take their turns.
        let began = Instant::now();
        let more = 200;
        for id in 0..more {
            dials.begin(id, 0, Duration::from_secs(5));
        }
        for _ in 0..more {
            let failure = dials.next().await.result.unwrap_err();
            assert!(!failure.text.contains("too many"), "{}", failure.text);
        }
        assert!(began.elapsed() >= Duration::from_secs_f64((more - 10) as f64 / f64::from(PACE.rate)));
    }
}
