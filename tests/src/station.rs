//! A machine that is nothing but its NIC: a tap whose frames the test writes and reads itself, with just enough TCP to
//! ask the metadata service. What a kernel would quietly discard, a segment of somebody else's connection, is an error.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::SocketAddrV4,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{guest::METADATA, model::checksum, netns::Namespace, port::Port, tap};

/// Time that an answer may take before what was sent is sent again; the first SYNs are before the program is attached.
const AGAIN: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(60);
/// virtio's header, and where the headers behind it begin.
const VIRTIO: usize = 10;
const IP: usize = VIRTIO + 14;
const TCP: usize = IP + 20;
pub(crate) const LARGEST_FRAME: usize = 70_000;

const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// The machine, with one connection. It is unplugged when dropped.
#[derive(Debug)]
pub struct Station {
    tap: File,
    port: Port,
    source_port: u16,
    /// Ports of connections that were reset before, of which more resets may be on their way.
    former: Vec<u16>,
    /// Sequence number that the other side has confirmed, and the bytes that were sent after it.
    confirmed: u32,
    outstanding: Vec<u8>,
    /// Sequence number that is expected of the other side next.
    expected: u32,
}

impl Station {
    /// Makes the tap, with that ifindex.
    pub fn plug(host: &Namespace, port: &Port, ifindex: u32) -> Result<Self> {
        let tap = tap::create(host, &port.tap, Some(ifindex))?;
        tap::set_up(host, &port.tap)?;
        Ok(Self {
            tap,
            port: port.clone(),
            source_port: 0,
            former: vec![],
            confirmed: 0,
            outstanding: vec![],
            expected: 0,
        })
    }

    /// Opens the connection from a chosen port with a chosen first sequence number.
    pub fn connect(&mut self, source_port: u16, first: u32) -> Result<()> {
        if self.source_port != 0 {
            self.former.push(self.source_port);
        }
        (self.source_port, self.confirmed) = (source_port, first);
        self.outstanding.clear();
        let deadline = Instant::now() + LIMIT;
        loop {
            self.transmit(first, 0, SYN, &[])?;
            let Some(segment) = self.segment(AGAIN)? else {
                // Until the program is on the tap, there is nobody to answer.
                if Instant::now() < deadline {
                    continue;
                }
                return Err(io::Error::from(ErrorKind::TimedOut)).context("no connection");
            };
            if segment.flags & (SYN | ACK) == SYN | ACK && segment.ack == first.wrapping_add(1) {
                self.confirmed = segment.ack;
                self.expected = segment.seq.wrapping_add(1);
                self.transmit(self.confirmed, self.expected, ACK, &[])?;
                return Ok(());
            }
        }
    }

    /// The next segment of the connection; `None` if there is none in time.
    fn segment(&mut self, limit: Duration) -> io::Result<Option<Segment>> {
        let deadline = Instant::now() + limit;
        let mut frame = vec![0; LARGEST_FRAME];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)], left)? == 0 {
                return Ok(None);
            }
            let length = self.tap.read(&mut frame)?;
            let Some(segment) = Segment::of(&frame[..length]) else { continue };
            if self.former.contains(&segment.port) && segment.flags & RST != 0 {
                continue;
            }
            let sent = self.outstanding.len() as u32;
            let is_mine = segment.port == self.source_port
                && segment.address == self.port.address.octets()
                // The very first answer confirms the SYN, which has no byte.
                && segment.ack.wrapping_sub(self.confirmed) <= sent.max(1);
            if !is_mine {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!("another's segment: {segment:?}"),
                ));
            }
            if segment.flags & RST != 0 {
                return Err(ErrorKind::ConnectionReset.into());
            }
            return Ok(Some(segment));
        }
    }

    fn transmit(&mut self, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> io::Result<()> {
        let from = SocketAddrV4::new(self.port.address, self.source_port);
        self.tap.write_all(&Sent { from, to: METADATA, seq, ack, flags, payload }.frame())
    }
}

impl Write for Station {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let seq = self.confirmed.wrapping_add(self.outstanding.len() as u32);
        self.outstanding.extend(bytes);
        self.transmit(seq, self.expected, ACK | PSH, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Station {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let Some(segment) = self.segment(10 * AGAIN)? else {
                let outstanding = self.outstanding.clone();
                self.transmit(self.confirmed, self.expected, ACK | PSH, &outstanding)?;
                continue;
            };
            let confirmed = segment.ack.wrapping_sub(self.confirmed) as usize;
            self.outstanding.drain(..confirmed.min(self.outstanding.len()));
            self.confirmed = segment.ack;
            // What does not fit is not confirmed, and comes again.
            let length = segment.payload.len().min(bytes.len());
            if segment.seq != self.expected || (length == 0 && segment.flags & FIN == 0) {
                if !segment.payload.is_empty() {
                    self.transmit(self.confirmed, self.expected, ACK, &[])?;
                }
                continue;
            }
            bytes[..length].copy_from_slice(&segment.payload[..length]);
            self.expected = self.expected.wrapping_add(length as u32);
            let seq = self.confirmed.wrapping_add(self.outstanding.len() as u32);
            self.transmit(seq, self.expected, ACK, &[])?;
            return Ok(length);
        }
        Err(ErrorKind::TimedOut.into())
    }
}

/// A TCP segment from a guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent<'a> {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

impl Sent<'_> {
    /// The frame as a tap's descriptor takes it.
    pub(crate) fn frame(self) -> Vec<u8> {
        let Self { from, to, seq, ack, flags, payload } = self;
        let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        tcp.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
        tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(payload);
        let addresses = [from.ip().octets(), to.ip().octets()].concat();
        let pseudo_header = [&addresses[..], &[0, 0, 0, 6], &(tcp.len() as u32).to_be_bytes()].concat();
        let sum = checksum(&[&pseudo_header[..], &tcp].concat()).to_be_bytes();
        tcp[16..18].copy_from_slice(&sum);
        packet(6, &addresses, &tcp)
    }
}

/// An IPv4 packet in a frame, as a tap's descriptor takes it.
pub(crate) fn packet(protocol: u8, addresses: &[u8], content: &[u8]) -> Vec<u8> {
    let length = (20 + content.len() as u16).to_be_bytes();
    let mut ip = [&[0x45, 0][..], &length, &[0, 1, 0x40, 0, 64, protocol, 0, 0], addresses].concat();
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    let ethernet = [0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    [&[0; VIRTIO][..], &ethernet, &ip, content].concat()
}

/// A TCP segment from the service.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) address: [u8; 4],
    pub(crate) port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    payload: Vec<u8>,
}

impl Segment {
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let is_tcp = frame.get(IP) == Some(&0x45) && frame.get(IP + 9) == Some(&6);
        let tcp = frame.get(TCP..).filter(|tcp| is_tcp && tcp.len() >= 20)?;
        let word = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let end = IP + usize::from(u16::from_be_bytes([frame[IP + 2], frame[IP + 3]]));
        Some(Self {
            address: *frame[IP + 16..].first_chunk()?,
            port: u16::from_be_bytes([tcp[2], tcp[3]]),
            seq: word(4)?,
            ack: word(8)?,
            flags: tcp[13],
            payload: frame.get(TCP + usize::from(tcp[12] >> 4) * 4..end)?.to_vec(),
        })
    }
}
