//! A stand-in for nova-metadata: the same checks and texts, sample data, and a record of every request.

mod instance;

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aws_lc_rs::hmac;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use instance::Instance;
pub use instance::{key_name, public_key, vendor_data};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    time::sleep,
};

use crate::{netns::Namespace, port::Port};

pub const SECRET: &str = "the secret of this cloud";
pub const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8775);

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Bytes,
}

impl Recorded {
    /// All values of one header.
    pub fn header(&self, name: &str) -> Vec<String> {
        let values = self.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(name));
        values.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }
}

/// A server that takes its time, and answers no more than so many requests at once.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub answer: Duration,
    pub workers: usize,
}

/// An answer given in place of Nova's own, to properly signed requests.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: Bytes,
}

#[derive(Debug, Default)]
struct State {
    instances: HashMap<String, Instance>,
    answers: HashMap<String, Answer>,
    requests: Vec<Recorded>,
    /// Time that an answer takes, and the permits to work on one.
    pace: Option<(Duration, Arc<Semaphore>)>,
}

/// Reason for which a request is not served.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    explanation: String,
}

/// The server, on a thread of its own that lives in the chassis' namespace.
#[derive(Debug)]
pub struct Nova {
    state: Arc<Mutex<State>>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Nova {
    pub fn start(host: &Namespace) -> Result<Self> {
        let mut nova = Self { state: Arc::default(), running: None };
        nova.resume(host)?;
        Ok(nova)
    }

    /// Closes the listener and every connection.
    pub fn pause(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            // Whether it is still there to hear it does not matter: it is waited for.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// Serves again after a pause.
    pub fn resume(&mut self, host: &Namespace) -> Result<()> {
        let listener = host.listen(ADDRESS)?;
        let state = self.state.clone();
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let thread = thread::Builder::new().name("nova".to_owned()).spawn(move || {
            let served = serve(listener, state, &ready, stopped);
            let _ = ready.send(served);
        })?;
        started.recv().context("nova's thread ended")??;
        self.running = Some((stop, thread));
        Ok(())
    }

    /// Makes the port's instance known.
    pub fn add_instance(&self, port: &Port) {
        self.state().instances.insert(port.instance.clone(), Instance::new(port));
    }

    pub fn set_user_data(&self, port: &Port, user_data: impl Into<Bytes>) {
        if let Some(instance) = self.state().instances.get_mut(&port.instance) {
            instance.user_data = Some(user_data.into());
        }
    }

    /// Password that the instance has stored.
    pub fn password(&self, port: &Port) -> Bytes {
        self.state()
            .instances
            .get(&port.instance)
            .map(|instance| instance.password.clone())
            .unwrap_or_default()
    }

    /// Answers one target in another way than Nova would.
    pub fn answer(&self, target: &str, answer: Answer) {
        self.state().answers.insert(target.to_owned(), answer);
    }

    /// Answers at that pace from now on, or as fast as it can.
    pub fn set_pace(&self, pace: Option<Pace>) {
        self.state().pace = pace.map(|Pace { answer, workers }| (answer, Arc::new(Semaphore::new(workers))));
    }

    /// The requests since this was last called.
    pub fn take_requests(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Nova {
    fn drop(&mut self) {
        self.pause();
    }
}

/// The identifier by which EC2's part of the interface calls an instance.
pub fn ec2_id(instance: &str) -> String {
    format!("i-{}", &instance[..8])
}

/// `X-Instance-ID-Signature` for an instance.
pub fn signature(instance: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = hmac::sign(&key, instance.as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Dropping the runtime at the end closes what is still open. To listen is ended as well: a child that another thread forks just
/// then has the socket for a moment longer.
fn serve(
    listener: std::net::TcpListener,
    state: Arc<Mutex<State>>,
    ready: &mpsc::Sender<Result<()>>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listening = listener.try_clone()?;
    let listener = runtime.block_on(async { TcpListener::from_std(listener) })?;
    runtime.spawn(accept(listener, state));
    let _ = ready.send(Ok(()));
    let _ = runtime.block_on(stopped);
    Ok(shutdown(listening.as_raw_fd(), Shutdown::Both)?)
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| handle(state.clone(), request));
        tokio::spawn(async move {
            // A peer that goes away in the middle is the peer's affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn handle(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return Ok(Refusal::new(StatusCode::BAD_REQUEST, "The body was not complete.").response());
    };
    let pace = state.lock().unwrap_or_else(PoisonError::into_inner).pace.clone();
    if let Some((answer, workers)) = &pace {
        // They are never closed.
        let _worker = workers.acquire().await;
        sleep(*answer).await;
    }
    let target = parts.uri.to_string();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.requests.push(Recorded {
        method: parts.method.to_string(),
        target: target.clone(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_bytes().into()))
            .collect(),
        body: body.clone(),
    });
    if parts.uri.path() == "/" {
        let headers = [("content-type", "text/plain; charset=UTF-8")];
        return Ok(answer(200, &headers, instance::ec2_versions().into()));
    }
    let id = match authenticate(&state, &parts.headers) {
        Ok(id) => id,
        Err(refusal) => return Ok(refusal.response()),
    };
    if let Some(Answer { status, headers, body }) = state.answers.get(&target) {
        return Ok(answer(*status, headers, body.clone()));
    }
    let Some(instance) = state.instances.get_mut(&id) else { return Ok(Refusal::not_found().response()) };
    let answered = instance.answer(&parts.method, parts.uri.path(), &body);
    Ok(answered.unwrap_or_else(|refusal| refusal.response()))
}

/// The checks of nova's handler in their order; the id of the instance when they pass.
fn authenticate(state: &State, headers: &HeaderMap) -> Result<String, Refusal> {
    let forbidden = || Refusal::new(StatusCode::FORBIDDEN, "Invalid proxy request signature.");
    let value = |name: &str| {
        let value = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let missing =
            || Refusal::new(StatusCode::BAD_REQUEST, &format!("{name} header is missing from request."));
        value.ok_or_else(missing)
    };
    // A guest that could send this one would be taken for a load balancer.
    if headers.contains_key("X-Metadata-Provider") {
        return Err(forbidden());
    }
    let names = ["X-Instance-ID", "X-Instance-ID-Signature", "X-Tenant-ID"];
    let [id, given, tenant] = [value(names[0])?, value(names[1])?, value(names[2])?];
    let repeated = names.iter().any(|name| headers.get_all(*name).iter().count() > 1);
    if repeated || given != signature(&id) {
        return Err(forbidden());
    }
    match state.instances.get(&id) {
        Some(instance) if instance.project() == tenant => Ok(id),
        _ => Err(Refusal::not_found()),
    }
}

impl Refusal {
    fn new(status: StatusCode, explanation: &str) -> Self {
        Self { status, explanation: explanation.to_owned() }
    }

    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "The resource could not be found.")
    }

    /// The page that nova's framework makes of it.
    fn response(&self) -> Response<Full<Bytes>> {
        let Self { status, explanation } = self;
        let page = format!(
            "<html>\n <head>\n  <title>{status}</title>\n </head>\n <body>\n  <h1>{status}</h1>\n  \
             {explanation}<br /><br />\n\n\n\n </body>\n</html>"
        );
        answer(status.as_u16(), &[("content-type", "text/html; charset=UTF-8")], page.into())
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: Bytes) -> Response<Full<Bytes>> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    // Only a test's own script can be wrong here, and then the test shall see that.
    builder.body(Full::new(body)).unwrap_or_else(|error| {
        let mut response = Response::new(Full::new(error.to_string().into()));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}
