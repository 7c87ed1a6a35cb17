//! Connections of a guest that means harm: idle ones that asked once, slow ones that never finish asking, and busy ones
//! that say as much as they can.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use metadata_tests::{
    http::{self, Connection},
    netns::Namespace,
};

const LIMIT: Duration = Duration::from_secs(5);
/// Timeout of a busy guest's connection, of which it has others.
const ATTEMPT: Duration = Duration::from_millis(5);
/// A slow client's pace.
const BYTE: Duration = Duration::from_secs(1);
const TARGET: &str = "/latest/meta-data/instance-id";

/// Opens connections, asks once on each and leaves them open.
pub(crate) fn idle(from: &Namespace, to: SocketAddrV4, count: usize) -> Result<Vec<TcpStream>> {
    let open = || -> Result<TcpStream> {
        let stream = http::connect_from(None, to, LIMIT)?;
        let response = Connection::new(&stream).request("GET", TARGET, &[], b"")?;
        ensure!(response.status == 200, "{response:?}");
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    from.run(|| (0..count).map(|_| open()).collect())?
}

/// So many are still held by the other side as well.
pub(crate) fn all_open(streams: &[TcpStream], count: usize) -> Result<()> {
    let is_open =
        |stream: &&TcpStream| stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    let open = streams.iter().filter(is_open).count();
    ensure!(open == count, "{open} of {count} connections are open");
    Ok(())
}

/// Begins a request on each of many connections, and goes on with it byte by byte until told to stop.
pub(crate) fn slow(from: &Namespace, to: SocketAddrV4, count: usize, stop: &AtomicBool) -> Result<()> {
    let begin = || -> Result<TcpStream> {
        let mut stream = http::connect_from(None, to, LIMIT)?;
        write!(stream, "GET {TARGET} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-A: ")?;
        Ok(stream)
    };
    from.run(|| {
        let mut streams = (0..count).map(|_| begin()).collect::<Result<Vec<_>>>()?;
        // Each at its own time: all at once would be a burst, which says something about this machine only.
        for turn in (0..count).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // Whatever the other side has had enough of is not replaced.
            let _ = streams[turn].write_all(b"a");
            thread::sleep(BYTE / count as u32);
        }
        Ok(())
    })?
}

/// Interval at which a busy guest looks where there is room for more.
const PAUSE: Duration = Duration::from_millis(1);

/// Noise of a busy guest, again and again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Noise {
    /// Empty lines where a request should be.
    EmptyLines,
    /// One body in chunks whose sizes are longer than they are.
    Extensions,
    /// One request after another, without waiting for answers.
    Requests,
}

impl Noise {
    pub(crate) const ALL: [(Self, &str); 3] = [
        (Self::EmptyLines, "empty lines"),
        (Self::Extensions, "chunks with extensions"),
        (Self::Requests, "requests without waiting"),
    ];

    fn begin(self) -> &'static [u8] {
        match self {
            Self::Extensions => b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Self::EmptyLines | Self::Requests => b"",
        }
    }

    fn go_on(self) -> Vec<u8> {
        match self {
            Self::EmptyLines => b"\r\n".repeat(8192),
            Self::Extensions => format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(16).into_bytes(),
            Self::Requests => format!("GET {TARGET} HTTP/1.1\r\n\r\n").repeat(256).into_bytes(),
        }
    }
}

/// Says that on so many connections, as much as is taken, until told to stop; those that the other side has had enough of
/// are made again, as soon as it lets that happen. Returns the number of bytes that were taken.
pub(crate) fn busy(
    from: &Namespace,
    to: SocketAddrV4,
    count: usize,
    noise: Noise,
    stop: &AtomicBool,
) -> Result<usize> {
    let begin = || -> Result<TcpStream> {
        let mut stream = http::connect_from(None, to, ATTEMPT)?;
        stream.write_all(noise.begin())?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let more = noise.go_on();
    from.run(|| {
        let mut streams: Vec<_> = (0..count).map(|_| begin().ok()).collect();
        let mut taken = 0;
        while !stop.load(Ordering::Relaxed) {
            for place in &mut streams {
                let Some(stream) = place else {
                    *place = begin().ok();
                    continue;
                };
                match stream.write(&more) {
                    Ok(written) => taken += written,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => *place = None,
                }
                // Answers are not what it is for.
                while place.as_mut().is_some_and(|stream| matches!(stream.read(&mut [0; 4096]), Ok(1..))) {}
            }
            // What is sent waits in sockets that are full. To try without a pause would only take a processor from those
            // who are measured, as no guest's can be taken.
            thread::sleep(PAUSE);
        }
        Ok(taken)
    })?
}
