//! Records of frames, as the programs make them while somebody wants to see them: read, and told in words.
#![allow(unsafe_code, reason = "a promise about a descriptor, and bytes of a map that are a record")]
use std::{io, net::IpAddr, os::fd::AsFd as _, path::Path, ptr};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, RingBuf},
};
use metadata_ebpf::{
    address::Tag,
    counter::Counter,
    map::{FrameRecord, PortSources},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Error,
    headers::Headers,
    tables::{failed, pinned},
};

/// Actions of a program (linux/pkt_cls.h).
const SHOT: i32 = 2;
const UNSPEC: i32 = -1;

/// A frame that was ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its outcome.
    pub outcome: Counter,
    /// Action of the program.
    pub action: Action,
    /// Index and generation of its port, if that is known.
    pub port: Option<(u32, u8)>,
    /// Interface index of its device.
    pub ifindex: u32,
    /// VLAN of its port, 0 for none.
    pub vlan: u32,
    /// Its length.
    pub len: u32,
    /// Its headers, with the guest's own address.
    pub headers: Headers,
    /// Frames that were left out before it, since there were too many.
    pub left_out: u64,
}

/// Action of a program on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It ends here.
    Dropped,
    /// It goes to the service or to the guest.
    Forwarded,
    /// It goes on as if there were no program.
    Passed,
}

impl Action {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
        }
    }
}

/// The reader of the records.
pub struct Records {
    ring: AsyncFd<Ring>,
    sources: Array<MapData, PortSources>,
}

struct Ring(RingBuf<MapData>);

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl std::os::fd::AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Records {
    /// Of the loaded programs, whose maps are pinned in `folder`. To be called within a runtime.
    pub(super) fn take(ebpf: &mut Ebpf, folder: &Path) -> Result<Self, Error> {
        let ring = super::tables::typed::<RingBuf<MapData>>(ebpf, "RECORDS")?;
        let sources = Array::try_from(Map::Array(pinned(folder, "SOURCES")?));
        // SAFETY: the ring owns its descriptor, keeps it open for its whole life and always gives the same one.
        let ring = unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) };
        let ring = ring.map_err(|error| Error::Shared(io::Error::other(error)))?;
        Ok(Self { ring, sources: sources.map_err(|error| failed("SOURCES", error))? })
    }

    /// The next frame. May be cancelled.
    pub async fn next(&mut self) -> io::Result<Frame> {
        loop {
            let record = self.ring.get_mut().0.next().and_then(|item| read(&item));
            if let Some(record) = record {
                return Ok(self.explain(&record));
            }
            self.ring.readable().await?.clear_ready();
            // One that came just before that is seen here, and another one wakes again.
            if let Some(record) = self.ring.get_mut().0.next().and_then(|item| read(&item)) {
                return Ok(self.explain(&record));
            }
        }
    }

    /// A record in words. What is on its way to the service has the guest's address no more: its tag leads to that.
    fn explain(&self, record: &FrameRecord) -> Frame {
        let len = (record.len as usize).min(record.head.len());
        let mut headers = Headers::read(&record.head[..len]);
        let state = self.sources.get(&record.port, 0).ok().filter(|state| state.ifindex != 0);
        let tag = headers.source.and_then(Tag::from_ip).filter(|tag| tag.index() == record.port);
        if let (Some(tag), Some(state)) = (tag, &state) {
            let source = state.sources[tag.source()];
            headers.source = (source.last_seen != 0).then(|| source.ip()).or(headers.source);
        }
        Frame {
            outcome: Counter::ALL.get(record.counter as usize).copied().unwrap_or(Counter::ServiceOther),
            action: match record.action {
                SHOT => Action::Dropped,
                UNSPEC => Action::Passed,
                _ => Action::Forwarded,
            },
            port: state.as_ref().map(|state| (record.port, state.generation as u8)),
            ifindex: record.ifindex,
            vlan: state.map_or(record.vlan, |state| state.vlan),
            len: record.len,
            headers,
            left_out: record.left_out,
        }
    }
}

impl Frame {
    /// The address that its guest uses, whichever way it goes.
    pub fn guest(&self) -> Option<IpAddr> {
        if self.outcome == Counter::Replied { self.headers.destination } else { self.headers.source }
    }
}

/// The bytes of a record, if they are one.
fn read(bytes: &[u8]) -> Option<FrameRecord> {
    // SAFETY: as many bytes are there; integers only, which any bytes are values of.
    (bytes.len() >= size_of::<FrameRecord>()).then(|| unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}
