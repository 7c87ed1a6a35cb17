//! Connections that are only held: idle ones that asked once, and slow ones that never finish asking.

use std::{
    io::{ErrorKind, Write as _},
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
