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
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
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

use crate::watchers::Watchers;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "admin.sock";

/// Connections to the socket, and to the port: guests have the descriptors.
const MOST_CONNECTIONS: usize = 32;

/// A question of an operator's to the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The problems in the way of serving guests.
    Ready,
    /// The ports.
    Ports,
    /// The counters.
    Counters,
    /// All numbers.
    Metrics,
    /// The reason for which guests get their answers or not.
    Explain {
        /// A tap, or the id of a port or an instance, or an address; nothing for all that is wrong.
        what: Option<String>,
        /// True if Nova is to be asked once in the port's name.
        probe: bool,
    },
    /// Set the log filter.
    LogLevel(String),
    /// Numbers of each port.
    Top,
    /// Requests and dropped frames as they happen. The control plane is not asked.
    Watch {
        /// Of a tap or a port; everything without.
        of: Option<String>,
    },
    /// Log frames, or none any more.
    LogDatapath(Option<FramesWanted>),
    /// End for good.
    Leave,
}

/// Frames that are to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramesWanted {
    /// A tap, or the id of a port or an instance, whose frames are logged; `None` for those of all.
    pub of: Option<String>,
    /// Seconds for which frames are logged.
    pub seconds: u64,
}

/// The control plane's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
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

impl Answer {
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
pub type Exchange = (Question, oneshot::Sender<Answer>);

/// The interface.
#[derive(Debug)]
pub struct Admin {
    run_dir: PathBuf,
    tcp: Option<SocketAddr>,
    questions: mpsc::Receiver<Exchange>,
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
    pub async fn question(&mut self) -> Exchange {
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

type Listening = (mpsc::Receiver<Exchange>, Vec<JoinHandle<()>>);

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
    control: mpsc::Sender<Exchange>,
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
        Ok(question) if !access.allows(&question) => Answer::error(
            StatusCode::FORBIDDEN,
            "here are /ready and /metrics; everything else is on the socket in the run directory\n",
        ),
        Ok(Question::Watch { of }) => match asked.watchers.subscribe(of) {
            Some(lines) => return watched(lines),
            None => Answer::error(StatusCode::SERVICE_UNAVAILABLE, "too many watch already\n"),
        },
        Ok(question) => {
            let (sender, answer) = oneshot::channel();
            let stopping = || Answer::error(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n");
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

fn question(method: &Method, path: &str, query: Option<&str>) -> Result<Question, Answer> {
    match (method, path, query) {
        (&Method::GET, "/ready", _) => Ok(Question::Ready),
        (&Method::GET, "/ports", _) => Ok(Question::Ports),
        (&Method::GET, "/counters", _) => Ok(Question::Counters),
        (&Method::GET, "/metrics", _) => Ok(Question::Metrics),
        (&Method::GET, "/top", _) => Ok(Question::Top),
        (&Method::GET, "/watch", _) => watch(query.unwrap_or_default()),
        (&Method::GET, "/explain", _) => explain(query.unwrap_or_default()),
        (&Method::PUT, "/log", _) => log(query.unwrap_or_default()),
        (&Method::PUT, "/leave", None) => Ok(Question::Leave),
        (_, "/leave", _) => Err(Answer::error(StatusCode::METHOD_NOT_ALLOWED, "PUT /leave ends the agent\n")),
        (_, "/log", _) => Err(Answer::error(StatusCode::METHOD_NOT_ALLOWED, LOG)),
        (_, "/ready" | "/ports" | "/counters" | "/metrics" | "/explain" | "/top" | "/watch", _) => {
            Err(Answer::error(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n"))
        }
        _ => Err(Answer::error(
            StatusCode::NOT_FOUND,
            "there are /ready, /ports, /counters, /metrics, /explain, /top, /watch, /log and /leave\n",
        )),
    }
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

const LOG: &str = "PUT /log?level=FILTER, or PUT /log?datapath=on with &port=WORD and &seconds=N if wanted, or \
                   PUT /log?datapath=off\n";
/// Seconds for which frames are logged where nobody says otherwise, and the most of them: what is forgotten ends.
const SECONDS: u64 = 60;
const MOST_SECONDS: u64 = 86_400;

fn log(query: &str) -> Result<Question, Answer> {
    let wrong = || Answer::error(StatusCode::BAD_REQUEST, LOG);
    let arguments: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    match arguments.as_slice() {
        [(name, filter)] if name == "level" && !filter.is_empty() => {
            Ok(Question::LogLevel(filter.clone().into_owned()))
        }
        [(name, value)] if name == "datapath" && value == "off" => Ok(Question::LogDatapath(None)),
        [(name, value), more @ ..] if name == "datapath" && value == "on" => {
            let mut wanted = FramesWanted { of: None, seconds: SECONDS };
            for (name, value) in more {
                match &**name {
                    "port" => wanted.of = Some(value.clone().into_owned()),
                    "seconds" => {
                        let seconds =
                            value.parse().ok().filter(|seconds| (1..=MOST_SECONDS).contains(seconds));
                        wanted.seconds = seconds.ok_or_else(|| {
                            Answer::error(
                                StatusCode::BAD_REQUEST,
                                format!("seconds are 1 to {MOST_SECONDS}\n"),
                            )
                        })?;
                    }
                    _ => return Err(wrong()),
                }
            }
            Ok(Question::LogDatapath(Some(wanted)))
        }
        _ => Err(wrong()),
    }
}

fn watch(query: &str) -> Result<Question, Answer> {
    let arguments: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    match arguments.as_slice() {
        [] => Ok(Question::Watch { of: None }),
        [(name, of)] if name == "port" && !of.is_empty() => {
            Ok(Question::Watch { of: Some(of.clone().into_owned()) })
        }
        _ => Err(Answer::error(StatusCode::BAD_REQUEST, "GET /watch, with port=WORD if wanted\n")),
    }
}

fn explain(query: &str) -> Result<Question, Answer> {
    let (mut what, mut probe) = (None, false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match (&*name, &*value) {
            ("what", value) if !value.is_empty() => what = Some(value.to_owned()),
            ("probe", "1") => probe = true,
            _ => {
                let text = "GET /explain, with what=WORD and probe=1 if wanted\n";
                return Err(Answer::error(StatusCode::BAD_REQUEST, text));
            }
        }
    }
    Ok(Question::Explain { what, probe })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let ask = |method: &str, path, query| question(&method.parse().unwrap(), path, query);
        assert_eq!(ask("GET", "/ports", None), Ok(Question::Ports));
        assert_eq!(
            ask("PUT", "/log", Some("level=debug,hyper=info")),
            Ok(Question::LogLevel("debug,hyper=info".into()))
        );
        let frames = |of: Option<&str>, seconds| {
            Question::LogDatapath(Some(FramesWanted { of: of.map(str::to_owned), seconds }))
        };
        assert_eq!(ask("PUT", "/log", Some("datapath=on")), Ok(frames(None, SECONDS)));
        assert_eq!(ask("PUT", "/log", Some("datapath=on&port=tap0&seconds=5")), Ok(frames(Some("tap0"), 5)));
        assert_eq!(ask("PUT", "/log", Some("datapath=off")), Ok(Question::LogDatapath(None)));
        for wrong in ["datapath=on&seconds=0", "datapath=on&seconds=x", "datapath=on&x=1", "", "level"] {
            let status = ask("PUT", "/log", Some(wrong)).map_err(|answer| answer.status);
            assert_eq!(status, Err(StatusCode::BAD_REQUEST), "{wrong}");
        }
        assert_eq!(ask("PUT", "/log", Some("datapath=1")).unwrap_err().status, StatusCode::BAD_REQUEST);
        let explained =
            |what: Option<&str>, probe| Question::Explain { what: what.map(str::to_owned), probe };
        assert_eq!(ask("GET", "/explain", None), Ok(explained(None, false)));
        assert_eq!(
            ask("GET", "/explain", Some("what=fd00%3A%3A5&probe=1")),
            Ok(explained(Some("fd00::5"), true))
        );
        assert_eq!(ask("GET", "/explain", Some("port=x")).unwrap_err().status, StatusCode::BAD_REQUEST);
        assert_eq!(ask("PUT", "/leave", None), Ok(Question::Leave));
        assert_eq!(ask("GET", "/leave", None).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask("POST", "/ports", None).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask("GET", "/", None).unwrap_err().status, StatusCode::NOT_FOUND);
    }
}
