//! Connections to Nova that the privileged process is asked for, and requests for them while there is none.
use std::{
    collections::HashMap,
    io,
    net::TcpStream,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::{
    link::{Event, Failure, FailureKind},
    packets::AsyncChannel,
    proxy::Dial,
};

/// Dialler of who may make no socket.
#[derive(Debug)]
pub(super) struct Dialling {
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    channel: Option<Arc<AsyncChannel>>,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Result<TcpStream, Failure>>,
    endpoint: usize,
    within: Duration,
}

impl Dialling {
    /// By way of that link.
    pub(super) fn new(channel: &Arc<AsyncChannel>) -> Self {
        let state = State { channel: Some(channel.clone()), waiting: HashMap::new() };
        Self { next: AtomicU64::default(), state: Mutex::new(state) }
    }

    /// The other process is gone: requests wait for the next one, as long as they have time.
    pub(super) fn lose(&self) {
        self.state().channel = None;
    }

    /// There is another process. It hears of all that waits.
    pub(super) fn resume(&self, channel: &Arc<AsyncChannel>) {
        let mut state = self.state();
        state.channel = Some(channel.clone());
        let ids: Vec<u64> = state.waiting.keys().copied().collect();
        for id in ids {
            state.ask(id);
        }
    }

    /// Takes a connection, or the reason why there is none.
    pub(super) fn answer(&self, id: u64, failure: Option<Failure>, given: Vec<OwnedFd>) {
        // Whoever asked may have had enough of waiting: what came is closed.
        let Some(waiting) = self.state().waiting.remove(&id) else { return };
        let result = match (failure, given.into_iter().next()) {
            (Some(failure), _) => Err(failure),
            (None, Some(socket)) => Ok(socket.into()),
            (None, None) => Err(local("the connection was lost on its way: too many descriptors".to_owned())),
        };
        let _ = waiting.answer.send(result);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Asks for a connection, if there is somebody to ask. One that is just going leaves it to the next.
    fn ask(&mut self, id: u64) {
        let (Some(channel), Some(waiting)) = (&self.channel, self.waiting.get(&id)) else { return };
        let Waiting { endpoint, within, .. } = *waiting;
        let sent = channel.try_send(&Event::Dial { id, endpoint, within }, &[]);
        if let Err(error) = sent
            && error.kind() == io::ErrorKind::WouldBlock
            && let Some(waiting) = self.waiting.remove(&id)
        {
            let text = format!("no connection can be asked for: {error}");
            let _ = waiting.answer.send(Err(local(text)));
        }
    }
}

impl Dial for Dialling {
    fn dial(&self, endpoint: usize, within: Duration) -> BoxFuture<'_, Result<TcpStream, Failure>> {
        Box::pin(async move {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let (answer, answered) = oneshot::channel();
            let _place = Place { dialling: self, id };
            {
                let mut state = self.state();
                state.waiting.insert(id, Waiting { answer, endpoint, within });
                state.ask(id);
            }
            answered.await.unwrap_or_else(|_| Err(local("nobody makes connections".to_owned())))
        })
    }
}

/// A request's place among those that wait, until it is answered or nobody waits for it.
struct Place<'a> {
    dialling: &'a Dialling,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.dialling.state().waiting.remove(&self.id);
    }
}

fn local(text: String) -> Failure {
    Failure { kind: FailureKind::Local, text }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::OwnedFd};

    use super::*;
    use crate::packets::Channel;

    fn channel() -> (Arc<AsyncChannel>, AsyncChannel) {
        let (one, other) = Channel::pair().unwrap();
        (Arc::new(AsyncChannel::new(one).unwrap()), AsyncChannel::new(other).unwrap())
    }

    async fn asked(channel: &AsyncChannel) -> (u64, usize) {
        let (Event::Dial { id, endpoint, .. }, _) = channel.receive().await.unwrap() else {
            panic!("another event")
        };
        (id, endpoint)
    }

    #[tokio::test]
    async fn what_waits_is_asked_of_the_next_process_again() {
        let (first, former) = channel();
        let dialling = Arc::new(Dialling::new(&first));
        let dial = |endpoint| {
            let dialling = dialling.clone();
            tokio::spawn(async move { dialling.dial(endpoint, Duration::from_secs(60)).await })
        };
        let before = dial(3);
        let (id, endpoint) = asked(&former).await;
        assert_eq!(endpoint, 3);
        drop((first, former));
        dialling.lose();
        let meanwhile = dial(4);
        tokio::task::yield_now().await;
        assert!(!before.is_finished() && !meanwhile.is_finished());

        let (next, agent) = channel();
        dialling.resume(&next);
        let again = [asked(&agent).await, asked(&agent).await];
        assert!(again.contains(&(id, 3)), "{again:?}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (id, endpoint) in again {
            let failure = (endpoint == 4).then(|| local("none left".to_owned()));
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            dialling.answer(id, failure, vec![OwnedFd::from(socket)]);
        }
        assert!(before.await.unwrap().is_ok());
        assert_eq!(meanwhile.await.unwrap().unwrap_err().text, "none left");
        assert!(dialling.state().waiting.is_empty());
    }

    #[tokio::test]
    async fn who_does_not_wait_any_more_leaves_nothing() {
        let (link, agent) = channel();
        let dialling = Dialling::new(&link);
        let within = Duration::from_millis(1);
        assert!(tokio::time::timeout(within, dialling.dial(0, within)).await.is_err());
        assert!(dialling.state().waiting.is_empty());
        let (id, _) = asked(&agent).await;
        dialling.answer(id, None, Vec::new());
    }
}
