//! A guest that floods: frames written to its tap's descriptors, as a hypervisor writes them, by one thread for each queue.
//!
//! Every flood is bounded in time and in frames. What comes back to the guest is left in the tap's queue, which is full soon.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    guest::METADATA,
    station::{ACK, LARGEST_FRAME, PSH, SYN, Segment, Sent, packet},
    tap::BareTap,
};

/// Frames of a thread that differ from each other, which are made before.
const DIFFERENT: u32 = 4096;
/// Most of what one thread writes.
const MOST: u64 = 50_000_000;
const LONGEST: Duration = Duration::from_secs(20);
/// Frames between two looks at the clock.
const BATCH: usize = 64;
/// Time for an answer to a SYN, after which it is sent again.
const ANSWER: Duration = Duration::from_millis(200);
const ATTEMPTS: usize = 50;
/// Somebody whose MAC address no port of the network has.
const ELSEWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 80);
const UDP: u8 = 17;
const FIRST_PORT: u16 = 1024;
/// Sequence number of the first byte.
const FIRST: u32 = 0x1000_0000;

/// Kind of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// SYNs to the service from the guest's own address.
    Syn,
    /// The same from addresses that are made up.
    SynSpoofed,
    /// Segments of no connection, to the service from the guest's own address.
    Ack,
    /// The same from addresses that are made up.
    AckSpoofed,
    /// A byte of an open connection with the service, again and again: TCP confirms each one.
    Repeated,
    /// Datagrams to the service's address.
    Udp,
    /// SYNs to somebody else.
    SynPast,
    /// Datagrams to somebody else.
    UdpPast,
}

impl Flood {
    pub const ALL: [Self; 8] = [
        Self::Syn,
        Self::SynSpoofed,
        Self::Ack,
        Self::AckSpoofed,
        Self::Repeated,
        Self::Udp,
        Self::SynPast,
        Self::UdpPast,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Syn => "SYNs to us, own address",
            Self::SynSpoofed => "SYNs to us, 4,096 addresses",
            Self::Ack => "ACKs to us without a connection, own address",
            Self::AckSpoofed => "ACKs to us without a connection, 4,096 addresses",
            Self::Repeated => "one byte of an open connection, repeated",
            Self::Udp => "UDP to our address",
            Self::SynPast => "SYNs past us",
            Self::UdpPast => "UDP past us",
        }
    }

    /// The frame of that number, from a guest with that address.
    pub fn frame(self, own: Ipv4Addr, number: u32) -> Vec<u8> {
        let port = FIRST_PORT + (number % 60_000) as u16;
        let address = match self {
            Self::SynSpoofed | Self::AckSpoofed => Ipv4Addr::from_bits(0x0a00_0001 + number),
            _ => own,
        };
        let to = match self {
            Self::SynPast | Self::UdpPast => ELSEWHERE,
            _ => METADATA,
        };
        let segment = |flags| Sent {
            from: SocketAddrV4::new(address, port),
            to,
            seq: FIRST.wrapping_add(number),
            ack: 1,
            flags,
            payload: &[],
        };
        match self {
            Self::Syn | Self::SynSpoofed | Self::SynPast => segment(SYN).frame(),
            Self::Ack | Self::AckSpoofed | Self::Repeated => segment(ACK).frame(),
            Self::Udp | Self::UdpPast => {
                let addresses = [address.octets(), to.ip().octets()].concat();
                // Without a checksum, which IPv4 allows.
                let head = [port.to_be_bytes(), to.port().to_be_bytes(), [0, 40], [0, 0]].concat();
                packet(UDP, &addresses, &[&head[..], &[0; 32]].concat())
            }
        }
    }
}

/// Extent of a flood.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extent {
    /// Frames that the tap has taken.
    pub frames: u64,
    /// Time of all threads.
    pub time: Duration,
}

/// Does `work` while the guest behind the tap floods from so many threads, each with a queue of its own.
pub fn meanwhile<T>(
    tap: &BareTap,
    flood: Flood,
    threads: usize,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Extent)> {
    ensure!(threads <= tap.queues.len(), "the tap has {} queues", tap.queues.len());
    let own = tap.port.address;
    let frames: Vec<Vec<Vec<u8>>> = match flood {
        Flood::Repeated => vec![vec![repeated(tap)?]; threads],
        _ => {
            let share =
                |thread| (0..DIFFERENT).map(move |number| flood.frame(own, thread * DIFFERENT + number));
            (0..threads as u32).map(|thread| share(thread).collect()).collect()
        }
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = Stop(&over);
        let writers: Vec<_> = tap
            .queues
            .iter()
            .zip(&frames)
            .map(|(queue, frames)| scope.spawn(|| write(queue, frames, &over)))
            .collect();
        let done = work();
        drop(stop);
        let mut extent = Extent::default();
        for writer in writers {
            let wrote = writer.join().ok().context("a writer panicked")??;
            extent.frames += wrote.frames;
            extent.time += wrote.time;
        }
        Ok((done?, extent))
    })
}

/// Ends the writers, also when the work panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes the frames one after another, from the first again after the last, until it is over.
fn write(mut queue: &File, frames: &[Vec<u8>], over: &AtomicBool) -> Result<Extent> {
    let started = Instant::now();
    let mut extent = Extent::default();
    let mut next = frames.iter().cycle();
    while !over.load(Ordering::Relaxed) && extent.frames < MOST && started.elapsed() < LONGEST {
        for frame in next.by_ref().take(BATCH) {
            match queue.write(frame) {
                Ok(_) => extent.frames += 1,
                // Too much of what was written is still on its way.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => return Err(error).context("the tap takes no frame"),
            }
        }
    }
    extent.time = started.elapsed();
    Ok(extent)
}

/// Time of a write to the tap, on average over so many.
pub fn time_of_a_write(mut queue: &File, frames: &[Vec<u8>], count: u32) -> io::Result<Duration> {
    let started = Instant::now();
    for frame in frames.iter().cycle().take(count as usize) {
        queue.write_all(frame)?;
    }
    Ok(started.elapsed() / count)
}

/// Opens a connection with the service, and returns a segment of it that was confirmed before.
fn repeated(tap: &BareTap) -> Result<Vec<u8>> {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(1);
    // The service may have a former one still.
    let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed) % FIRST_PORT;
    let segment = |seq, ack, flags, payload| {
        let from = SocketAddrV4::new(tap.port.address, port);
        Sent { from, to: METADATA, seq, ack, flags, payload }.frame()
    };
    let mut queue = tap.queues.first().context("a tap without a queue")?;
    for _ in 0..ATTEMPTS {
        tap.queues.iter().try_for_each(discard)?;
        queue.write_all(&segment(FIRST, 0, SYN, &[]))?;
        if let Some(answer) = answer(tap, port)? {
            let (seq, ack) = (FIRST.wrapping_add(1), answer.seq.wrapping_add(1));
            let byte = segment(seq, ack, ACK | PSH, b"G");
            queue.write_all(&byte)?;
            return Ok(byte);
        }
    }
    bail!("the service does not answer a SYN")
}

/// Reads what waits in a queue.
fn discard(mut queue: &File) -> io::Result<()> {
    let mut frame = vec![0; LARGEST_FRAME];
    loop {
        match queue.read(&mut frame) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The answer to the SYN, in whichever queue the kernel puts it.
fn answer(tap: &BareTap, port: u16) -> Result<Option<Segment>> {
    let deadline = Instant::now() + ANSWER;
    let mut frame = vec![0; LARGEST_FRAME];
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let mut waiting: Vec<_> =
            tap.queues.iter().map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut waiting, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO))?;
        for mut queue in &tap.queues {
            let length = match queue.read(&mut frame) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                length => length?,
            };
            let segment = Segment::of(&frame[..length]).filter(|segment| {
                segment.port == port
                    && segment.address == tap.port.address.octets()
                    && segment.flags & (SYN | ACK) == SYN | ACK
                    && segment.ack == FIRST.wrapping_add(1)
            });
            if segment.is_some() {
                return Ok(segment);
            }
        }
    }
    Ok(None)
}
