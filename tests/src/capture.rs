//! Capture of the frames that arrive at a guest's NIC, byte by byte, and whether their checksums verify.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
    },
};

use crate::{
    guest::{Guest, METADATA},
    model::checksum,
};

/// As much as a test moves before it looks.
const BUFFER: usize = 32 << 20;
const LARGEST_FRAME: usize = 70_000;
const IP: usize = 14;
const TCP: usize = IP + 20;
const TCP_CHECKSUM: usize = TCP + 16;

/// A packet socket that collects what the guest receives.
#[derive(Debug)]
pub struct Capture(OwnedFd);

/// A TCP segment from the metadata service, as a frame.
#[derive(Debug)]
pub struct Segment(Vec<u8>);

/// Content of a segment's checksum field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The checksum.
    Verifies,
    /// The sum of the pseudo-header: whoever puts the segment on a wire is to finish it.
    Unfinished,
    Wrong,
}

impl Capture {
    pub fn start(guest: &Guest) -> Result<Self> {
        let open = || -> nix::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthIp)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            Ok(socket)
        };
        Ok(Self(guest.netns.run(open)?.context("cannot capture frames")?))
    }

    /// The segments that arrived since this was last called.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        let mut buffer = vec![0; LARGEST_FRAME];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => segments.extend(Segment::of(&buffer[..length])),
                Err(Errno::EAGAIN) => return Ok(segments),
                Err(errno) => return Err(errno).context("cannot read captured frames"),
            }
        }
    }
}

impl Segment {
    fn of(frame: &[u8]) -> Option<Self> {
        let is_tcp = frame.len() >= TCP + 20 && frame[IP] == 0x45 && frame[IP + 9] == 6;
        (is_tcp && frame[IP + 12..IP + 16] == METADATA.ip().octets()).then(|| Self(frame.to_vec()))
    }

    /// Length of the IP packet.
    pub fn packet(&self) -> usize {
        self.0.len() - IP
    }

    /// The whole frame.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn payload(&self) -> usize {
        let headers = TCP + usize::from(self.0[TCP + 12] >> 4) * 4;
        self.0.len() - headers
    }

    /// True if the sender says that it is the last one.
    pub fn is_last(&self) -> bool {
        self.0[TCP + 13] & 1 != 0
    }

    pub fn checksum(&self) -> Checksum {
        if checksum(&self.0[IP..TCP]) != 0 {
            return Checksum::Wrong;
        }
        let segment = &self.0[TCP..];
        let length = (segment.len() as u32).to_be_bytes();
        let pseudo_header = [&self.0[IP + 12..IP + 20], &[0, 0, 0, 6], &length].concat();
        if checksum(&[&pseudo_header, segment].concat()) == 0 {
            Checksum::Verifies
        } else if self.0[TCP_CHECKSUM..TCP_CHECKSUM + 2] == (!checksum(&pseudo_header)).to_be_bytes() {
            Checksum::Unfinished
        } else {
            Checksum::Wrong
        }
    }
}
