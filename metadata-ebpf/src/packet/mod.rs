//! Packet logic of the programs: to recognise a frame, answer it, rewrite its addresses. Pure functions.
//!
//! Offsets are from the start of the Ethernet header, of a frame without VLAN tag (the kernel has taken it off). Arrays
//! of a fixed size stand for "the frame has at least this many bytes": the caller proves it once, and no access here can
//! fail.
#![forbid(unsafe_code)]
pub mod arp;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
pub mod tcp;

use crate::counter::Counter;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Bytes of the Ethernet header.
const ETHERNET_LEN: usize = 14;
const MAC_DESTINATION: usize = 0;
const MAC_SOURCE: usize = 6;

/// Verdict on a frame, as far as its bytes tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not ours: the next program, or the switch, gets it as it is.
    Pass,
    /// Ours.
    Take,
    /// Ours and unusable: dropped and counted.
    Drop(Counter),
}

/// The bytes `N` from offset `at`, which must lie inside the frame.
#[inline(always)]
fn field<const N: usize, const LEN: usize>(frame: &[u8; LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = frame[at + i];
        i += 1;
    }
    out
}

/// True if the `N` bytes from offset `at` are these. Bytes are loaded one by one, so the last two are compared first:
/// most addresses of others differ there.
#[inline(always)]
fn holds<const N: usize, const LEN: usize>(frame: &[u8; LEN], at: usize, value: [u8; N]) -> bool {
    let end = N - 2;
    field::<2, LEN>(frame, at + end) == [value[end], value[end + 1]] && field::<N, LEN>(frame, at) == value
}

#[inline(always)]
fn set_field<const N: usize, const LEN: usize>(frame: &mut [u8; LEN], at: usize, value: [u8; N]) {
    let mut i = 0;
    while i < N {
        frame[at + i] = value[i];
        i += 1;
    }
}

/// Source MAC of a frame.
#[inline(always)]
pub fn mac_source<const LEN: usize>(frame: &[u8; LEN]) -> [u8; 6] {
    field(frame, MAC_SOURCE)
}

/// Destination MAC of a frame.
#[inline(always)]
pub fn mac_destination<const LEN: usize>(frame: &[u8; LEN]) -> [u8; 6] {
    field(frame, MAC_DESTINATION)
}

/// True if both ends of a frame are single stations, so that it can be answered from where it was sent to.
#[inline(always)]
fn is_unicast<const LEN: usize>(frame: &[u8; LEN]) -> bool {
    (frame[MAC_SOURCE] | frame[MAC_DESTINATION]) & 1 == 0
}

#[inline(always)]
fn set_macs<const LEN: usize>(frame: &mut [u8; LEN], destination: [u8; 6], source: [u8; 6]) {
    set_field(frame, MAC_DESTINATION, destination);
    set_field(frame, MAC_SOURCE, source);
}

/// Turns an ICMP or ICMPv6 request with one-byte types `from` into an answer of type `to`, in place; the addresses,
/// which are under ICMPv6's checksum in any order, are the caller's.
#[inline(always)]
fn answer_echo<const LEN: usize>(frame: &mut [u8; LEN], at: usize, from: u8, to: u8) {
    let checksum = u16::from_be_bytes(field(frame, at + 2));
    let updated = checksum_replace(checksum, u32::from(from) << 8, u32::from(to) << 8);
    frame[at] = to;
    set_field(frame, at + 2, updated.to_be_bytes());
    let (requester, asked) = (mac_source(frame), mac_destination(frame));
    set_macs(frame, requester, asked);
}

/// An Internet checksum after a 32-bit word under it changed (RFC 1624, equation 3).
#[inline(always)]
pub fn checksum_replace(checksum: u16, old: u32, new: u32) -> u16 {
    // At most five 16-bit terms: two folds suffice.
    let sum = u32::from(!checksum) + half(!old) + half(new);
    !(half(half(sum)) as u16)
}

/// The difference between two addresses as the kernel's checksum helpers take it: a one's complement sum of 32-bit words
/// in memory order, which need not be folded further.
#[inline(always)]
pub fn checksum_difference(old: [u32; 4], new: [u32; 4]) -> u32 {
    let mut sum = 0_u64;
    let mut i = 0;
    while i < 4 {
        sum += u64::from(!old[i]) + u64::from(new[i]);
        i += 1;
    }
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    ((sum >> 32) + (sum & 0xffff_ffff)) as u32
}

#[inline(always)]
const fn half(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

#[cfg(test)]
mod tests;
