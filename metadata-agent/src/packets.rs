//! Packets between two processes of this agent's: JSON, with descriptors beside it, over a SEQPACKET socket. What comes is
//! bounded, and waited for with a limit.
#![forbid(unsafe_code)]
use std::{
    cell::RefCell,
    fs,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    sys::{
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        stat::{Mode, fchmod},
    },
};
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use crate::descriptors::{own, watch};

/// The longest packet.
pub const LONGEST: usize = 128 << 10;
/// The most descriptors in one, which is also the kernel's limit (`SCM_MAX_FD`).
pub const MOST_DESCRIPTORS: usize = 253;
/// Timeout of sending a packet.
const SENDING: Duration = Duration::from_secs(5);

thread_local! {
    /// Buffer that a thread receives with: kept, since one of that size is a mapping of its own each time.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Most packets that are looked at when the other side is gone: more than the kernel keeps for a socket.
const MOST_LEFT: usize = 4096;

/// A socket of that name that takes connections, for its owner alone; in place of one that a former process left.
pub fn listen(path: &Path) -> io::Result<Socket> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    // Its mode before it is bound is the one that its file gets.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(8)?;
    Ok(socket)
}

/// A connection between two processes.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    /// Descriptors that nobody has asked for.
    held: Mutex<Vec<OwnedFd>>,
}

impl Channel {
    /// Over that socket.
    pub fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(SENDING))?;
        // A host may have less by default than the longest packet takes.
        socket.set_send_buffer_size(2 * LONGEST)?;
        Ok(Self { socket, held: Mutex::default() })
    }

    /// Both ends of a new one.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Self::new(one)?, Self::new(other)?))
    }

    /// To the socket of that name.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Self::new(socket)
    }

    /// Sends a message, with twins of these descriptors.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > LONGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a packet of {} bytes", text.len()),
            ));
        }
        let raw: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights };
        // A peer that is gone is an error, and no signal.
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&text)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// The next message with its descriptors; an error if none comes in time, or the other side is gone.
    pub fn receive<M: DeserializeOwned>(&self, limit: Option<Duration>) -> io::Result<(M, Vec<OwnedFd>)> {
        self.socket.set_read_timeout(limit)?;
        self.next()
    }

    fn next<M: DeserializeOwned>(&self) -> io::Result<(M, Vec<OwnedFd>)> {
        BUFFER.with_borrow_mut(|text| {
            text.resize(LONGEST, 0);
            self.next_into(text)
        })
    }

    fn next_into<M: DeserializeOwned>(&self, text: &mut [u8]) -> io::Result<(M, Vec<OwnedFd>)> {
        let (length, descriptors, flags) = self.take(text)?;
        let message = if length == 0 {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else if flags.contains(MsgFlags::MSG_TRUNC) {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a packet that is too long"))
        } else {
            serde_json::from_slice(&text[..length]).map_err(io::Error::from)
        };
        match message {
            Ok(message) => Ok((message, descriptors)),
            Err(error) => {
                self.hold(descriptors);
                Err(error)
            }
        }
    }

    /// A packet as it came. One whose descriptors this process has no room for comes without them.
    fn take(&self, text: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>, MsgFlags)> {
        let mut control = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let mut buffers = [IoSliceMut::new(text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
        let mut descriptors = Vec::new();
        for message in received.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(raw) = message {
                descriptors.extend(raw.into_iter().map(own));
            }
        }
        Ok((received.bytes, descriptors, received.flags))
    }

    /// Keeps descriptors that nobody has asked for until the channel ends.
    pub fn hold(&self, descriptors: Vec<OwnedFd>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).extend(descriptors);
    }

    /// Ends the channel to a process that has ended, with everything that it has sent and that nobody has asked for.
    ///
    /// To close a socket may take as long as whoever sent it wants (`SO_LINGER`, which counts for those that do not block
    /// as well: `inet_release` in net/ipv4/af_inet.c). Once nobody else has it, it can be told not to.
    pub fn dispose(self) {
        let close = |descriptors: Vec<OwnedFd>| {
            for descriptor in descriptors {
                // What is no socket does not linger.
                let _ = SockRef::from(&descriptor).set_linger(None);
            }
        };
        close(std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner)));
        if self.socket.set_nonblocking(true).is_ok() {
            // An empty packet looks like the end.
            for _ in 0..MOST_LEFT {
                match self.take(&mut []) {
                    Ok((_, descriptors, _)) => close(descriptors),
                    Err(_) => return,
                }
            }
        }
    }

    /// Waits until the other side is gone, whatever it says before.
    pub fn wait_end(&self) {
        while self.receive::<IgnoredAny>(None).is_ok() {}
    }

    /// The same, for so long at most.
    pub fn wait_end_for(&self, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.receive::<IgnoredAny>(Some(left)).is_err() {
                return;
            }
        }
    }
}

/// The same for tasks.
#[derive(Debug)]
pub struct AsyncChannel {
    channel: Channel,
    watched: AsyncFd<OwnedFd>,
}

impl AsyncChannel {
    /// On the current runtime.
    pub fn new(channel: Channel) -> io::Result<Self> {
        channel.socket.set_nonblocking(true)?;
        let twin = channel.socket.as_fd().try_clone_to_owned()?;
        Ok(Self { channel, watched: watch(twin, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Sends a message, as soon as there is room for it.
    pub async fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut guard = self.watched.writable().await?;
            match self.try_send(message, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                sent => return sent,
            }
        }
    }

    /// Sends a message if there is room for it, from any thread.
    pub fn try_send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.channel.send(message, descriptors)
    }

    /// See [`Channel::hold`].
    pub fn hold(&self, descriptors: Vec<OwnedFd>) {
        self.channel.hold(descriptors);
    }

    /// See [`Channel::dispose`].
    pub fn dispose(self) {
        drop(self.watched);
        self.channel.dispose();
    }

    /// The next message with its descriptors. May be cancelled.
    pub async fn receive<M: DeserializeOwned>(&self) -> io::Result<(M, Vec<OwnedFd>)> {
        loop {
            let mut guard = self.watched.readable().await?;
            match self.channel.next() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                received => return received,
            }
        }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket.into()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::File,
        io::{Read as _, Write as _},
        process::Command,
    };

    use nix::sys::resource::{Resource, setrlimit};

    use super::*;

    #[test]
    fn descriptors_travel_with_their_message() {
        let (one, other) = Channel::pair().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"here").unwrap();
        drop(writer);
        one.send(&"two", &[reader.as_fd(), reader.as_fd()]).unwrap();
        one.send(&"none", &[]).unwrap();
        let (message, descriptors) = other.receive::<String>(Some(SENDING)).unwrap();
        assert_eq!((message.as_str(), descriptors.len()), ("two", 2));
        let mut twin = File::from(descriptors.into_iter().next().unwrap());
        let mut text = String::new();
        twin.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
        let (message, descriptors) = other.receive::<String>(Some(SENDING)).unwrap();
        assert_eq!((message.as_str(), descriptors.len()), ("none", 0));
        drop(one);
        assert_eq!(other.receive::<String>(None).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(other.send(&"nobody", &[]).is_err());
    }

    /// The guest-facing process took it for the end of its agent, and neither heard of ports nor got connections any more.
    #[test]
    fn a_message_comes_alone_where_there_is_no_room_for_descriptors() {
        const INSIDE: &str = "METADATA_TEST_NO_ROOM";
        if env::var_os(INSIDE).is_none() {
            let mut inside = Command::new("/proc/self/exe");
            let name = "packets::tests::a_message_comes_alone_where_there_is_no_room_for_descriptors";
            let output = inside.args(["--exact", name]).env(INSIDE, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        let (one, other) = Channel::pair().unwrap();
        one.send(&"first", &[io::stdin().as_fd()]).unwrap();
        one.send(&"second", &[]).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, 0).unwrap();
        let received = || other.receive::<String>(Some(SENDING)).map(|(text, given)| (text, given.len()));
        assert_eq!(received().unwrap(), ("first".to_owned(), 0));
        assert_eq!(received().unwrap(), ("second".to_owned(), 0));
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (one, other) = Channel::pair().unwrap();
        for packet in [&b"{"[..], b"{\"Own\":{}}", b"\xff\xfe", b"[]", &vec![b' '; LONGEST + 1]] {
            one.socket.send(packet).unwrap();
            assert!(other.receive::<String>(Some(SENDING)).is_err(), "{packet:?}");
        }
        assert!(one.send(&"x".repeat(LONGEST), &[]).is_err());
        one.send(&"good", &[]).unwrap();
        assert_eq!(other.receive::<String>(Some(SENDING)).unwrap().0, "good");
        let silent = other.receive::<String>(Some(Duration::from_millis(10))).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::WouldBlock);
    }
}
