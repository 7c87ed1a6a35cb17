//! Handshakes of a listener that ends: none begins any more, and those that have begun are completed.
use std::io;

use nix::libc;
use socket2::{SockFilter, SockRef};

/// Offset of the flags in a TCP header, and SYN among them (RFC 9293, section 3.1).
const FLAGS: u32 = 13;
const SYN: u32 = 0x02;

/// Has the kernel drop SYNs for a listener, which guests send again a second later.
///
/// A listener that closes takes with it the handshakes that wait for their last segment, which is then answered with a
/// reset: for the guest its connection was made. What is accepted inherits the filter, which means nothing there. The
/// guest-facing process may not set filters, and goes on accepting for [`HANDSHAKE`](crate::link::HANDSHAKE).
pub(crate) fn begin_none(listener: &SockRef<'_>) -> io::Result<()> {
    let code = |code: u32| code as u16;
    listener.attach_filter(&[
        // The filter sees a segment from its TCP header on (`tcp_filter` in net/ipv4/tcp_ipv4.c).
        SockFilter::new(code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS), 0, 0, FLAGS),
        SockFilter::new(code(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K), 0, 1, SYN),
        SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, 0),
        SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, u32::MAX),
    ])
}

/// Has it begin handshakes again, whoever kept it from that.
pub(crate) fn begin(listener: &SockRef<'_>) -> io::Result<()> {
    match listener.detach_filter() {
        // There is none, most often.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        detached => detached,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    #[test]
    fn what_has_begun_goes_on_and_nothing_begins() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut early = TcpStream::connect(address).unwrap();
        begin_none(&SockRef::from(&listener)).unwrap();
        let late = TcpStream::connect_timeout(&address, Duration::from_millis(300)).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);

        let (mut accepted, _) = listener.accept().unwrap();
        early.write_all(b"a question").unwrap();
        let mut heard = [0; 10];
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"a question");
        accepted.write_all(b"an answer").unwrap();
        drop(accepted);
        let mut answer = String::new();
        early.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "an answer");

        begin(&SockRef::from(&listener)).unwrap();
        begin(&SockRef::from(&listener)).unwrap();
        TcpStream::connect(address).unwrap();
    }
}
