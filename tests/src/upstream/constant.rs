//! A server in Nova's place that is no bottleneck: one thread, no parsing, always the same answer.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=UTF-8\r\nContent-Length: 200\r\n\r\n";
const BODY: [u8; 200] = [b'm'; 200];
/// Longer than any request that the bench or a proxy makes.
const LONGEST_REQUEST: usize = 4096;

/// Serves until it is killed. A request is expected to come in one piece, as those without a body do.
pub fn serve(address: SocketAddrV4) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let answer = [HEAD.as_bytes(), &BODY].concat();
    let mut connections = HashMap::<RawFd, TcpStream>::new();
    loop {
        let mut waiting = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        waiting.extend(connections.values().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        poll(&mut waiting, PollTimeout::NONE)?;
        let ready = waiting.iter().filter(|entry| entry.any().unwrap_or(false));
        let ready: Vec<RawFd> = ready.map(|entry| entry.as_fd().as_raw_fd()).collect();
        for descriptor in ready {
            if descriptor == listener.as_raw_fd() {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    connections.insert(stream.as_raw_fd(), stream);
                }
            } else if let Some(stream) = connections.get_mut(&descriptor)
                && !matches!(exchange(stream, &answer), Ok(true))
            {
                connections.remove(&descriptor);
            }
        }
    }
}

/// Answers a request; whether the connection stays open.
fn exchange(stream: &mut TcpStream, answer: &[u8]) -> io::Result<bool> {
    let mut request = [0; LONGEST_REQUEST];
    let length = match stream.read(&mut request) {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
        Err(error) => return Err(error),
    };
    if length == 0 {
        return Ok(false);
    }
    stream.write_all(answer)?;
    Ok(!request[..length].windows(17).any(|words| words.eq_ignore_ascii_case(b"connection: close")))
}
