//! The end of a connection, and what the kernel keeps of an answer until the guest has acknowledged it.
//!
//! A socket that is closed with something still to be acknowledged is the kernel's for a minute, with all that it holds:
//! memory and a number that belong to the whole host. So none is let go before, and for one that acknowledges nothing there is
//! a reset.
use std::{
    io,
    net::Shutdown,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use nix::libc;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, time::sleep};
use tracing::debug;

use super::{receive::receive, seat::Seat, tick::Tick};
use crate::{
    directory::{Limit, Phase, Resource},
    meminfo::Kept,
};

/// Timeout of a guest that acknowledges nothing, once there is no more to be sent to it.
const UNACKNOWLEDGED: Duration = Duration::from_secs(4);
/// First and longest delay between looks at what was acknowledged; doubled each time.
pub(super) const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Lingering close: time and bytes for which a guest is heard out that was answered before it had said everything.
const HEARING: (Duration, usize) = (Duration::from_secs(1), 1 << 18);

/// A guest's socket, beyond carrying bytes.
pub(super) trait GuestSocket {
    /// The memory that the kernel keeps for it.
    fn kept(&self) -> Kept;

    /// Hands the kernel the end of the last answer without waiting. The kernel may hold it back until [`farewell`] ends our
    /// side, so that both go in one segment, and are acknowledged by one.
    fn try_send_last(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Sets the hop limit of its segments (TTL, for a socket of IPv4).
    fn limit_hops(&self, is_v4: bool, hops: u8) -> io::Result<()>;
}

impl GuestSocket for TcpStream {
    fn kept(&self) -> Kept {
        Kept::by(self)
    }

    fn try_send_last(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, || SockRef::from(self).send_with_flags(bytes, libc::MSG_MORE))
    }

    fn limit_hops(&self, is_v4: bool, hops: u8) -> io::Result<()> {
        let socket = SockRef::from(self);
        if is_v4 { socket.set_ttl_v4(hops.into()) } else { socket.set_unicast_hops_v6(hops.into()) }
    }
}

impl<T: GuestSocket> GuestSocket for &mut T {
    fn kept(&self) -> Kept {
        (**self).kept()
    }

    fn try_send_last(&self, bytes: &[u8]) -> io::Result<usize> {
        (**self).try_send_last(bytes)
    }

    fn limit_hops(&self, is_v4: bool, hops: u8) -> io::Result<()> {
        (**self).limit_hops(is_v4, hops)
    }
}

#[cfg(test)]
impl GuestSocket for tokio::io::DuplexStream {
    fn kept(&self) -> Kept {
        Kept::default()
    }

    fn try_send_last(&self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn limit_hops(&self, _is_v4: bool, _hops: u8) -> io::Result<()> {
        Ok(())
    }
}

/// Progress of acknowledgements. Pure logic, with the time passed in.
#[derive(Debug)]
pub(super) struct Acknowledging {
    left: u32,
    since: Instant,
    pause: Duration,
}

impl Acknowledging {
    pub(super) fn new(left: u32, now: Instant) -> Self {
        Self { left, since: now, pause: LOOKS.0 }
    }

    /// Notes what is left now; how long until the next look, unless it was waited for long enough.
    pub(super) fn next_look(&mut self, left: u32, now: Instant) -> Option<Duration> {
        if left < self.left {
            (self.left, self.since) = (left, now);
        }
        if now.saturating_duration_since(self.since) >= UNACKNOWLEDGED {
            return None;
        }
        let pause = self.pause;
        self.pause = (2 * pause).min(LOOKS.1);
        Some(pause)
    }
}

/// Closes without a farewell, and has the kernel forget what is not acknowledged.
pub(super) fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        debug!(%error, "cannot reset a connection");
    }
}

/// Ends our side and waits for the guest to acknowledge all of it; `hear_out` for one that has more to say, which would turn
/// the close into a reset that overtakes the answer.
pub(super) async fn farewell(stream: &mut TcpStream, seat: &Seat, tick: &Tick, hear_out: bool) {
    seat.begin(Phase::Sending);
    let charge = |bytes| seat.set(Resource::Bytes, bytes);
    if !is_acknowledged(stream, tick, hear_out, charge).await {
        reset(stream);
    }
}

/// The same for a guest that was turned away, and has no seat.
pub(super) async fn farewell_without_seat(stream: &mut TcpStream, tick: &Tick) {
    if !is_acknowledged(stream, tick, true, |_| Ok(())).await {
        reset(stream);
    }
}

/// Ends our side; false if the kernel would be left with something, since the guest does not take it, or there is no room
/// to wait.
async fn is_acknowledged(
    stream: &mut TcpStream,
    tick: &Tick,
    mut hear_out: bool,
    charge: impl Fn(u32) -> Result<(), Limit>,
) -> bool {
    if SockRef::from(&*stream).shutdown(Shutdown::Write).is_err() {
        // It was reset.
        return true;
    }
    let began = Instant::now();
    let (mut kept, mut now) = (stream.kept(), began);
    let mut acknowledging = Acknowledging::new(kept.unacknowledged, began);
    let (mut heard, mut has_ended, mut is_first) = (0, false, true);
    loop {
        let left = kept.unacknowledged;
        // What came after the last request may be here already.
        hear_out |= kept.unread > 0;
        let is_heard = has_ended || !hear_out || now.saturating_duration_since(began) >= HEARING.0;
        if left == 0 && is_heard {
            return true;
        }
        let Some(pause) = acknowledging.next_look(left, now) else { return false };
        if charge(left).is_err() {
            return false;
        }
        let look = async {
            // Most acknowledge before, and for the first look no alarm is set for each.
            if is_first { tick.next().await } else { sleep(pause).await }
        };
        let mut received = BytesMut::new();
        tokio::select! {
            biased;
            received = receive(stream, &mut received), if !has_ended => match received {
                Ok(0) => has_ended = true,
                Ok(length) => {
                    heard += length;
                    if heard > HEARING.1 {
                        return false;
                    }
                }
                Err(_) => return true,
            },
            () = look => is_first = false,
        }
        (kept, now) = (stream.kept(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream as StdStream},
    };

    use super::*;

    fn pair() -> (StdStream, StdStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let guest = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        (guest, ours)
    }

    fn close(ours: StdStream, hear_out: bool) -> (bool, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let began = Instant::now();
        let result = runtime.block_on(async {
            let (mut ours, tick) = (TcpStream::from_std(ours).unwrap(), Tick::default());
            tokio::select! {
                result = is_acknowledged(&mut ours, &tick, hear_out, |_| Ok(())) => result,
                () = tick.run(LOOKS.0) => unreachable!("it ticks on"),
            }
        });
        (result, began.elapsed())
    }

    #[test]
    fn a_guest_that_takes_its_answer_is_let_go_at_once() {
        let (mut guest, mut ours) = pair();
        ours.write_all(b"answer").unwrap();
        let reading = std::thread::spawn(move || {
            let mut answer = String::new();
            guest.read_to_string(&mut answer).unwrap();
            answer
        });
        let (result, took) = close(ours, true);
        assert!(result);
        assert!(took < UNACKNOWLEDGED, "{took:?}");
        assert_eq!(reading.join().unwrap(), "answer");
    }

    #[test]
    fn what_the_kernel_keeps_is_told_and_given_up() {
        let (guest, mut ours) = pair();
        // More than both buffers hold.
        SockRef::from(&guest).set_recv_buffer_size(4096).unwrap();
        while ours.write(&[b'x'; 65_536]).is_ok() {}
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let told = runtime.block_on(async {
            let stream = TcpStream::from_std(ours.try_clone().unwrap()).unwrap();
            stream.kept().unacknowledged
        });
        assert!(told > 65_536, "{told}");
        let (result, took) = close(ours, false);
        assert!(!result);
        assert!(took >= UNACKNOWLEDGED && took < 10 * UNACKNOWLEDGED, "{took:?}");
    }

    #[test]
    fn progress_is_waited_for() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut acknowledging = Acknowledging::new(100, start);
        assert_eq!(acknowledging.next_look(100, at(10)), Some(Duration::from_millis(20)));
        assert_eq!(acknowledging.next_look(100, at(30)), Some(Duration::from_millis(40)));
        assert!(acknowledging.next_look(90, at(3990)).is_some());
        assert!(acknowledging.next_look(90, at(7980)).is_some());
        assert_eq!(acknowledging.next_look(90, at(8000)), None);
    }
}
