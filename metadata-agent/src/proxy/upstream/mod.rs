//! Nova: its endpoints, what is known of their health, pooled connections, and the retries that are safe.
mod connection;
mod dial;
mod endpoint;
mod tls;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::timeout_at;
use tracing::debug;

pub(super) use self::connection::Answer;
use self::{
    connection::{Broken, Connection},
    dial::{ConnectError, dial},
    endpoint::Endpoint,
    tls::Tls,
};
pub use self::{endpoint::Observer, tls::TlsError};
use super::answer::Refusal;
use crate::{config, error_chain::chain};

/// An idle connection older than this is not used again: nova's servers close theirs after a while, and a request
/// sent into a closing connection is lost.
const IDLE: Duration = Duration::from_secs(20);
/// Idle connections that a worker keeps to each endpoint.
const KEPT: usize = 32;

/// What all workers know of Nova.
#[derive(Debug)]
pub struct Nova {
    endpoints: Vec<Endpoint>,
    tls: Option<Tls>,
    connect_timeout: Duration,
    response_timeout: Duration,
    next: AtomicUsize,
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
        })
    }

    /// All endpoints, in turn; those that failed lately come last, as nobody knows better.
    fn order(&self, now: Instant) -> impl Iterator<Item = usize> {
        let count = self.endpoints.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let mut order: Vec<usize> = (first..first + count).map(|index| index % count).collect();
        order.sort_by_cached_key(|index| !self.endpoints[*index].is_up(now));
        order.into_iter()
    }

    /// Makes a connection to any endpoint, only to see that it can be made.
    pub async fn reach(&self) -> Result<(), String> {
        let mut failures = Vec::new();
        for index in self.order(Instant::now()) {
            match self.connect(index).await {
                Ok(_) => return Ok(()),
                Err(error) => failures.push(format!("nova at {}: {}", self.endpoints[index], chain(&error))),
            }
        }
        Err(failures.join("; "))
    }

    async fn connect(&self, index: usize) -> Result<Connection, ConnectError> {
        let stream = dial(&self.endpoints[index], self.tls.as_ref(), self.connect_timeout).await?;
        Ok(Connection::new(stream, index, self.response_timeout))
    }
}

/// One worker's way to Nova: connections stay with the worker that made them.
#[derive(Debug)]
pub(super) struct Upstream {
    nova: Arc<Nova>,
    idle: Vec<Pool>,
}

/// Idle connections to one endpoint, the last used at the end.
type Pool = Mutex<Vec<(Connection, Instant)>>;

impl Upstream {
    pub(super) fn new(nova: Arc<Nova>) -> Self {
        let idle = nova.endpoints.iter().map(|_| Pool::default()).collect();
        Self { nova, idle }
    }

    /// Sends what `build` makes for a host; returns when the head of the answer is there.
    ///
    /// A request that may be repeated, which has no body, goes over a pooled connection, and when that or its endpoint fails, to the next
    /// endpoint. Any other gets a new connection, since a pooled one may be dying, and is sent once.
    pub(super) async fn send(
        &self,
        method: &[u8],
        repeatable: bool,
        build: impl Fn(&str) -> Vec<u8>,
    ) -> Result<Answer, Refusal> {
        let started = tokio::time::Instant::now();
        let deadline = started + self.nova.response_timeout;
        let mut refusal = Refusal::Unreachable;
        for index in self.nova.order(started.into_std()) {
            let endpoint = &self.nova.endpoints[index];
            let request = build(&endpoint.address().authority());
            let mut pooled = if repeatable { self.take_idle(index) } else { None };
            loop {
                let is_new = pooled.is_none();
                let connection = match pooled.take() {
                    Some(connection) => connection,
                    None => match timeout_at(deadline, self.nova.connect(index)).await {
                        Ok(Ok(connection)) => connection,
                        Ok(Err(error)) => {
                            endpoint.failed(&error, Instant::now());
                            refusal = Refusal::Unreachable;
                            break;
                        }
                        Err(_) => {
                            endpoint.failed(&Broken::Late(self.nova.response_timeout), Instant::now());
                            return Err(refusal);
                        }
                    },
                };
                if is_new {
                    endpoint.connected();
                }
                let late = Err(Broken::Late(self.nova.response_timeout));
                match timeout_at(deadline, connection.exchange(&request, method)).await.unwrap_or(late) {
                    Ok(answer) => {
                        endpoint.answered();
                        return Ok(answer);
                    }
                    // It was closed while it was idle, as the request went out: that says nothing of the endpoint.
                    Err(Broken::Unanswered) if !is_new => {
                        debug!(nova = %endpoint, "a pooled connection was closed, making a new one");
                    }
                    Err(error) => {
                        endpoint.failed(&error, Instant::now());
                        refusal = Refusal::Broken;
                        if matches!(error, Broken::Late(_)) {
                            return Err(Refusal::Timeout);
                        }
                        if !repeatable {
                            return Err(refusal);
                        }
                        break;
                    }
                }
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
            let mut idle = lock(&self.idle[connection.endpoint]);
            if idle.len() < KEPT {
                idle.push((connection, Instant::now()));
            }
        }
    }

    fn take_idle(&self, index: usize) -> Option<Connection> {
        loop {
            let (mut connection, since) = lock(&self.idle[index]).pop()?;
            if since.elapsed() < IDLE && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Closes what was not used for a while.
    pub(super) fn sweep(&self) {
        for pool in &self.idle {
            lock(pool).retain_mut(|(connection, since)| since.elapsed() < IDLE && connection.is_quiet());
        }
    }
}

fn lock(pool: &Pool) -> std::sync::MutexGuard<'_, Vec<(Connection, Instant)>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}
