//! The load: connections of one guest that ask again as soon as they are answered, all driven by one thread.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket},
};

use crate::netns::Namespace;

const KEEP_ALIVE: &[u8] = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";
const CLOSE: &[u8] =
    b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n";
/// After which the agent keeps no connection to Nova.
const OPTIONS: &[u8] = b"OPTIONS /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";
/// Whoever is silent for longer has failed.
const SILENCE: u16 = 10_000;

/// Mode of a connection: the requests that it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    KeepAlive,
    /// The same, each of them this one.
    KeepAliveWith(&'static [u8]),
    /// Many, for each of which the agent needs a new connection to Nova.
    Unpooled,
    /// One, and the other side closes it.
    Close,
}

#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub connections: usize,
    pub mode: Mode,
}

/// Measured requests and times.
#[derive(Debug)]
pub struct Measured {
    /// Requests with a whole answer of status 200.
    pub requests: usize,
    /// Requests with another answer, or none.
    pub failed: usize,
    pub elapsed: Duration,
    /// From the request, or the connection if there is one for each, to the end of the answer; in order.
    times: Vec<Duration>,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// In microseconds; nothing if no request had its answer.
    pub fn percentile(&self, percent: usize) -> f64 {
        self.times.get(self.times.len() * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

/// Makes the load for that long. Every answer must be a whole 200.
pub fn run(from: &Namespace, to: SocketAddrV4, load: Load, time: Duration) -> Result<Measured> {
    from.run(|| drive(to, load, time, Failures::EndIt))?.with_context(|| format!("{load:?} on {to}"))
}

/// The same where answers may be others: they are counted, and asked for again on a new connection.
pub fn run_counting(from: &Namespace, to: SocketAddrV4, load: Load, time: Duration) -> Result<Measured> {
    from.run(|| drive(to, load, time, Failures::Count))?.with_context(|| format!("{load:?} on {to}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failures {
    EndIt,
    Count,
}

fn drive(to: SocketAddrV4, load: Load, time: Duration, failures: Failures) -> Result<Measured> {
    let mut exchanges =
        (0..load.connections).map(|_| Exchange::open(to, load.mode)).collect::<Result<Vec<_>>>()?;
    let (mut times, mut failed) = (Vec::new(), 0);
    let started = Instant::now();
    while started.elapsed() < time {
        let mut waiting: Vec<_> = exchanges.iter().map(Exchange::waits_for).collect();
        ensure!(poll(&mut waiting, PollTimeout::from(SILENCE))? > 0, "no answer in time");
        let ready: Vec<_> = waiting.iter().map(|entry| entry.any().unwrap_or(false)).collect();
        for (exchange, _) in exchanges.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            match exchange.proceed() {
                Ok(None) => {}
                Ok(Some(time)) => {
                    times.push(time);
                    match load.mode {
                        Mode::KeepAlive | Mode::KeepAliveWith(_) | Mode::Unpooled => exchange.ask()?,
                        Mode::Close => *exchange = Exchange::open(to, load.mode)?,
                    }
                }
                Err(error) if failures == Failures::EndIt => return Err(error),
                Err(_) => {
                    failed += 1;
                    *exchange = Exchange::open(to, load.mode)?;
                }
            }
        }
    }
    let elapsed = started.elapsed();
    ensure!(!times.is_empty() || failed > 0, "nothing was answered in {elapsed:?}");
    times.sort();
    Ok(Measured { requests: times.len(), failed, elapsed, times })
}

/// One connection, in the middle of a request.
struct Exchange {
    stream: TcpStream,
    mode: Mode,
    asked: bool,
    started: Instant,
    answer: Vec<u8>,
}

impl Exchange {
    /// Begins to connect; what is asked is sent once that is done.
    fn open(to: SocketAddrV4, mode: Mode) -> Result<Self> {
        let started = Instant::now();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from(socket);
        Ok(Self { stream, mode, asked: false, started, answer: Vec::with_capacity(1024) })
    }

    fn waits_for(&self) -> PollFd<'_> {
        let events = if self.asked { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        PollFd::new(self.stream.as_fd(), events)
    }

    /// Asks, or reads on; how long it took when the answer is there.
    fn proceed(&mut self) -> Result<Option<Duration>> {
        if !self.asked {
            self.send()?;
            return Ok(None);
        }
        let mut bytes = [0; 4096];
        let length = match self.stream.read(&mut bytes) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("the connection broke"),
        };
        self.answer.extend_from_slice(&bytes[..length]);
        let whole = is_whole(&self.answer)?;
        let done = match self.mode {
            Mode::KeepAlive | Mode::KeepAliveWith(_) | Mode::Unpooled => {
                ensure!(length > 0, "the connection was closed");
                whole
            }
            Mode::Close => {
                ensure!(length > 0 || whole, "the connection was closed too early");
                length == 0
            }
        };
        Ok(done.then(|| self.started.elapsed()))
    }

    /// The next request on the same connection.
    fn ask(&mut self) -> Result<()> {
        self.started = Instant::now();
        self.answer.clear();
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        let request = match self.mode {
            Mode::KeepAlive => KEEP_ALIVE,
            Mode::KeepAliveWith(request) => request,
            Mode::Unpooled => OPTIONS,
            Mode::Close => CLOSE,
        };
        self.stream.write_all(request).context("cannot send")?;
        self.asked = true;
        Ok(())
    }
}

/// True if head and body are there.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(false) };
    let head = std::str::from_utf8(&answer[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {head:?}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Ok(answer.len() >= end + 4 + length.context("an answer without a length")?)
}
