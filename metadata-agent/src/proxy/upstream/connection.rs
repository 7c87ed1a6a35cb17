//! One connection to Nova: a request out, an answer in.
use std::{
    io,
    mem::MaybeUninit,
    os::fd::AsFd as _,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use http1::{Chunks, Framing, HeadEnd, Malformed, Response};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::{
    directory::{Identity, SignedIdentity},
    proxy::{receive::receive, turn::within},
};

/// More than any head of Nova's has; what is beyond it would only be memory.
const MOST_HEAD_BYTES: usize = 64 * 1024;

/// The statuses of answers after which a connection may be used again: what Nova says when all is well, always with a body
/// of its own. Servers that err about framing do so with the others.
const PLAIN: [u16; 2] = [200, 404];

/// Reason for which there is no answer, or no rest of it.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the answer has {0}")]
    Malformed(#[from] Malformed),
    #[error("the connection was closed within the answer")]
    Closed,
    #[error("the connection was closed without an answer")]
    Unanswered,
    #[error("the answer does not go on")]
    Stalled,
    #[error("no answer within {:.1} s", .0.as_secs_f64())]
    Late(Duration),
}

impl Broken {
    /// True if only the connection is known to have failed, and another one may not.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Unanswered | Self::Closed)
    }

    /// True if the transport failed, in which no guest has a part: the kernel found nobody there, or TLS did not work.
    /// With TLS 1.3 a client certificate is refused only after the connection was made.
    pub(super) fn is_of_transport(&self) -> bool {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        let Self::Io(error) = self else { return false };
        matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
            || error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
    }

    /// True if the server said something that is no answer, or not to its end: over a connection that was used before,
    /// it may be left over from that.
    pub(super) fn is_nonsense(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Closed | Self::Unanswered)
    }

    /// Classification of an error before anything of the answer is there. TLS calls it unexpected when a connection ends
    /// without a farewell.
    fn before_answer(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionReset | UnexpectedEof => Self::Unanswered,
            _ => Self::Io(error),
        }
    }
}

/// With or without TLS.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A connection with what was received and not used yet.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    received: BytesMut,
    /// Index of the endpoint that it leads to.
    pub(super) endpoint: usize,
    /// Identity whose requests went over it, all of them.
    owner: Option<Arc<SignedIdentity>>,
    /// Time at which it was begun.
    pub(super) begun: Instant,
    /// Timeout of a pause in an answer's body.
    pause: Duration,
}

impl Connection {
    pub(super) fn new(stream: Stream, endpoint: usize, begun: Instant, pause: Duration) -> Self {
        Self { stream, received: BytesMut::new(), endpoint, owner: None, begun, pause }
    }

    /// Makes it theirs, if it is nobody's yet.
    pub(super) fn belong_to(&mut self, who: &Arc<SignedIdentity>) {
        self.owner.get_or_insert_with(|| who.clone());
    }

    /// True if it has served that instance of that project, and nobody else.
    pub(super) fn is_for(&self, who: &Identity) -> bool {
        self.owner.as_deref().is_some_and(|SignedIdentity { identity, .. }| {
            (&identity.instance, &identity.project) == (&who.instance, &who.project)
        })
    }

    /// True if nothing was said on an idle connection, an end neither.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut context, &mut buffer).is_pending()
    }

    /// Has this runtime tell of what comes on it, in place of the one it was in. The socket is the same by another number: a
    /// session of TLS goes on over it.
    pub(super) fn move_here(&mut self) -> io::Result<()> {
        let socket = match &mut self.stream {
            Either::Left(socket) => socket,
            Either::Right(session) => session.get_mut().0,
        };
        // The other runtime may not have looked at it lately, and this one has not yet.
        match SockRef::from(&*socket).peek(&mut [MaybeUninit::uninit()]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("something was said on it while it was idle")),
        }
        *socket = TcpStream::from_std(socket.as_fd().try_clone_to_owned()?.into())?;
        Ok(())
    }

    /// Sends a request and waits for the answer's head, and for the first of its body: one that breaks off before can
    /// still be had from somebody else.
    pub(super) async fn exchange(mut self, request: &[u8], method: &[u8]) -> Result<NovaAnswer, Broken> {
        self.send(request).await.map_err(Broken::before_answer)?;
        let mut plain = method == b"GET";
        loop {
            let head = Response::parse(self.head().await?, method)?;
            // Switching protocols is for those who asked for it, and we never do.
            if head.status == 101 {
                return Err(Broken::Malformed(Malformed::StatusLine));
            }
            if !head.is_interim() {
                let left = match head.body {
                    Framing::Length(length) => Left::Length(length),
                    Framing::Chunked => Left::Chunks(Chunks::default()),
                    Framing::Close => Left::Close,
                };
                plain &= head.keep_alive && PLAIN.contains(&head.status);
                let answer =
                    NovaAnswer { head, connection: self, left, first: Vec::new(), more: true, plain };
                return answer.begin().await;
            }
            plain = false;
        }
    }

    /// Has the kernel acknowledge at once what has come of an answer, before more of it is waited for. A server that writes
    /// head and body apart, and has Nagle's algorithm, sends the second only then (RFC 1122, section 4.2.3.4), and the kernel
    /// delays acknowledgements on a connection by 40 ms. What is acknowledged already costs no segment.
    fn acknowledge(&self) {
        let socket = match &self.stream {
            Either::Left(socket) => socket,
            Either::Right(session) => session.get_ref().0,
        };
        // Without it the answer is late, not lost.
        let _ = SockRef::from(socket).set_tcp_quickack(true);
    }

    async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await?;
        self.stream.flush().await
    }

    async fn head(&mut self) -> Result<bytes::Bytes, Broken> {
        let mut end = HeadEnd::default();
        loop {
            if let Some(end) = end.find(&self.received)? {
                return Ok(self.received.split_to(end).freeze());
            }
            if self.received.len() > MOST_HEAD_BYTES {
                return Err(Malformed::TooLarge.into());
            }
            if !self.received.is_empty() {
                self.acknowledge();
            }
            match receive(&mut self.stream, &mut self.received).await {
                Ok(1..) => {}
                Ok(0) if self.received.is_empty() => return Err(Broken::Unanswered),
                Ok(0) => return Err(Broken::Closed),
                Err(error) if self.received.is_empty() => return Err(Broken::before_answer(error)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// An answer whose body has begun.
#[derive(Debug)]
pub(in crate::proxy) struct NovaAnswer {
    pub(in crate::proxy) head: Response,
    connection: Connection,
    left: Left,
    first: Vec<u8>,
    /// True if something comes after the first.
    more: bool,
    /// True if it is a GET's, with no other before it, no odd status, and the connection is to be kept.
    plain: bool,
}

/// Rest of the body that is still to come.
#[derive(Debug)]
enum Left {
    Length(u64),
    Chunks(Chunks),
    /// Until the connection ends.
    Close,
    Nothing,
}

impl NovaAnswer {
    async fn begin(mut self) -> Result<Self, Broken> {
        let mut first = Vec::new();
        self.more = self.next(&mut first).await?;
        self.first = first;
        Ok(self)
    }

    /// Beginning of the body that is there already, and whether there is more.
    pub(in crate::proxy) fn first(&mut self) -> (Vec<u8>, bool) {
        (std::mem::take(&mut self.first), self.more)
    }

    /// Index of the endpoint that gives it.
    pub(super) fn endpoint(&self) -> usize {
        self.connection.endpoint
    }

    /// Appends what comes next of the body, and waits for it if need be; false when that was the last of it.
    pub(in crate::proxy) async fn read(&mut self, body: &mut Vec<u8>) -> Result<bool, Broken> {
        let pause = self.connection.pause;
        within(pause, pin!(self.next(body))).await.unwrap_or(Err(Broken::Stalled))
    }

    async fn next(&mut self, body: &mut Vec<u8>) -> Result<bool, Broken> {
        let before = body.len();
        loop {
            if self.take(body)? {
                return Ok(false);
            }
            if body.len() > before {
                return Ok(true);
            }
            self.connection.acknowledge();
            let Connection { stream, received, .. } = &mut self.connection;
            match (receive(stream, received).await?, &self.left) {
                (0, Left::Close) => self.left = Left::Nothing,
                (0, _) => return Err(Broken::Closed),
                _ => {}
            }
        }
    }

    /// Moves what is there; true at the end.
    fn take(&mut self, body: &mut Vec<u8>) -> Result<bool, Malformed> {
        let received = &mut self.connection.received;
        let ended = match &mut self.left {
            Left::Nothing => true,
            Left::Close => {
                body.extend_from_slice(received);
                received.clear();
                false
            }
            Left::Chunks(chunks) => chunks.decode(received, body)?,
            Left::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(received.len());
                body.extend_from_slice(&received[..here]);
                received.advance(here);
                *left -= here as u64;
                *left == 0
            }
        };
        if ended {
            self.left = Left::Nothing;
        }
        Ok(ended)
    }

    /// The connection, if another request can follow: after a plain answer that came to its end, and nothing beyond it.
    pub(super) fn into_reusable(self) -> Option<Connection> {
        let reusable =
            self.plain && matches!(self.left, Left::Nothing) && self.connection.received.is_empty();
        reusable.then_some(self.connection)
    }
}
