//! TCP as both families have it. `at` is the offset of its header.
use super::{Verdict, field, is_unicast};
use crate::{address::METADATA_PORT, counter::Counter};

/// Bytes of a TCP header without options.
pub(super) const LEN: usize = 20;
/// Offset of the checksum in the header.
pub(super) const CHECKSUM: usize = 16;
/// IP protocol number.
pub(super) const PROTOCOL: u8 = 6;

const DESTINATION_PORT: usize = 2;
const SEQUENCE: usize = 4;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Is this segment to the metadata address for the service's port, and could it be answered?
#[inline(always)]
pub(super) fn classify<const N: usize>(frame: &[u8; N], at: usize) -> Verdict {
    if u16::from_be_bytes(field(frame, at + DESTINATION_PORT)) != METADATA_PORT {
        return Verdict::Pass;
    }
    if frame[at + DATA_OFFSET] >> 4 < 5 {
        return Verdict::Drop(Counter::TcpTruncated);
    }
    if !is_unicast(frame) {
        return Verdict::Drop(Counter::GroupMac);
    }
    Verdict::Take
}

/// A segment, as far as it decides whether its source is to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Opens a connection.
    Opening,
    /// Ends a connection, and must never be answered (RFC 9293, section 3.5.2).
    Reset,
    /// Belongs to a connection.
    Other,
}

/// Kind of this segment.
#[inline(always)]
pub(super) fn kind<const N: usize>(frame: &[u8; N], at: usize) -> Kind {
    let flags = frame[at + FLAGS];
    if flags & (SYN | ACK) == SYN {
        Kind::Opening
    } else if flags & RST != 0 {
        Kind::Reset
    } else {
        Kind::Other
    }
}

/// Is this frame of the service a reset, which carries no data?
#[inline(always)]
pub(super) fn is_reset<const N: usize>(frame: &[u8; N], at: usize) -> bool {
    frame[at + FLAGS] & RST != 0
}

/// Is this segment of the service the answer to a SYN that found no listener?
///
/// Linux answers such a SYN with RST and ACK and sequence number zero (`tcp_v4_send_reset`); a reset of a connection
/// that existed carries that connection's sequence number. A guest that is refused gives up at once (cloud-init ends
/// its stage), one that hears nothing sends its SYN again after a second, when the agent is back.
#[inline(always)]
pub(super) fn is_refusal<const N: usize>(frame: &[u8; N], at: usize) -> bool {
    frame[at + FLAGS] & (RST | ACK) == RST | ACK && field::<4, N>(frame, at + SEQUENCE) == [0; 4]
}
