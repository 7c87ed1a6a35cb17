//! Nova: its endpoints, what is known of their health, pooled connections, and the retries that are safe.
//!
//! ```text
//! endpoint    one server of Nova's         health   when it is avoided, and tried again
//! connection  a request out, an answer in  pool     connections that wait for requests
//! ```
//!
//! It makes no connection itself, but has them made ([`Dial`]).
mod connection;
mod endpoint;
mod health;
mod pool;
#[cfg(test)]
pub(super) mod testing;

use std::{
    io,
    net::TcpStream as StdStream,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout_at},
};
use tokio_util::either::Either;
use tracing::{debug, warn};

pub(super) use self::connection::NovaAnswer;
pub use self::endpoint::Observer;
use self::{
    connection::{Broken, Connection, Stream},
    endpoint::Endpoint,
    pool::{Pool, WorkerId},
};
use super::{answer::Refusal, turn};
use crate::{
    config,
    directory::{SignedIdentity, Tap},
    error_chain::chain,
    link::{Failure, FailureKind, NovaSettings},
    notice::Notice,
    race::race,
    tls::Tls,
};

/// Makes connections to Nova, for who may make no socket.
pub trait Dial: std::fmt::Debug + Send + Sync {
    /// A TCP connection to the endpoint with that index, within that time.
    fn dial(&self, endpoint: usize, within: Duration) -> BoxFuture<'_, Result<StdStream, Failure>>;
}

/// Reason for which there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Dial(#[from] Failure),
    #[error("TLS")]
    Tls(#[source] io::Error),
    #[error("no connection within {:.1} s", .0.as_secs_f64())]
    Timeout(Duration),
}

impl ConnectError {
    /// True if it is this machine that has no port, descriptor or memory left, and not the endpoint that failed.
    fn is_local(&self) -> bool {
        matches!(self, Self::Dial(Failure { kind: FailureKind::Local, .. }))
    }

    /// True if there is a machine, on which nobody listens.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Dial(Failure { kind: FailureKind::Refused, .. }))
    }
}

/// Time for which a request waits for a Nova that is being restarted, and how often it looks. A boot can end with a 502, but
/// not with an answer that takes a moment.
const RESTART: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);

/// Client of Nova, the upstream: endpoints with their health and pools, shared by all workers.
#[derive(Debug)]
pub struct NovaClient {
    endpoints: Vec<Endpoint>,
    dialler: Arc<dyn Dial>,
    tls: Option<Arc<Tls>>,
    connect_timeout: Duration,
    response_timeout: Duration,
    next: AtomicUsize,
    pool: Pool,
    /// This machine lacked something for a connection.
    exhausted: Notice,
}

impl NovaClient {
    /// As configured. Without a TLS client it is spoken to in plain HTTP.
    pub(crate) fn new(
        settings: &NovaSettings,
        dialler: Arc<dyn Dial>,
        tls: Option<Arc<Tls>>,
        observer: &Arc<dyn Observer>,
    ) -> Self {
        let endpoint = |address: &config::Endpoint| Endpoint::new(address.clone(), observer.clone());
        Self {
            endpoints: settings.endpoints.iter().map(endpoint).collect(),
            dialler,
            tls,
            connect_timeout: settings.connect_timeout,
            response_timeout: settings.response_timeout,
            // A thousand hypervisors must not all begin with the same endpoint.
            next: AtomicUsize::new(std::process::id() as usize),
            pool: Pool::default(),
            exhausted: Notice::default(),
        }
    }

    /// Whom to ask. One that was avoided long enough is given to one request that can also go to the next, of which there
    /// must be one: for all that are down there is a faster way.
    fn order(&self, tap: &Tap, now: Instant, repeatable: bool) -> Order {
        let (mut up, mut down): (Vec<_>, Vec<_>) =
            (0..self.endpoints.len()).partition(|index| self.endpoints[*index].is_up_for(tap));
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        for list in [&mut up, &mut down] {
            let length = list.len().max(1);
            list.rotate_left(turn % length);
        }
        // A connection and an answer, each within that time.
        let time = 2 * self.connect_timeout;
        let tried = |index: &usize| self.endpoints[*index].try_again(tap, now, time);
        let on_trial = if repeatable && !up.is_empty() { down.iter().position(tried) } else { None };
        Order { on_trial: on_trial.map(|at| down.remove(at)), up, down }
    }

    /// Makes a connection to an endpoint that is down. While it refuses, nobody listens there yet: it is waited for until
    /// `patience` ends, together with all other requests that do.
    async fn connect_patiently(
        &self,
        index: usize,
        patience: Instant,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        while turn::now() + LOOK < patience {
            if self.endpoints[index].shall_look(turn::now(), LOOK) {
                match self.connect(index, deadline).await {
                    Err(error) if error.is_refused() => {}
                    connected => return connected,
                }
            }
            sleep(LOOK).await;
        }
        self.connect(index, deadline).await
    }

    /// Opens a connection to an endpoint, in that time at most.
    async fn open(&self, index: usize, time: Duration) -> Result<Stream, ConnectError> {
        let deadline = turn::now() + time;
        let dialling = self.dialler.dial(index, time);
        let dialled =
            timeout_at(deadline.into(), dialling).await.map_err(|_| ConnectError::Timeout(time))??;
        let stream = TcpStream::from_std(dialled).map_err(|error| Failure {
            kind: FailureKind::Local,
            text: format!("cannot use a connection: {error}"),
        })?;
        let Some(tls) = &self.tls else { return Ok(Either::Left(stream)) };
        let greeting = tls.connect(&self.endpoints[index].address().host, stream);
        match timeout_at(deadline.into(), greeting).await {
            Ok(greeted) => Ok(Either::Right(Box::new(greeted.map_err(ConnectError::Tls)?))),
            Err(_) => Err(ConnectError::Timeout(time)),
        }
    }

    /// Makes a connection to one endpoint, before `deadline`, and tells it how that went.
    async fn connect(&self, index: usize, deadline: Instant) -> Result<Connection, ConnectError> {
        let endpoint = &self.endpoints[index];
        let begun = turn::now();
        let left = deadline.saturating_duration_since(begun);
        // One that is silent leaves time for another.
        let share = if self.endpoints.len() > 1 { left / 2 } else { left };
        let time = self.connect_timeout.min(share);
        match self.open(index, time).await {
            Ok(stream) => {
                endpoint.connected();
                Ok(Connection::new(stream, index, begun, self.response_timeout))
            }
            Err(error) => {
                let now = turn::now();
                if error.is_local() {
                    endpoint.undecided(now);
                    if let Some(times) = self.exhausted.times(now) {
                        warn!(times, error = chain(&error), "no connections to nova can be made");
                    }
                    return Err(error);
                }
                if error.is_refused() {
                    endpoint.is_away(now);
                }
                endpoint.failed(&error, now);
                Err(error)
            }
        }
    }
}

/// Indexes of endpoints.
#[derive(Debug)]
struct Order {
    /// One that was down, to be asked first.
    on_trial: Option<usize>,
    /// Then these, one after another.
    up: Vec<usize>,
    /// And these all at once if nobody of them answers.
    down: Vec<usize>,
}

/// One worker's way to Nova.
#[derive(Debug)]
pub(super) struct Upstream {
    nova: Arc<NovaClient>,
    worker: WorkerId,
}

impl Upstream {
    /// That of the worker with this number.
    pub(super) fn new(nova: Arc<NovaClient>, worker: usize) -> Self {
        Self { nova, worker: WorkerId(worker) }
    }

    /// Sends what `build` makes for a host, in the name of `who` behind that tap; returns when the answer has begun.
    ///
    /// A request that may be repeated, which has no body, goes over a pooled connection, over a new one if that does not
    /// make sense, and when the endpoint fails, to the next one. Any other gets a new connection, since a pooled one may be dying, and is sent once.
    /// One of which nothing could be sent waits a little for an endpoint to come back.
    pub(super) async fn send(
        &self,
        who: &Arc<SignedIdentity>,
        tap: &Tap,
        method: &[u8],
        repeatable: bool,
        build: impl Fn(&str) -> Vec<u8>,
    ) -> Result<NovaAnswer, Refusal> {
        let started = turn::now();
        let deadline = started + self.nova.response_timeout;
        let mut attempts =
            Attempts { nova: &self.nova, who, tap, method, repeatable, build, deadline, mute: Vec::new() };
        let Order { on_trial, up, mut down } = self.nova.order(tap, started, repeatable);
        let mut refusal = Refusal::Unreachable;
        for index in on_trial.into_iter().chain(up).take_while(|_| turn::now() < deadline) {
            let time =
                if on_trial == Some(index) { self.nova.connect_timeout } else { self.nova.response_timeout };
            let tls = self.nova.tls.as_deref();
            if repeatable
                && let Some(connection) =
                    self.nova.pool.take(index, &who.identity, tls, self.worker, turn::now())
            {
                match attempts.run(connection, time).await {
                    // It was closed while it was idle, as the request went out, or something was left over on it: that
                    // says nothing of its endpoint.
                    Err(error) if error.is_nonsense() => {
                        debug!(nova = %self.nova.endpoints[index], %error, "a pooled connection is of no use");
                    }
                    Err(error) => {
                        refusal = attempts.broke(index, &error)?;
                        // Its machine died meanwhile; a new connection may lead to another.
                        down.extend(error.is_loss().then_some(index));
                        continue;
                    }
                    Ok(answer) => return Ok(answer),
                }
            }
            let connection = match self.nova.connect(index, deadline).await {
                Ok(connection) => connection,
                Err(error) => {
                    down.extend(error.is_refused().then_some(index));
                    continue;
                }
            };
            match attempts.run(connection, time).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    refusal = attempts.broke(index, &error)?;
                    // A Nova that is stopped loses what it has in hand. Without another to ask it is asked once more, a
                    // little later.
                    if error.is_loss() && self.nova.endpoints.len() == 1 {
                        self.nova.endpoints[index].is_away(turn::now());
                        down.push(index);
                    }
                }
            }
        }
        // Nobody knows which of those that failed lately will be back first: whoever takes a connection.
        let patience = deadline.min(turn::now() + RESTART);
        while !down.is_empty() && turn::now() < deadline {
            let connecting = down.iter().map(|index| self.nova.connect_patiently(*index, patience, deadline));
            let Ok(connection) = race(connecting.collect(), Duration::ZERO).await else { break };
            let index = connection.endpoint;
            down.retain(|other| *other != index);
            match attempts.run(connection, self.nova.response_timeout).await {
                Ok(answer) => return Ok(answer),
                Err(error) => refusal = attempts.broke(index, &error)?,
            }
        }
        Err(refusal)
    }

    /// An answer whose body did not come to its end.
    pub(super) fn broke_off(&self, answer: &NovaAnswer, error: &Broken) {
        self.nova.endpoints[answer.endpoint()].broke_off(error, turn::now());
    }

    /// Takes the connection of an answer that was read to its end.
    ///
    /// Not after a request with a body: a server that answers without reading it would take the body for the next
    /// request, and each guest would get the answer of the one before.
    pub(super) fn give_back(&self, answer: NovaAnswer, request_had_body: bool) {
        if request_had_body {
            return;
        }
        if let Some(connection) = answer.into_reusable() {
            self.nova.pool.put(connection, self.worker, turn::now());
        }
    }

    /// Closes what was not used for a while, or is protected by files that have changed.
    pub(super) fn sweep(&self) {
        self.nova.pool.sweep(self.nova.tls.as_deref(), turn::now());
    }
}

/// One request, on its way from endpoint to endpoint.
struct Attempts<'a, B> {
    nova: &'a NovaClient,
    who: &'a Arc<SignedIdentity>,
    tap: &'a Tap,
    method: &'a [u8],
    repeatable: bool,
    build: B,
    deadline: Instant,
    /// Endpoints that closed a new connection without an answer. The request may be to blame, which is a guest's: only
    /// when another endpoint answers it, they may be.
    mute: Vec<usize>,
}

impl<B: Fn(&str) -> Vec<u8>> Attempts<'_, B> {
    /// Has it answered over that connection, within `time` and before the deadline.
    async fn run(&mut self, mut connection: Connection, time: Duration) -> Result<NovaAnswer, Broken> {
        connection.belong_to(self.who);
        let endpoint = &self.nova.endpoints[connection.endpoint];
        let request = (self.build)(&endpoint.address().authority());
        let time = time.min(self.deadline.saturating_duration_since(turn::now()));
        let exchange = pin!(connection.exchange(&request, self.method));
        let answer =
            timeout_at((turn::now() + time).into(), exchange).await.unwrap_or(Err(Broken::Late(time)))?;
        endpoint.answered(self.tap);
        if answer.head.status == 403 {
            endpoint.forbade(turn::now());
        }
        for index in self.mute.drain(..) {
            self.nova.endpoints[index].suspect(self.tap, &Broken::Unanswered, turn::now());
        }
        Ok(answer)
    }

    /// The refusal if nobody else answers, or, as an error, the one that ends the attempts.
    fn broke(&mut self, index: usize, error: &Broken) -> Result<Refusal, Refusal> {
        let (endpoint, now) = (&self.nova.endpoints[index], turn::now());
        match error {
            Broken::Unanswered => {
                endpoint.kept_mute(now);
                self.mute.push(index);
            }
            // Those before it left it little.
            Broken::Late(time) if *time < self.nova.connect_timeout.min(self.nova.response_timeout) / 2 => {
                endpoint.undecided(now);
            }
            error if error.is_of_transport() => endpoint.failed(error, now),
            _ => endpoint.failed_request(self.tap, error, now),
        }
        match error {
            Broken::Late(_) if now >= self.deadline => Err(Refusal::Timeout),
            _ if self.repeatable => Ok(Refusal::Broken),
            _ => Err(Refusal::Broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{nova, refusing},
        *,
    };
    use crate::directory::Directory;

    #[test]
    fn an_endpoint_that_failed_is_for_one_request_at_a_time() {
        let nova = nova(&[refusing(), refusing(), refusing()]);
        let tap = Directory::default().tap("tap0");
        let mut now = Instant::now();
        let failure = io::Error::other("a failure");
        nova.endpoints[1].failed(&failure, now);
        let up = |now, repeatable| {
            let Order { on_trial, up, down } = nova.order(&tap, now, repeatable);
            let mut asked: Vec<_> = on_trial.into_iter().chain(up).collect();
            assert_eq!(asked.len() + down.len(), 3);
            let first = asked[0];
            asked.sort();
            (first, asked)
        };
        let firsts: Vec<_> = (0..4).map(|_| up(now, true).0).collect();
        assert!(firsts == [0, 2, 0, 2] || firsts == [2, 0, 2, 0], "{firsts:?}");
        now += Duration::from_secs(1);
        assert_eq!(up(now, false).1, [0, 2], "what is sent once does not go there");
        assert_eq!(up(now, true), (1, vec![0, 1, 2]));
        assert_eq!(up(now, true).1, [0, 2]);
        nova.endpoints[1].answered(&tap);
        assert_eq!(up(now, false).1, [0, 1, 2]);
        for endpoint in &nova.endpoints {
            endpoint.failed(&failure, now);
        }
        now += Duration::from_secs(60);
        for repeatable in [false, true] {
            let order = nova.order(&tap, now, repeatable);
            assert_eq!((order.on_trial, order.down.len()), (None, 3), "nobody is given up, or preferred");
        }
    }
}
