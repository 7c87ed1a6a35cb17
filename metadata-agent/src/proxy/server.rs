//! Accepts guests' connections, establishes who each is, and watches over them until they end.
use std::{
    io,
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener as StdListener},
    pin::pin,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use metadata_ebpf::address::Tag;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    time::{Instant, interval, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, warn};

use super::{
    access::Caller,
    answer::{Form, Refusal, Whom},
    closing::{LOOKS, farewell, farewell_without_seat, reset},
    connection::{Common, Connection, End},
    errand::{self, Errands},
    metrics::Metrics,
    pulse::{Heart, Pulses},
    seat::Seat,
    shares::Shares,
    shutdown::Shutdown,
    tick::Tick,
    turn::in_turns,
    upstream::{NovaClient, Upstream},
};
use crate::{
    config::Limits,
    directory::{Directory, Gauge, Limit, OpenConnection, PROBE_ANSWER, Phase, Port, Sources},
    link::{HANDSHAKE, ProbeReport},
    panics,
};

/// Grace period of requests under way when the agent stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Timeout of the last request of a connection that has lasted its time.
const OVERTIME: Duration = Duration::from_secs(60);
/// Interval at which a worker looks after its idle connections to Nova.
const SWEEP: Duration = Duration::from_secs(1);
/// Number of connections of a tap, beyond its limit, that are heard out at a time.
const TURNED_AWAY: u32 = 8;
/// Timeout of a connection that waits for its port to become known, and number of those that wait at a time: the news
/// of it comes from another process, and the guest's connection through the kernel.
const EARLY: (Duration, u32) = (Duration::from_millis(500), 256);
/// Buffers of the kernel's for a connection: received and not read, sent and not acknowledged. It counts twice as much, to
/// have room for what is around the bytes (socket(7)).
const BUFFERS: (usize, usize) = (16 << 10, 32 << 10);

/// The guest-facing half: what all workers share.
#[derive(Debug)]
pub struct Proxy {
    directory: Arc<Directory>,
    sources: Arc<dyn Sources>,
    limits: Limits,
    metrics: Metrics,
    shares: Arc<Shares>,
    /// Connections whose port is not known yet.
    early: Gauge,
    /// Requests of the agent's own.
    errands: Errands,
}

impl Proxy {
    /// Over the given directory and sources.
    pub fn new(
        directory: Arc<Directory>,
        sources: Arc<dyn Sources>,
        limits: Limits,
        metrics: Metrics,
    ) -> Self {
        let shares = Arc::new(Shares::new(directory.clone(), limits.clone(), metrics.clone()));
        let (early, errands) = (Gauge::default(), Errands::default());
        Self { directory, sources, limits, metrics, shares, early, errands }
    }

    /// Asks Nova once in the name of a port, as its guest would; the answer is for an operator.
    pub async fn ask(&self, port: Arc<Port>) -> ProbeReport {
        self.errands.ask(port).await
    }

    /// Warnings for operators, though nothing is missing.
    pub fn notes(&self) -> Vec<String> {
        self.shares.notes(std::time::Instant::now())
    }
}

/// Threads that serve. A connection stays with the worker that accepted it, and so does a connection to Nova while it is in
/// use: nothing that belongs to one request crosses from thread to thread.
#[derive(Debug)]
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts one for each set of listeners; gives their pulses too, which beat once they accept connections, from when
    /// `serving` is cancelled until `shutdown`.
    pub fn start(
        listeners: Vec<Vec<StdListener>>,
        proxy: &Arc<Proxy>,
        nova: &Arc<NovaClient>,
        serving: &CancellationToken,
        shutdown: &Shutdown,
    ) -> io::Result<(Self, Pulses)> {
        let mut pulses = Pulses::default();
        let (begun, have_begun) = mpsc::channel::<()>();
        let start = |(number, listeners)| {
            let upstream = Upstream::new(nova.clone(), number);
            let (tick, heart) = (Tick::default(), pulses.add());
            let worker = Worker { proxy: proxy.clone(), upstream, tick, heart, shutdown: shutdown.clone() };
            let serving = serving.clone();
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let begun = begun.clone();
            thread::Builder::new().name(format!("proxy-{number}")).spawn(move || {
                drop(begun);
                if let Err(error) = runtime.block_on(Arc::new(worker).serve(listeners, serving)) {
                    error!(%error, "cannot accept guests' connections");
                }
                // A name that is being looked up is not waited for.
                runtime.shutdown_background();
            })
        };
        let workers = listeners.into_iter().enumerate().map(start).collect::<io::Result<_>>()?;
        drop(begun);
        // A thread gives itself its name, which it may not once system calls are given up: nothing is sent, and all have begun.
        let _ = have_begun.recv();
        Ok((Self(workers), pulses))
    }

    /// True if all have ended.
    pub fn have_ended(&self) -> bool {
        self.0.iter().all(JoinHandle::is_finished)
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
    tick: Tick,
    heart: Heart,
    shutdown: Shutdown,
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
            () = self.shutdown.retire.cancelled() => return Ok(()),
        }
        let connections = TaskTracker::new();
        for listener in listeners {
            // Connections inherit it. Whoever had the socket before may have left it in another state.
            let socket = SockRef::from(&listener);
            socket.set_nonblocking(true)?;
            socket.set_linger(None)?;
            socket.set_recv_buffer_size(BUFFERS.0)?;
            socket.set_send_buffer_size(BUFFERS.1)?;
            // For those that we do not live to close.
            socket.set_tcp_user_timeout(Some(self.proxy.limits.pause))?;
            let listener = TcpListener::from_std(listener)?;
            connections.spawn(self.clone().accept(listener, connections.clone()));
        }
        let (mut sweep, mut errands) = (interval(SWEEP), self.proxy.errands.take());
        let ended = async {
            self.shutdown.retire.cancelled().await;
            connections.close();
            connections.wait().await;
        };
        let cut_off = async {
            self.shutdown.stop.cancelled().await;
            sleep(DRAIN).await;
        };
        let (mut ended, mut cut_off) = (pin!(ended), pin!(cut_off));
        let mut ticks = pin!(self.tick.run(LOOKS.0));
        loop {
            tokio::select! {
                _ = sweep.tick() => {
                    self.heart.beat();
                    self.upstream.sweep();
                }
                Some(errand) = errand::next(&mut errands) => {
                    let worker = self.clone();
                    connections.spawn(async move { errand::run(&worker.upstream, errand).await });
                }
                () = &mut ticks => {}
                () = &mut ended => return Ok(()),
                () = &mut cut_off => break,
            }
        }
        warn!(connections = connections.len(), "requests under way are cut off");
        Ok(())
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, connections: TaskTracker) {
        self.accept_until_stopped(&listener, &connections).await;
        if self.shutdown.is_outlived() {
            return;
        }
        // Connections that wait in the queue would be reset with the listener: they are served like those under way.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            // The standard library's way is an `ioctl`, which this process may not make.
            if SockRef::from(&stream).set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.clone().begin(stream, peer, &connections);
            }
        }
    }

    async fn accept_until_stopped(self: &Arc<Self>, listener: &TcpListener, connections: &TaskTracker) {
        let mut stopped = pin!(async {
            self.shutdown.retire.cancelled().await;
            if self.shutdown.is_outlived() {
                return;
            }
            // No handshake begins any more, which the other process has seen to.
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
        // The port went away between the handshake and now: nobody is there to be answered.
        let nobody = move |stream: &TcpStream| {
            debug!(%peer, "connection of a port that is gone");
            reset(stream);
        };
        let Some(tag) = Tag::from_ip(peer.ip()) else { return nobody(&stream) };
        if let Some(port) = self.proxy.directory.port(tag) {
            self.attend(stream, peer, tag, port, connections);
        } else if let Some(permit) = self.proxy.early.take(EARLY.1) {
            let tasks = connections.clone();
            connections.spawn(async move {
                let port = self.proxy.directory.port_soon(tag, EARLY.0).await;
                drop(permit);
                match port {
                    Some(port) => self.attend(stream, peer, tag, port, &tasks),
                    None => nobody(&stream),
                }
            });
        } else {
            nobody(&stream);
        }
    }

    fn attend(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tag: Tag,
        port: Arc<Port>,
        connections: &TaskTracker,
    ) {
        if let Some((stream, caller, seat)) = self.admit(stream, peer, tag, port, connections) {
            connections.spawn(self.converse(stream, caller, seat));
        }
    }

    /// The connection with its seat, if it may stay.
    fn admit(
        self: &Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        tag: Tag,
        port: Arc<Port>,
        tasks: &TaskTracker,
    ) -> Option<(TcpStream, Caller, Seat)> {
        let Proxy { sources, metrics, shares, .. } = &*self.proxy;
        if port.is_probe {
            // The path from a tap to here works, which is all it wants to know. The socket does not block.
            let _ = SockRef::from(&stream).send(PROBE_ANSWER);
            return None;
        }
        metrics.accepted.inc();
        match Seat::take(shares, &port.tap) {
            Ok(seat) => {
                let open = OpenConnection::new(sources.clone(), tag);
                let caller =
                    Caller { source: sources.source(tag), is_v4: peer.is_ipv4(), port, open: Some(open) };
                Some((stream, caller, seat))
            }
            Err(limit) => {
                metrics.limit(limit);
                port.tally.note_limited(limit, std::time::Instant::now());
                debug!(tap = %port.tap, limit = limit.name(), "connection refused");
                self.turn_away(&stream, limit, &port.id);
                match port.tap.turned_away.take(TURNED_AWAY) {
                    Some(permit) => {
                        let worker = self.clone();
                        drop(tasks.spawn(async move {
                            farewell_without_seat(&mut stream, &worker.tick).await;
                            drop(permit);
                        }));
                    }
                    // It may have had what was said; nothing may be left to the kernel.
                    None => reset(&stream),
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
        let socket = SockRef::from(stream);
        // A request that is here already would turn the close into a reset. Whether any of this succeeds is the guest's
        // affair; the sockets do not block.
        let _ = socket.recv(&mut [MaybeUninit::uninit(); 4096]);
        let _ = socket.send(&out);
    }

    async fn converse(self: Arc<Self>, mut stream: TcpStream, caller: Caller, seat: Seat) {
        let Proxy { limits, metrics, .. } = &*self.proxy;
        metrics.connections.inc();
        let deadline = Instant::now() + limits.lifetime;
        let shutdown = self.shutdown.child();
        let outlived = async {
            sleep_until(deadline).await;
            shutdown.stop();
            sleep_until(deadline + OVERTIME).await;
        };
        let interrupted = async {
            tokio::select! {
                biased;
                // With the port gone, segments still to be sent have nowhere to go.
                () = caller.port.gone.cancelled() => End::Broken,
                (limit, phase) = seat.evicted() => End::Evicted(limit, phase),
                () = outlived => End::Broken,
            }
        };
        // With a waker of its own it is looked at when it happens, and not whenever the connection is.
        let mut interruption = FuturesUnordered::from_iter([interrupted]);
        let end = {
            let common = Common { limits, metrics, upstream: &self.upstream, tick: &self.tick };
            let mut connection = Connection::new(&mut stream, &caller, common, &seat, &shutdown);
            let conversation = pin!(async {
                tokio::select! {
                    biased;
                    Some(end) = interruption.next() => end,
                    end = connection.serve() => end,
                }
            });
            in_turns(pin!(panics::bounded(conversation))).await.unwrap_or_else(|| {
                metrics.panics.inc();
                End::Broken
            })
        };
        match end {
            End::Closed | End::Unread => farewell(&mut stream, &seat, &self.tick, end == End::Unread).await,
            End::Broken => reset(&stream),
            End::Evicted(limit, phase) => {
                // Unless an answer has begun, which that would be taken for a part of.
                if matches!(phase, Phase::Reading | Phase::Waiting) {
                    self.turn_away(&stream, limit, &caller.port.id);
                }
                reset(&stream);
            }
        }
        metrics.connections.dec();
    }
}
