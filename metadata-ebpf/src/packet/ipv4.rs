//! IPv4 frames to the metadata address, and the service's replies.
use core::net::Ipv4Addr;

use super::{
    ETHERNET_LEN, Verdict, answer_echo, checksum_replace, field, holds, is_unicast, set_field, set_macs, tcp,
};
use crate::{
    address::{METADATA_V4, SERVICE_MAC},
    counter::Counter,
};

/// Bytes of Ethernet and IPv4 header.
pub const LEN: usize = ETHERNET_LEN + 20;
/// Bytes of Ethernet, IPv4 and TCP header, without options.
pub const TCP_LEN: usize = LEN + tcp::LEN;
/// Bytes of Ethernet, IPv4 and ICMP header.
pub const ICMP_LEN: usize = LEN + 8;
/// Offset of the TCP checksum.
pub const TCP_CHECKSUM: usize = LEN + tcp::CHECKSUM;

const VERSION_IHL: usize = 14;
const FRAGMENT: usize = 20;
const PROTOCOL: usize = 23;
const CHECKSUM: usize = 24;
const SOURCE: usize = 26;
const DESTINATION: usize = 30;

const ICMP: u8 = 1;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// A frame to the metadata address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// TCP, to whatever port.
    Tcp,
    /// ICMP, of whatever type.
    Icmp,
    /// Nothing of ours.
    Other,
}

/// Is this frame of a guest for the metadata address? All that a frame that is not ours pays.
#[inline(always)]
pub fn is_ours(frame: &[u8; LEN]) -> bool {
    holds(frame, DESTINATION, METADATA_V4.octets())
}

/// Kind of a frame for the metadata address.
#[inline(always)]
pub fn kind(frame: &[u8; LEN]) -> Kind {
    match frame[PROTOCOL] {
        tcp::PROTOCOL => Kind::Tcp,
        ICMP => Kind::Icmp,
        _ => Kind::Other,
    }
}

/// Can the header of this TCP or ICMP packet be used?
#[inline(always)]
pub fn check(frame: &[u8; LEN]) -> Result<(), Counter> {
    // A fragment's ports are in the first one only, so nobody can say whether the others are ours.
    if u16::from_be_bytes(field(frame, FRAGMENT)) & 0x3fff != 0 {
        return Err(Counter::Fragment);
    }
    if frame[VERSION_IHL] != 0x45 {
        return Err(Counter::IpHeader);
    }
    Ok(())
}

/// Is this TCP segment for the service, and could it be answered?
#[inline(always)]
pub fn classify_tcp(frame: &[u8; TCP_LEN]) -> Verdict {
    match tcp::classify(frame, LEN) {
        Verdict::Take if !is_source(frame) => Verdict::Drop(Counter::BadSource),
        verdict => verdict,
    }
}

/// Kind of this segment.
#[inline(always)]
pub fn tcp_kind(frame: &[u8; TCP_LEN]) -> tcp::Kind {
    tcp::kind(frame, LEN)
}

/// Is this ICMP packet an echo request that could be answered?
#[inline(always)]
pub fn classify_icmp(frame: &[u8; ICMP_LEN]) -> Verdict {
    if frame[LEN] != ECHO_REQUEST || frame[LEN + 1] != 0 {
        return Verdict::Pass;
    }
    if !is_unicast(frame) {
        return Verdict::Drop(Counter::GroupMac);
    }
    if !is_source(frame) {
        return Verdict::Drop(Counter::BadSource);
    }
    Verdict::Take
}

/// Turns an echo request into its answer, in place. The sums do not mind that source and destination change places.
#[inline(always)]
pub fn answer_icmp(frame: &mut [u8; ICMP_LEN]) {
    let source = field::<4, ICMP_LEN>(frame, SOURCE);
    set_field(frame, SOURCE, METADATA_V4.octets());
    set_field(frame, DESTINATION, source);
    answer_echo(frame, LEN, ECHO_REQUEST, ECHO_REPLY);
}

/// Source address.
#[inline(always)]
pub fn source<const N: usize>(frame: &[u8; N]) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes(field(frame, SOURCE)))
}

/// Destination address.
#[inline(always)]
pub fn destination(frame: &[u8; TCP_LEN]) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes(field(frame, DESTINATION)))
}

/// Gives a guest's frame its synthetic source address and the service's MAC. The TCP checksum is the caller's.
#[inline(always)]
pub fn to_service(frame: &mut [u8; TCP_LEN], tag: Ipv4Addr) {
    let source = super::mac_source(frame);
    set_macs(frame, SERVICE_MAC, source);
    rewrite(frame, SOURCE, tag);
}

/// Gives a reply of the service the guest's address and MACs. The TCP checksum is the caller's.
#[inline(always)]
pub fn to_guest(frame: &mut [u8; TCP_LEN], address: Ipv4Addr, mac: [u8; 6], via: [u8; 6]) {
    set_macs(frame, mac, via);
    rewrite(frame, DESTINATION, address);
}

/// Is this frame of the service the answer to a SYN that found no listener?
#[inline(always)]
pub fn is_refusal(frame: &[u8; TCP_LEN]) -> bool {
    tcp::is_refusal(frame, LEN)
}

/// Source port of a segment, in the order of the network.
#[inline(always)]
pub fn source_port(frame: &[u8; TCP_LEN]) -> u16 {
    u16::from_ne_bytes(field(frame, LEN))
}

/// Is this frame of the service a reset?
#[inline(always)]
pub fn is_reset(frame: &[u8; TCP_LEN]) -> bool {
    tcp::is_reset(frame, LEN)
}

/// Is this frame TCP without IP options from the metadata address, as our own stack sends it?
#[inline(always)]
pub fn is_reply(frame: &[u8; TCP_LEN]) -> bool {
    frame[VERSION_IHL] == 0x45
        && frame[PROTOCOL] == tcp::PROTOCOL
        && u16::from_be_bytes(field(frame, FRAGMENT)) & 0x3fff == 0
        && field::<4, TCP_LEN>(frame, SOURCE) == METADATA_V4.octets()
}

/// 0/8, 127/8, 224/4 and 240/4 are no host's address; the service's own would be answered to itself.
#[inline(always)]
fn is_source<const N: usize>(frame: &[u8; N]) -> bool {
    let source = field::<4, N>(frame, SOURCE);
    source[0] != 0 && source[0] != 127 && source[0] < 224 && source != METADATA_V4.octets()
}

#[inline(always)]
fn rewrite(frame: &mut [u8; TCP_LEN], at: usize, address: Ipv4Addr) {
    let old = u32::from_be_bytes(field(frame, at));
    let new = address.to_bits();
    let checksum = u16::from_be_bytes(field(frame, CHECKSUM));
    set_field(frame, CHECKSUM, checksum_replace(checksum, old, new).to_be_bytes());
    set_field(frame, at, new.to_be_bytes());
}
