//! The packets between two agents: JSON, with descriptors beside it. What comes is bounded, and waited for with a limit.
#![forbid(unsafe_code)]
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Message;
use crate::descriptors::own;

/// The longest packet.
const LONGEST: usize = 16 << 10;
/// The most descriptors in one, which is also the kernel's limit (`SCM_MAX_FD`).
pub(super) const MOST_DESCRIPTORS: usize = 253;
/// How long a packet may take to be taken.
const SENDING: Duration = Duration::from_secs(5);

/// A connection between two agents.
#[derive(Debug)]
pub(super) struct Channel(Socket);

impl Channel {
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(SENDING))?;
        Ok(Self(socket))
    }

    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Self::new(socket)
    }

    pub(super) fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let raw: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights };
        // A peer that is gone is an error, and no signal.
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&text)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// The next message with its descriptors; an error if none comes in time, or the other side is gone.
    pub(super) fn receive(&self, limit: Option<Duration>) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.0.set_read_timeout(limit)?;
        let mut text = vec![0; LONGEST];
        let mut control = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let (length, descriptors, flags) = {
            let mut buffers = [IoSliceMut::new(&mut text)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(self.0.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
            let mut descriptors = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    descriptors.extend(raw.into_iter().map(own));
                }
            }
            (received.bytes, descriptors, received.flags)
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet that is too long"));
        }
        Ok((serde_json::from_slice(&text[..length])?, descriptors))
    }

    /// Waits until the other side is gone, whatever it says before.
    pub(super) fn wait_end(&self) {
        while self.receive(None).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::fd::AsFd as _,
    };

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        (Channel::new(one).unwrap(), Channel::new(other).unwrap())
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        let (one, other) = pair();
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"here").unwrap();
        drop(writer);
        one.send(&Message::Frozen, &[reader.as_fd(), reader.as_fd()]).unwrap();
        one.send(&Message::Yours, &[]).unwrap();
        let (message, descriptors) = other.receive(Some(SENDING)).unwrap();
        assert_eq!((message, descriptors.len()), (Message::Frozen, 2));
        let mut twin = File::from(descriptors.into_iter().next().unwrap());
        let mut text = String::new();
        twin.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
        let (message, descriptors) = other.receive(Some(SENDING)).unwrap();
        assert_eq!((message, descriptors.len()), (Message::Yours, 0));
        drop(one);
        assert_eq!(other.receive(None).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(other.send(&Message::Frozen, &[]).is_err());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (one, other) = pair();
        for packet in [&b"{"[..], b"{\"Own\":{}}", b"\xff\xfe", b"[]", &vec![b' '; LONGEST + 1]] {
            one.0.send(packet).unwrap();
            assert!(other.receive(Some(SENDING)).is_err(), "{packet:?}");
        }
        one.send(&Message::Freeze, &[]).unwrap();
        assert_eq!(other.receive(Some(SENDING)).unwrap().0, Message::Freeze);
        let silent = other.receive(Some(Duration::from_millis(10))).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn fields_of_a_later_version_are_left_alone() {
        let text = br#"{"Hello":{"protocol":1,"version":"9.9.9","later":[1]}}"#;
        let message: Message = serde_json::from_slice(text).unwrap();
        assert_eq!(message, Message::Hello { protocol: 1, version: "9.9.9".into() });
    }
}
