//! A small blocking HTTP/1.1 client that hides nothing: exact requests, chosen sources, distinct errors.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt},
        time::TimeVal,
    },
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection was refused")]
    Refused,
    #[error("nobody has the next hop's address")]
    Unreachable,
    #[error("no answer in time")]
    Timeout,
    #[error("the connection was reset")]
    Reset,
    #[error("the connection was closed before the answer was complete")]
    Closed,
    #[error("not an HTTP answer: {0}")]
    Malformed(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::HostUnreachable => Self::Unreachable,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            // A socket's own time limit shows as EAGAIN, and as EINPROGRESS from connect.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            _ if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Self::Timeout,
            ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Connects from the namespace of the calling thread.
pub fn connect_from(source: Option<SocketAddrV4>, to: SocketAddrV4, limit: Duration) -> Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(limit.as_secs().cast_signed(), limit.subsec_micros().into());
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
    if let Some(source) = source {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(source))?;
    }
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection: requests go out as they are given, answers come back whole.
#[derive(Debug)]
pub struct Connection<S: Read + Write> {
    stream: BufReader<S>,
}

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub fn stream(&self) -> &S {
        self.stream.get_ref()
    }

    /// Bytes as they are: half a request, two of them, or none.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// A request with `Host`, the given headers in their order and, when there is a body, its length.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        self.send(&request_head(method, target, headers, body.len()))?;
        self.send(body)?;
        self.response(method)
    }

    /// Reads one answer; that to a HEAD has no body whatever its headers say.
    pub fn response(&mut self, method: &str) -> Result<Response> {
        let status_line = self.line()?;
        let status = status_line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5)?.parse().ok())
            .ok_or_else(|| Error::Malformed(status_line.clone()))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| Error::Malformed(line.clone()))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if method != "HEAD" && status != 204 && status != 304 {
            response.body = self.body(&response)?;
        }
        Ok(response)
    }

    /// True if the other side has closed and nothing more is to be read.
    pub fn is_closed(&mut self) -> Result<bool> {
        Ok(self.stream.fill_buf()?.is_empty())
    }

    fn body(&mut self, response: &Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.line()?;
                let size = line.split(';').next().unwrap_or_default();
                let size = usize::from_str_radix(size, 16).map_err(|_| Error::Malformed(line.clone()))?;
                let start = body.len();
                body.resize(start + size, 0);
                self.stream.read_exact(&mut body[start..])?;
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().map_err(|_| Error::Malformed(length.to_owned()))?;
            body.resize(length, 0);
            self.stream.read_exact(&mut body)?;
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(body)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(Error::Closed);
        }
        line.pop_if(|last| *last == b'\r');
        String::from_utf8(line).map_err(|error| Error::Malformed(error.to_string()))
    }
}

/// The head of a request, for those who send it in pieces.
pub fn request_head(method: &str, target: &str, headers: &[(&str, &str)], body_length: usize) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if body_length > 0 || matches!(method, "POST" | "PUT") {
        head.push_str(&format!("Content-Length: {body_length}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}
