//! Connections to Nova that are being made for a guest-facing process.
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

use crate::{
    link::{Command, Failure, FailureKind, MOST_DIALS},
    nova::Dialler,
    packets::AsyncChannel,
};

/// Attempts that are under way, and their outcomes.
#[derive(Debug)]
pub(super) struct Dials {
    dialler: Arc<Dialler>,
    under_way: JoinSet<()>,
    places: Arc<Semaphore>,
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
        Self { dialler, under_way: JoinSet::new(), places, sender, outcomes }
    }

    /// Begins one, if there are not too many.
    pub(super) fn begin(&mut self, id: u64, endpoint: usize, within: Duration) {
        // Those that have ended take memory until they are looked at.
        while self.under_way.try_join_next().is_some() {}
        let sender = self.sender.clone();
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let failure = local("too many connections to nova are being made".to_owned());
            // Both ends are here.
            let _ = sender.send(Dialled { id, result: Err(failure), _place: None });
            return;
        };
        let dialler = self.dialler.clone();
        self.under_way.spawn(async move {
            let stream = dialler.dial(endpoint, within).await;
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
