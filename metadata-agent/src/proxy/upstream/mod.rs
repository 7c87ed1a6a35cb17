//! Nova: its endpoints, what is known of their health, pooled connections, and the retries that are safe.
//!
//! ```text
//! endpoint    one server of Nova's         health   when it is avoided, and tried again
//! dial        making a connection          lookup   where a name is
//! race        several ways to one end      tls      certificates, read again when they change
//! connection  a request out, an answer in  pool     connections that wait for requests
//! notice      warnings, one a minute
//! ```
mod connection;
mod dial;
mod endpoint;
mod health;
mod lookup;
mod notice;
mod pool;
mod race;
#[cfg(test)]
mod testing;
mod tls;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout_at};
use tracing::{debug, warn};

pub(super) use self::connection::Answer;
use self::{
    connection::{Broken, Connection},
    dial::{ConnectError, dial},
    endpoint::Endpoint,
    notice::Notice,
    pool::Pool,
    race::{STAGGER, race},
    tls::Tls,
};
pub use self::{endpoint::Observer, tls::TlsError};
use super::answer::Refusal;
use crate::{config, error_chain::chain};

/// How long a request waits for a Nova that is being restarted, and how often it looks. A boot can end with a 502, but
/// not with an answer that takes a moment.
const RESTART: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);

/// What all workers know of Nova.
#[derive(Debug)]
pub struct Nova {
    endpoints: Vec<Endpoint>,
    tls: Option<Tls>,
    connect_timeout: Duration,
    response_timeout: Duration,
    next: AtomicUsize,
    /// This machine lacked something for a connection.
    exhausted: Notice,
}

impl Nova {
    /// As configured. Reads certificates, so that what is wrong with them is said at start.
    pub fn new(config: &config::Nova, observer: Arc<dyn Observer>) -> Result<Self, TlsError> {
        let endpoint = |address: &config::Endpoint| Endpoint::new(address.clone(), observer.clone());
        Ok(Self {
            endpoints: config.endpoints.iter().map(endpoint).collect(),
            tls: config.tls.as_ref().map(Tls::load).transpose()?,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            // A thousand hypervisors must not all begin with the same endpoint.
            next: AtomicUsize::new(std::process::id() as usize),
            exhausted: Notice::default(),
        })
    }

    /// Whom to ask, one after another: those that are up, in turn. And whom else, if nobody of them answers.
    ///
    /// One that was avoided long enough comes first, for one request that may also go to the next.
    fn order(&self, now: Instant, repeatable: bool) -> (Vec<usize>, Vec<usize>) {
        let (mut up, mut down): (Vec<_>, Vec<_>) =
            (0..self.endpoints.len()).partition(|index| self.endpoints[*index].is_up());
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        for list in [&mut up, &mut down] {
            let length = list.len().max(1);
            list.rotate_left(turn % length);
        }
        let tried = |index: &usize| self.endpoints[*index].try_again(now, self.connect_timeout);
        if repeatable && let Some(at) = down.iter().position(tried) {
            up.insert(0, down.remove(at));
        }
        (up, down)
    }

    /// Makes a connection to any endpoint, only to see that it can be made.
    pub async fn reach(&self) -> Result<(), String> {
        let attempts = (0..self.endpoints.len()).map(async |index| {
            let failure = |error| format!("nova at {}: {}", self.endpoints[index], chain(&error));
            self.connect(index, Instant::now() + self.connect_timeout).await.map(drop).map_err(failure)
        });
        race(attempts.collect(), Duration::ZERO).await.map_err(|failures| failures.join("; "))
    }

    /// Makes a connection to an endpoint that is down. While it refuses, nobody listens there yet: it is waited for until
    /// `patience` ends.
    async fn connect_patiently(
        &self,
        index: usize,
        patience: Instant,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        loop {
            match self.connect(index, deadline).await {
                Err(error) if error.is_refused() && Instant::now() + LOOK < patience => sleep(LOOK).await,
                connected => return connected,
            }
        }
    }

    /// Makes a connection to one endpoint, before `deadline`, and tells it how that went.
    async fn connect(&self, index: usize, deadline: Instant) -> Result<Connection, ConnectError> {
        let endpoint = &self.endpoints[index];
        let begun = Instant::now();
        let time = self.connect_timeout.min(deadline.saturating_duration_since(begun));
        match dial(endpoint, self.tls.as_ref(), time, self.connect_timeout).await {
            Ok(stream) => {
                endpoint.connected();
                Ok(Connection::new(stream, index, begun, self.response_timeout))
            }
            Err(error) => {
                let now = Instant::now();
                if !error.is_local() {
                    endpoint.failed(&error, now);
                } else if let Some(times) = self.exhausted.times(now) {
                    warn!(times, error = chain(&error), "no connections to nova can be made");
                }
                Err(error)
            }
        }
    }
}

/// One worker's way to Nova: connections stay with the worker that made them.
#[derive(Debug)]
pub(super) struct Upstream {
    nova: Arc<Nova>,
    /// One for each endpoint.
    pools: Vec<Pool>,
}

impl Upstream {
    pub(super) fn new(nova: Arc<Nova>) -> Self {
        let pools = nova.endpoints.iter().map(|_| Pool::default()).collect();
        Self { nova, pools }
    }

    /// Sends what `build` makes for a host; returns when the head of the answer is there.
    ///
    /// A request that may be repeated, which has no body, goes over a pooled connection, and when that or its endpoint
    /// fails, to the next endpoint. Any other gets a new connection, since a pooled one may be dying, and is sent once.
    /// One of which nothing could be sent waits a little for an endpoint to come back.
    pub(super) async fn send(
        &self,
        method: &[u8],
        repeatable: bool,
        build: impl Fn(&str) -> Vec<u8>,
    ) -> Result<Answer, Refusal> {
        let started = Instant::now();
        let deadline = started + self.nova.response_timeout;
        let mut errand = Errand { nova: &self.nova, method, repeatable, build, deadline, mute: Vec::new() };
        let (up, mut down) = self.nova.order(started, repeatable);
        let mut refusal = Refusal::Unreachable;
        for index in up.into_iter().take_while(|_| Instant::now() < deadline) {
            if repeatable
                && let Some(connection) = self.pools[index].take(self.nova.tls.as_ref(), Instant::now())
            {
                match errand.run(connection).await {
                    // It was closed while it was idle, as the request went out: that says nothing of its endpoint.
                    Err(Broken::Unanswered) => {
                        debug!(nova = %self.nova.endpoints[index], "a pooled connection was closed")
                    }
                    Err(error) => {
                        refusal = errand.broke(index, &error)?;
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
            match errand.run(connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => refusal = errand.broke(index, &error)?,
            }
        }
        // Nobody knows which of those that failed lately will be back first: whoever takes a connection.
        let patience = deadline.min(Instant::now() + RESTART);
        while !down.is_empty() && Instant::now() < deadline {
            let attempts = down.iter().map(|index| self.nova.connect_patiently(*index, patience, deadline));
            let Ok(connection) = race(attempts.collect(), STAGGER).await else { break };
            let index = connection.endpoint;
            down.retain(|other| *other != index);
            match errand.run(connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => refusal = errand.broke(index, &error)?,
            }
        }
        Err(refusal)
    }

    /// Takes the connection of an answer that was read to its end.
    ///
    /// Not after a request with a body: a server that answers without reading it would take the body for the next
    /// request, and each guest would get the answer of the one before.
    pub(super) fn give_back(&self, answer: Answer, request_had_body: bool) {
        if request_had_body {
            return;
        }
        if let Some(connection) = answer.into_reusable() {
            self.pools[connection.endpoint].put(connection, Instant::now());
        }
    }

    /// Closes what was not used for a while, or is protected by files that have changed.
    pub(super) fn sweep(&self) {
        let tls = self.nova.tls.as_ref();
        if let Some(tls) = tls {
            tls.refresh();
        }
        for pool in &self.pools {
            pool.sweep(tls, Instant::now());
        }
    }
}

/// One request, on its way from endpoint to endpoint.
struct Errand<'a, B> {
    nova: &'a Nova,
    method: &'a [u8],
    repeatable: bool,
    build: B,
    deadline: Instant,
    /// Endpoints that closed a new connection without an answer. The request may be to blame, which is a guest's: only
    /// when another endpoint answers it, they are.
    mute: Vec<usize>,
}

impl<B: Fn(&str) -> Vec<u8>> Errand<'_, B> {
    async fn run(&mut self, connection: Connection) -> Result<Answer, Broken> {
        let endpoint = &self.nova.endpoints[connection.endpoint];
        let request = (self.build)(&endpoint.address().authority());
        let late = Err(Broken::Late(self.nova.response_timeout));
        let exchange = connection.exchange(&request, self.method);
        let answer = timeout_at(self.deadline.into(), exchange).await.unwrap_or(late)?;
        endpoint.answered();
        if answer.head.status == 403 {
            endpoint.forbade(Instant::now());
        }
        for index in self.mute.drain(..) {
            self.nova.endpoints[index].take_down(&Broken::Unanswered, Instant::now());
        }
        Ok(answer)
    }

    /// What is to be said if nobody else answers, or that nobody else shall be asked.
    fn broke(&mut self, index: usize, error: &Broken) -> Result<Refusal, Refusal> {
        let endpoint = &self.nova.endpoints[index];
        if let Broken::Unanswered = error {
            endpoint.kept_mute(Instant::now());
            self.mute.push(index);
        } else {
            endpoint.failed(error, Instant::now());
        }
        match error {
            Broken::Late(_) => Err(Refusal::Timeout),
            _ if self.repeatable => Ok(Refusal::Broken),
            _ => Err(Refusal::Broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{listening, nova, refusing, run, silent},
        *,
    };

    #[test]
    fn one_endpoint_that_can_be_reached_is_enough() {
        let (_silent, silent) = silent();
        let (_listener, listening) = listening();
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(run(nova(&[silent, silent, refusing(), listening]).reach()), Ok(()));
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let failed = run(nova(&[silent, refusing()]).reach()).unwrap_err();
        assert!(failed.contains("refused") && failed.contains("no connection within 1.0 s"), "{failed}");
    }

    #[test]
    fn an_endpoint_that_failed_is_for_one_request_at_a_time() {
        let nova = nova(&[refusing(), refusing(), refusing()]);
        let mut now = Instant::now();
        let failure = std::io::Error::other("a failure");
        nova.endpoints[1].failed(&failure, now);
        let up = |now, repeatable| {
            let (mut up, down) = nova.order(now, repeatable);
            assert_eq!(up.len() + down.len(), 3);
            let first = up[0];
            up.sort();
            (first, up)
        };
        let firsts: Vec<_> = (0..4).map(|_| up(now, true).0).collect();
        assert!(firsts == [0, 2, 0, 2] || firsts == [2, 0, 2, 0], "{firsts:?}");
        now += Duration::from_secs(1);
        assert_eq!(up(now, false).1, [0, 2], "what is sent once does not go there");
        assert_eq!(up(now, true), (1, vec![0, 1, 2]));
        assert_eq!(up(now, true).1, [0, 2]);
        nova.endpoints[1].answered();
        assert_eq!(up(now, false).1, [0, 1, 2]);
        for endpoint in &nova.endpoints {
            endpoint.failed(&failure, now);
        }
        assert_eq!(nova.order(now, false).1.len(), 3, "nobody is given up");
    }
}
