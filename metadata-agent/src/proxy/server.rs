//! Accepts guests' connections, establishes who each is, and watches over them until they end.
use std::{
    io,
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr, TcpListener as StdListener},
    pin::pin,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::BytesMut;
use metadata_ebpf::address::Tag;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, warn};

use super::{
    access::Caller,
    answer::{Form, Limit, Refusal, Whom},
    connection::{Connection, End},
    directory::{Directory, Sources},
    handshake::{self, HANDSHAKE},
    limits::{Gauge, Limits, Permit},
    metrics::Metrics,
    receive::receive,
    upstream::{Nova, Upstream},
};

/// How long requests under way may take to end when the agent stops.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the last request of a connection that has lasted its time may take.
const OVERTIME: Duration = Duration::from_secs(60);
/// How often a worker looks after its idle connections to Nova.
const SWEEP: Duration = Duration::from_secs(1);
/// How long, and for how many bytes, a refused guest is heard out.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 1 << 18);
/// How many connections of a port, of those beyond its limit, are heard out at a time.
const TURNED_AWAY: u32 = 8;

/// The guest-facing half: what all workers share.
#[derive(Debug)]
pub struct Proxy {
    pub(super) directory: Arc<Directory>,
    pub(super) sources: Arc<dyn Sources>,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    pub(super) connections: Gauge,
    pub(super) requests: Gauge,
}

impl Proxy {
    /// Over the given directory and sources.
    pub fn new(
        directory: Arc<Directory>,
        sources: Arc<dyn Sources>,
        limits: Limits,
        metrics: Metrics,
    ) -> Self {
        Self {
            directory,
            sources,
            limits,
            metrics,
            connections: Gauge::default(),
            requests: Gauge::default(),
        }
    }
}

/// Threads that serve. A connection stays with the worker that accepted it, and so does its connection to Nova: nothing
/// that belongs to one request crosses from thread to thread.
#[derive(Debug)]
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts one for each set of listeners. They accept connections once `serving` is cancelled, until `stop` is.
    pub fn start(
        listeners: Vec<Vec<StdListener>>,
        proxy: &Arc<Proxy>,
        nova: &Arc<Nova>,
        serving: &CancellationToken,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        let count = listeners.len();
        let start = |(number, listeners)| {
            let upstream = Upstream::new(nova.clone(), count);
            let worker = Worker { proxy: proxy.clone(), upstream, stop: stop.clone() };
            let serving = serving.clone();
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            thread::Builder::new().name(format!("metadata-proxy-{number}")).spawn(move || {
                if let Err(error) = runtime.block_on(Arc::new(worker).serve(listeners, serving)) {
                    error!(%error, "cannot accept guests' connections");
                }
                // A name that is being looked up is not waited for.
                runtime.shutdown_background();
            })
        };
        Ok(Self(listeners.into_iter().enumerate().map(start).collect::<io::Result<_>>()?))
    }

    /// Waits until all have ended, which they do a few seconds after they were told to stop.
    pub fn join(self) {
        for worker in self.0 {
            if worker.join().is_err() {
                error!("a worker panicked");
            }
        }
    }
}

struct Worker {
    proxy: Arc<Proxy>,
    upstream: Upstream,
    stop: CancellationToken,
}

impl Worker {
    async fn serve(
        self: Arc<Self>,
        listeners: Vec<StdListener>,
        serving: CancellationToken,
    ) -> io::Result<()> {
        // Connections wait in the socket's queue until the ports are known: an early one would be nobody's.
        tokio::select! {
            () = serving.cancelled() => {}
            () = self.stop.cancelled() => return Ok(()),
        }
        let connections = TaskTracker::new();
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            connections.spawn(self.clone().accept(listener, connections.clone()));
        }
        let mut sweep = interval(SWEEP);
        loop {
            tokio::select! {
                _ = sweep.tick() => self.upstream.sweep(),
                () = self.stop.cancelled() => break,
            }
        }
        connections.close();
        if timeout(DRAIN, connections.wait()).await.is_err() {
            warn!(connections = connections.len(), "requests under way are cut off");
        }
        Ok(())
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, connections: TaskTracker) {
        self.accept_until_stopped(&listener, &connections).await;
        // Connections that wait in the queue would be reset with the listener: they are served like those under way.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.clone().begin(stream, peer, &connections);
            }
        }
    }

    async fn accept_until_stopped(self: &Arc<Self>, listener: &TcpListener, connections: &TaskTracker) {
        let mut stopped = pin!(async {
            self.stop.cancelled().await;
            if let Err(error) = handshake::begin_none(&SockRef::from(listener)) {
                warn!(%error, "guests that connect just now are refused");
            }
            sleep(HANDSHAKE).await;
        });
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stopped => return,
            };
            match accepted {
                Ok((stream, peer)) => self.clone().begin(stream, peer, connections),
                // Out of descriptors or memory, or a connection that died in the queue: others can still be served.
                Err(error) => {
                    warn!(%error, "cannot accept a guest's connection");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn begin(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, connections: &TaskTracker) {
        if let Some((stream, caller, permits)) = self.admit(stream, peer, connections) {
            connections.spawn(self.converse(stream, caller, permits));
        }
    }

    /// Whose connection it is, and whether it may stay.
    fn admit(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        tasks: &TaskTracker,
    ) -> Option<(TcpStream, Caller, [Permit; 2])> {
        let Proxy { directory, sources, limits, metrics, connections, .. } = &*self.proxy;
        let tag = Tag::from_ip(peer.ip());
        let Some((tag, port)) = tag.and_then(|tag| Some((tag, directory.port(tag)?))) else {
            // The port went away between the handshake and now: nobody is there to be answered.
            debug!(%peer, "connection of a port that is gone");
            reset(&stream);
            return None;
        };
        metrics.accepted.inc();
        let of_port = port.usage.connections.take(limits.port_connections);
        let of_all = connections.take(limits.connections);
        match (of_port, of_all) {
            (Some(of_port), Some(of_all)) => {
                let caller = Caller { source: sources.source(tag), is_v4: peer.is_ipv4(), port };
                Some((stream, caller, [of_port, of_all]))
            }
            (of_port, _) => {
                let limit = if of_port.is_none() { Limit::PortConnections } else { Limit::Connections };
                metrics.limit(limit);
                debug!(tap = %port.tap, limit = limit.name(), "connection refused");
                self.turn_away(&stream, limit, &port.id);
                // With nobody to hear it out, a request on its way would turn the answer into a reset.
                if let Some(permit) = port.usage.turned_away.take(TURNED_AWAY) {
                    tasks.spawn(async move {
                        linger(&mut stream).await;
                        drop(permit);
                    });
                }
                None
            }
        }
    }

    /// Says why, without waiting for anything.
    fn turn_away(&self, stream: &TcpStream, limit: Limit, port: &str) {
        let mut out = Vec::new();
        let refusal = Refusal::Limited { limit, wait: Duration::ZERO };
        refusal.write(Whom { port, identity: None }, Form::LAST, &self.proxy.limits, &mut out);
        let socket = socket(stream);
        // A request that is here already would turn the close into a reset. Whether any of this succeeds is the guest's
        // affair; the sockets do not block.
        let _ = socket.recv(&mut [MaybeUninit::uninit(); 4096]);
        let _ = socket.send(&out);
    }

    async fn converse(self: Arc<Self>, mut stream: TcpStream, caller: Caller, _permits: [Permit; 2]) {
        let metrics = &self.proxy.metrics;
        metrics.connections.inc();
        let deadline = Instant::now() + self.proxy.limits.lifetime;
        let stop = self.stop.child_token();
        let outlived = async {
            sleep_until(deadline).await;
            stop.cancel();
            sleep_until(deadline + OVERTIME).await;
        };
        let end = {
            let mut connection = Connection::new(&mut stream, &caller, &self.proxy, &self.upstream, &stop);
            tokio::select! {
                biased;
                // With the port gone, segments still to be sent have nowhere to go.
                () = caller.port.gone.cancelled() => End::Broken,
                end = connection.serve() => end,
                () = outlived => End::Broken,
            }
        };
        match end {
            // What came after the last request may be here already.
            End::Closed if !has_unread(&stream) => {}
            End::Closed | End::Unread => linger(&mut stream).await,
            End::Broken => reset(&stream),
        }
        metrics.connections.dec();
    }
}

/// Closes without a farewell.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        debug!(%error, "cannot reset a connection");
    }
}

/// Whether something was received that nobody read, which would turn a close into a reset.
fn has_unread(stream: &TcpStream) -> bool {
    // The socket does not block.
    matches!(socket(stream).peek(&mut [MaybeUninit::uninit(); 1]), Ok(1..))
}

/// Ends our side, and reads what still comes for a while.
async fn linger(stream: &mut TcpStream) {
    if socket(stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let (time, most) = LINGER;
    let drain = async {
        let mut read = 0;
        while read < most {
            let mut received = BytesMut::new();
            match receive(stream, &mut received).await {
                Ok(0) | Err(_) => return,
                Ok(length) => read += length,
            }
        }
    };
    // Either way it was heard long enough.
    let _ = timeout(time, drain).await;
}

fn socket(stream: &TcpStream) -> SockRef<'_> {
    SockRef::from(stream)
}
