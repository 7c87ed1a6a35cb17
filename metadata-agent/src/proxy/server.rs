//! Accepts guests' connections, establishes who each is, and serves its requests.
use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metadata_ebpf::address::Tag;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    answer::{Body, Refusal},
    directory::{Directory, Identity, Port, Resolution, SignedIdentity, Sources},
    forward,
    upstream::Upstream,
};

/// What one guest may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a request waits for its guest to become known.
    pub hold: Duration,
    /// How long a guest may take to send a request's head.
    pub head: Duration,
    /// How long a guest may take to send a request's body.
    pub body: Duration,
    /// Bytes of a request's body; Nova takes 1020 for the password, the only body there is.
    pub body_bytes: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(8),
            head: Duration::from_secs(30),
            body: Duration::from_secs(30),
            body_bytes: 64 * 1024,
            head_bytes: 16 * 1024,
        }
    }
}

/// The guest-facing server.
pub struct Proxy {
    directory: Arc<Directory>,
    sources: Arc<dyn Sources>,
    upstream: Upstream,
    limits: Limits,
}

/// Who a connection belongs to, decided once, when it is accepted.
struct Caller {
    port: Arc<Port>,
    /// The address the guest used; for the log.
    source: Option<IpAddr>,
    /// Whether it came over IPv4.
    is_v4: bool,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Over the given directory, sources and upstream.
    pub fn new(
        directory: Arc<Directory>,
        sources: Arc<dyn Sources>,
        upstream: Upstream,
        limits: Limits,
    ) -> Self {
        Self { directory, sources, upstream, limits }
    }

    /// Serves the sockets until told to stop, and then ends when the requests under way have.
    pub async fn serve(self: Arc<Self>, listeners: Vec<TcpListener>, stop: CancellationToken) {
        let connections = TaskTracker::new();
        for listener in listeners {
            connections.spawn(self.clone().accept(listener, connections.clone(), stop.clone()));
        }
        connections.close();
        connections.wait().await;
    }

    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        connections: TaskTracker,
        stop: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Some(caller) = self.identify_caller(&stream, peer) {
                        connections.spawn(self.clone().connection(stream, caller, stop.clone()));
                    }
                }
                // Out of descriptors or memory, or a connection that died in the queue: others can still be served.
                Err(error) => {
                    warn!(%error, "cannot accept a guest's connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn identify_caller(&self, stream: &TcpStream, peer: SocketAddr) -> Option<Caller> {
        let tag = Tag::from_ip(peer.ip());
        let port = tag.and_then(|tag| self.directory.port(tag));
        if port.is_none() {
            // The port went away between the handshake and now: nobody is there to be answered.
            debug!(%peer, "connection of a port that is gone");
            abort(stream);
        }
        Some(Caller { port: port?, source: self.sources.source(tag?), is_v4: peer.is_ipv4() })
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, caller: Caller, stop: CancellationToken) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "cannot set TCP_NODELAY");
        }
        let caller = Arc::new(caller);
        let service = {
            let (proxy, caller) = (self.clone(), caller.clone());
            service_fn(move |request| {
                let (proxy, caller) = (proxy.clone(), caller.clone());
                async move { Ok::<_, Infallible>(proxy.request(request, &caller).await) }
            })
        };
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(self.limits.head_bytes)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        let mut stopping = false;
        loop {
            tokio::select! {
                result = &mut connection => {
                    if let Err(error) = result {
                        debug!(tap = %caller.port.tap, %error, "connection of a guest ended");
                    }
                    return;
                }
                () = caller.port.gone.cancelled() => break,
                () = stop.cancelled(), if !stopping => {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                    stopping = true;
                }
            }
        }
        abort(connection.into_parts().io.inner());
    }

    async fn request(&self, request: Request<Incoming>, caller: &Caller) -> Response<Body> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let (who, result, nova) = self.answer(&parts, body, caller).await;
        let (response, refusal) = match result {
            Ok(response) => (response, None),
            Err(refusal) => (refusal.clone().into_response(), Some(refusal)),
        };
        log(
            caller,
            who.as_deref().map(|who| &who.identity),
            &parts,
            response.status(),
            started.elapsed(),
            nova,
            refusal,
        );
        response
    }

    /// Who asked (if that is known), what they get, and how long Nova took.
    async fn answer(
        &self,
        parts: &request::Parts,
        body: Incoming,
        caller: &Caller,
    ) -> (Option<Arc<SignedIdentity>>, Result<Response<Body>, Refusal>, Option<Duration>) {
        let who = match self.identify(&caller.port).await {
            Ok(who) => who,
            Err(refusal) => return (None, Err(refusal), None),
        };
        let mut nova = None;
        let result = async {
            let path = forward::path(parts)?;
            let body = self.collect(body).await?;
            let request = forward::to_nova(parts, path, body, &who, caller.is_v4, self.upstream.target())
                .map_err(|_| Refusal::BadRequest("the request cannot be passed on"))?;
            let asked = Instant::now();
            let answer = self.upstream.send(request).await;
            nova = Some(asked.elapsed());
            let (mut head, body) = answer?.into_parts();
            forward::strip_hop_by_hop(&mut head.headers);
            head.version = http::Version::HTTP_11;
            Ok(Response::from_parts(head, body.boxed()))
        }
        .await;
        (Some(who), result, nova)
    }

    /// The identity behind a port, waited for if it is not known yet: to hold a request is the one answer that every
    /// boot client understands.
    async fn identify(&self, port: &Port) -> Result<Arc<SignedIdentity>, Refusal> {
        let mut resolution = port.resolution.clone();
        let resolved = resolution.wait_for(|resolution| !matches!(resolution, Resolution::Pending(_)));
        let resolution = match tokio::time::timeout(self.limits.hold, resolved).await {
            Ok(Ok(resolution)) => resolution.clone(),
            // Time is up, or the port is gone; the connection is closed in the latter case.
            Ok(Err(_)) | Err(_) => port.resolution.borrow().clone(),
        };
        match resolution {
            Resolution::Known(who) => Ok(who),
            Resolution::Pending(reason) => Err(Refusal::Unknown(reason.to_string())),
            Resolution::Conflict(reason) => Err(Refusal::Conflict(reason.to_string())),
        }
    }

    /// The whole body: nothing of a request goes to Nova before all of it is here.
    async fn collect(&self, body: Incoming) -> Result<Bytes, Refusal> {
        let limit = self.limits.body_bytes;
        match tokio::time::timeout(self.limits.body, Limited::new(body, limit).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge(limit)),
            Ok(Err(_)) => Err(Refusal::BadRequest("the request's body is cut short or malformed")),
            Err(_) => Err(Refusal::BadRequest("the request's body did not arrive in time")),
        }
    }
}

/// Closes without a farewell: with the port gone, segments still to be sent have nowhere to go.
fn abort(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        debug!(%error, "cannot reset a connection");
    }
}

/// One line for each request. Never headers, query strings or bodies: they hold secrets.
fn log(
    caller: &Caller,
    identity: Option<&Identity>,
    request: &request::Parts,
    status: StatusCode,
    total: Duration,
    nova: Option<Duration>,
    refusal: Option<Refusal>,
) {
    info!(
        target: "access",
        tap = %caller.port.tap,
        port = identity.map(|identity| identity.port.as_str()),
        network = identity.map(|identity| identity.network.as_str()),
        instance = identity.map(|identity| identity.instance.as_str()),
        project = identity.map(|identity| identity.project.as_str()),
        source = caller.source.map(tracing::field::display),
        method = %request.method,
        path = forward::path_class(request.uri.path()),
        status = status.as_u16(),
        ms = total.as_secs_f64() * 1e3,
        nova_ms = nova.map(|time| time.as_secs_f64() * 1e3),
        reason = refusal.as_ref().and_then(Refusal::reason),
        "request"
    );
}
