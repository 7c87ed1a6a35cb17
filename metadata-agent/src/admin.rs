//! The admin interface: HTTP on a unix socket in the run directory, and on a TCP port for those who want one. The port
//! serves what a monitoring system asks, `/ready` and `/metrics`: nothing that changes something, and nothing about tenants.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /ready` | 200, or 503 and what is missing, one item a line |
//! | `GET /ports` | the ports and who is behind each, JSON |
//! | `GET /counters` | what the datapath counted, JSON |
//! | `GET /explain` | the node, and each port that something is wrong with, stage by stage, JSON |
//! | `GET /explain?what=WORD` | the ports that a tap, a port's id, an instance or an address means; with `&probe=1` Nova is asked once in their names |
//! | `GET /top` | numbers of each port, and what is missing, JSON |
//! | `GET /watch` | requests and dropped frames as they happen, a line of JSON for each, until the connection ends; with `?port=WORD` those of one tap or port |
//! | `GET /metrics` | all numbers, in Prometheus' text format (OpenMetrics) |
//! | `PUT /log?level=FILTER` | sets what is logged, as in `RUST_LOG` |
//! | `PUT /leave` | ends the agent for good: new connections pass, those under way are served |
//! | `PUT /log?datapath=on` | logs a line for each frame that is ours, for a minute; with `&port=WORD` of one port (or tap, or instance), with `&seconds=N` for so long |
//! | `PUT /log?datapath=off` | logs none any more |
#![forbid(unsafe_code)]
mod question;

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use tracing::{debug, warn};

use self::question::question;
pub use self::question::{FramesWanted, Question};
use crate::watchers::Watchers;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "admin.sock";

/// Connections to the socket, and to the port: guests have the descriptors.
const MOST_CONNECTIONS: usize = 32;

/// The control plane's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminAnswer {
    /// Status of the response.
    pub status: StatusCode,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Body of the response.
    pub text: String,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const JSON_LINES: &str = "application/jsonl";
/// Prometheus tells its two formats apart by this.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl AdminAnswer {
    /// 200, for people.
    pub fn ok(text: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: TEXT, text: text.into() }
    }

    /// 200, for programs.
    pub fn json(value: &serde_json::Value) -> Self {
        Self { content_type: JSON, ..Self::ok(format!("{value:#}\n")) }
    }

    /// 200, for Prometheus.
    pub fn metrics(text: String) -> Self {
        Self { content_type: OPEN_METRICS, ..Self::ok(text) }
    }

    /// Another status.
    pub fn error(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, ..Self::ok(text) }
    }
}

/// A question and where its answer goes.
pub type PendingQuestion = (Question, oneshot::Sender<AdminAnswer>);

/// The interface.
#[derive(Debug)]
pub struct Admin {
    run_dir: PathBuf,
    tcp: Option<SocketAddr>,
    questions: mpsc::Receiver<PendingQuestion>,
    watchers: Watchers,
    listening: Vec<JoinHandle<()>>,
}

impl Admin {
    /// Binds the socket, in place of one that a former agent left, and the TCP port if there is to be one; serves them on
    /// the current runtime.
    pub fn serve(run_dir: &Path, tcp: Option<SocketAddr>, watchers: Watchers) -> anyhow::Result<Self> {
        let (questions, listening) = listen(run_dir, tcp, &watchers)?;
        Ok(Self { run_dir: run_dir.to_owned(), tcp, questions, watchers, listening })
    }

    /// The next question. May be cancelled.
    pub async fn question(&mut self) -> PendingQuestion {
        match self.questions.recv().await {
            Some(exchange) => exchange,
            None => std::future::pending().await,
        }
    }

    /// Leaves both to another agent.
    pub async fn close(&mut self) {
        for listening in self.listening.drain(..) {
            listening.abort();
            // What was aborted is an error.
            let _ = listening.await;
        }
    }

    /// True if somebody listens.
    pub fn is_open(&self) -> bool {
        !self.listening.is_empty()
    }

    /// Takes both back.
    pub fn reopen(&mut self) -> anyhow::Result<()> {
        (self.questions, self.listening) = listen(&self.run_dir, self.tcp, &self.watchers)?;
        Ok(())
    }
}

type Listening = (mpsc::Receiver<PendingQuestion>, Vec<JoinHandle<()>>);

fn listen(run_dir: &Path, tcp: Option<SocketAddr>, watchers: &Watchers) -> anyhow::Result<Listening> {
    let path = run_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let (sender, receiver) = mpsc::channel(16);
    let asked = |sender| Asked { control: sender, watchers: watchers.clone() };
    let mut listening = Vec::new();
    if let Some(address) = tcp {
        let listener = bind(address, address.port())?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        if address.ip().is_unspecified() {
            warn!(%address, "admin_listen is every address of this host: whoever reaches one, guests too, can read the numbers");
        }
        let sender = sender.clone();
        let next = async move || Ok(listener.accept().await?.0);
        listening.push(tokio::spawn(accept(asked(sender), Access::Monitoring, next)));
    }
    let listener = private_socket(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
    let next = async move || Ok(listener.accept().await?.0);
    listening.push(tokio::spawn(accept(asked(sender), Access::All, next)));
    Ok((receiver, listening))
}

fn bind(address: SocketAddr, port: u16) -> anyhow::Result<StdTcpListener> {
    StdTcpListener::bind(SocketAddr::new(address.ip(), port))
        .with_context(|| format!("cannot listen at admin_listen = {address}"))
}

/// Checks that `admin_listen` names an address of this host. The port may be in use by a running agent.
pub fn check_address(address: SocketAddr) -> anyhow::Result<()> {
    bind(address, 0).map(drop)
}

/// A socket for nobody else. A socket's mode before it is bound is the one that its file gets, so that nothing has to be
/// changed through a path, which may lead elsewhere by then.
fn private_socket(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(128)?;
    UnixListener::from_std(socket.into())
}

/// Authorization of a listener: the questions that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Monitoring,
    All,
}

impl Access {
    fn allows(self, question: &Question) -> bool {
        self == Self::All || matches!(question, Question::Ready | Question::Metrics)
    }
}

/// Parts of the agent that answer.
#[derive(Debug, Clone)]
struct Asked {
    control: mpsc::Sender<PendingQuestion>,
    watchers: Watchers,
}

/// A body that is there, or one that goes on.
type Body = BoxBody<Bytes, Infallible>;

async fn accept<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    control: Asked,
    access: Access,
    next: impl AsyncFn() -> io::Result<S>,
) {
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        // Nobody closes it.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match next().await {
            Ok(stream) => {
                let control = control.clone();
                let service = service_fn(move |request| {
                    let control = control.clone();
                    async move { Ok::<_, Infallible>(respond(request, access, &control).await) }
                });
                tokio::spawn(async move {
                    let mut http = http1::Builder::new();
                    // Without a clock, whoever says nothing would be waited for, for ever.
                    http.timer(TokioTimer::new());
                    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                        debug!(%error, "admin connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn respond(request: Request<Incoming>, access: Access, asked: &Asked) -> Response<Body> {
    let control = &asked.control;
    let answer = match question(request.method(), request.uri().path(), request.uri().query()) {
        Ok(question) if !access.allows(&question) => AdminAnswer::error(
            StatusCode::FORBIDDEN,
            "here are /ready and /metrics; everything else is on the socket in the run directory\n",
        ),
        Ok(Question::Watch { of }) => match asked.watchers.subscribe(of) {
            Some(lines) => return watched(lines),
            None => AdminAnswer::error(StatusCode::SERVICE_UNAVAILABLE, "too many watch already\n"),
        },
        Ok(question) => {
            let (sender, answer) = oneshot::channel();
            let stopping = || AdminAnswer::error(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n");
            match control.send((question, sender)).await {
                Ok(()) => answer.await.unwrap_or_else(|_| stopping()),
                Err(_) => stopping(),
            }
        }
        Err(answer) => answer,
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.text)).boxed());
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}

/// Lines, as they come, for as long as somebody reads them.
fn watched(lines: mpsc::Receiver<Bytes>) -> Response<Body> {
    let lines = stream::unfold(lines, async |mut lines| {
        let line = lines.recv().await?;
        Some((Ok(Frame::data(line)), lines))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON_LINES));
    response
}
