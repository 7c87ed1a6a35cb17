//! Requests of the agent's own to Nova in the name of a port, for an operator who wants to know how far one gets. They take
//! the way of a guest's: the signature of the port, a pooled connection if there is one, and the next endpoint.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http1::Request;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{forward, upstream::Upstream};
use crate::{
    directory::{Gauge, Permit, Port, Resolution},
    link::ProbeReport,
};

/// Request of an errand: every instance has an id, and it is no secret.
const REQUEST: &[u8] = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";
/// Errands that are run at a time.
const MOST: usize = 32;
/// Time that an errand may take, with all of the answer.
const LIMIT: Duration = Duration::from_secs(40);
/// Bytes of an answer that are read, to use its connection again.
const MOST_BYTES: usize = 4096;

/// An errand, its place among the others, and who waits for what comes of it.
type Errand = (Arc<Port>, Permit, oneshot::Sender<ProbeReport>);

/// Errands on their way to the worker that runs them.
#[derive(Debug)]
pub(super) struct Errands {
    sender: mpsc::Sender<Errand>,
    receiver: Mutex<Option<mpsc::Receiver<Errand>>>,
    running: Gauge,
}

impl Default for Errands {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MOST);
        Self { sender, receiver: Mutex::new(Some(receiver)), running: Gauge::default() }
    }
}

impl Errands {
    /// Those of a worker: of the first that asks.
    pub(super) fn take(&self) -> Option<mpsc::Receiver<Errand>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks Nova once in the name of that port.
    pub(super) async fn ask(&self, port: Arc<Port>) -> ProbeReport {
        let busy = || stopped("agent_busy", "too many of these are asked for at a time, or the agent stops");
        let (answer, answered) = oneshot::channel();
        let Some(permit) = self.running.take(MOST as u32) else { return busy() };
        match self.sender.try_send((port, permit, answer)) {
            Ok(()) => answered.await.unwrap_or_else(|_| busy()),
            Err(_) => busy(),
        }
    }
}

/// The next errand; never, for a worker that has none.
pub(super) async fn next(errands: &mut Option<mpsc::Receiver<Errand>>) -> Option<Errand> {
    match errands {
        Some(errands) => errands.recv().await,
        None => std::future::pending().await,
    }
}

/// Runs one.
pub(super) async fn run(upstream: &Upstream, (port, permit, answer): Errand) {
    let asked = Instant::now();
    let late = |_| stopped("nova_timeout", "nova's answer did not come to its end in time");
    let report = timeout(LIMIT, ask(upstream, &port)).await.unwrap_or_else(late);
    drop(permit);
    // Whoever asked may have lost patience.
    let _ = answer.send(ProbeReport { us: microseconds(asked.elapsed()), ..report });
}

async fn ask(upstream: &Upstream, port: &Port) -> ProbeReport {
    let who = match port.resolution() {
        Resolution::Known(who) => who,
        Resolution::Pending(reason) => return stopped("unknown", &reason),
        Resolution::Conflict(reason) => return stopped("conflict", &reason),
    };
    let Ok(request) = Request::parse(REQUEST, &[]) else {
        return stopped("malformed", "the agent's own request is none");
    };
    let build = |host: &str| forward::to_nova(&request, b"", &who, true, host);
    match upstream.send(&who, &port.tap, request.method, true, build).await {
        Ok(mut answer) => {
            let status = answer.head.status;
            let (mut body, mut is_more) = answer.first();
            while is_more && body.len() < MOST_BYTES {
                match answer.read(&mut body).await {
                    Ok(more) => is_more = more,
                    Err(error) => return stopped("nova_broken", &error.to_string()),
                }
            }
            if !is_more {
                upstream.give_back(answer, false);
            }
            ProbeReport { status: Some(status), us: 0, refusal: None, reason: None }
        }
        Err(refusal) => stopped(refusal.name(), &refusal.reason().unwrap_or_default()),
    }
}

fn stopped(refusal: &str, reason: &str) -> ProbeReport {
    ProbeReport { status: None, us: 0, refusal: Some(refusal.to_owned()), reason: Some(reason.to_owned()) }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
