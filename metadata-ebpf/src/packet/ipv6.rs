//! IPv6 frames to the metadata address, and the service's replies.
use core::net::Ipv6Addr;

use super::{ETHERNET_LEN, Verdict, answer_echo, field, holds, is_unicast, set_field, set_macs, tcp};
use crate::{
    address::{METADATA_V6, SERVICE_MAC, TAG_NET_V6},
    counter::Counter,
};

/// Bytes of Ethernet and IPv6 header.
pub const LEN: usize = ETHERNET_LEN + 40;
/// Bytes of Ethernet, IPv6 and TCP header, without options.
pub const TCP_LEN: usize = LEN + tcp::LEN;
/// Bytes of Ethernet, IPv6 and ICMPv6 header.
pub const ICMP_LEN: usize = LEN + 8;
/// Offset of the TCP checksum.
pub const TCP_CHECKSUM: usize = LEN + tcp::CHECKSUM;

const VERSION: usize = 14;
const NEXT_HEADER: usize = 20;
pub(super) const SOURCE: usize = 22;
pub(super) const DESTINATION: usize = 38;

/// Next header of ICMPv6.
pub(super) const ICMP: u8 = 58;
const FRAGMENT: u8 = 44;
/// The other extension headers: hop-by-hop, routing, ESP, AH, destination options, mobility, HIP, shim6.
const EXTENSIONS: [u8; 8] = [0, 43, 50, 51, 60, 135, 139, 140];
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// Kind of a frame, as far as its IPv6 header tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// TCP to the metadata address.
    Tcp,
    /// ICMPv6, to the metadata address or to any other: neighbour discovery for the metadata address uses several.
    Icmp {
        /// True if it is to the metadata address.
        to_us: bool,
    },
    /// For the metadata address, and unusable.
    Unusable(Counter),
    /// Nothing of ours.
    Other,
}

/// Kind of a guest's frame. One that is not ours pays two comparisons.
#[inline(always)]
pub fn kind(frame: &[u8; LEN]) -> Kind {
    let next = frame[NEXT_HEADER];
    let to_us = holds(frame, DESTINATION, METADATA_V6.octets());
    if next == ICMP {
        return Kind::Icmp { to_us };
    }
    if !to_us {
        return Kind::Other;
    }
    match next {
        tcp::PROTOCOL => Kind::Tcp,
        FRAGMENT => Kind::Unusable(Counter::Fragment),
        _ if EXTENSIONS.contains(&next) => Kind::Unusable(Counter::Ipv6Extension),
        _ => Kind::Other,
    }
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

/// Is this ICMPv6 packet to the metadata address an echo request that could be answered?
#[inline(always)]
pub fn classify_echo(frame: &[u8; ICMP_LEN]) -> Verdict {
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

/// Turns an echo request into its answer, in place. The sum does not mind that source and destination change places.
#[inline(always)]
pub fn answer_icmp(frame: &mut [u8; ICMP_LEN]) {
    let source = field::<16, ICMP_LEN>(frame, SOURCE);
    set_field(frame, SOURCE, METADATA_V6.octets());
    set_field(frame, DESTINATION, source);
    answer_echo(frame, LEN, ECHO_REQUEST, ECHO_REPLY);
}

/// Source address.
#[inline(always)]
pub fn source<const N: usize>(frame: &[u8; N]) -> Ipv6Addr {
    Ipv6Addr::from_octets(field(frame, SOURCE))
}

/// Destination address.
#[inline(always)]
pub fn destination(frame: &[u8; TCP_LEN]) -> Ipv6Addr {
    Ipv6Addr::from_octets(field(frame, DESTINATION))
}

/// Gives a guest's frame its synthetic source address and the service's MAC. The TCP checksum is the caller's.
#[inline(always)]
pub fn to_service(frame: &mut [u8; TCP_LEN], tag: Ipv6Addr) {
    let source = super::mac_source(frame);
    set_macs(frame, SERVICE_MAC, source);
    set_field(frame, SOURCE, tag.octets());
}

/// Gives a reply of the service the guest's address and MACs. The TCP checksum is the caller's.
#[inline(always)]
pub fn to_guest(frame: &mut [u8; TCP_LEN], address: Ipv6Addr, mac: [u8; 6], via: [u8; 6]) {
    set_macs(frame, mac, via);
    set_field(frame, DESTINATION, address.octets());
}

/// Is this frame of the service the answer to a SYN that found no listener?
#[inline(always)]
pub fn is_refusal(frame: &[u8; TCP_LEN]) -> bool {
    tcp::is_refusal(frame, LEN)
}

/// Is this frame of the service a reset?
#[inline(always)]
pub fn is_reset(frame: &[u8; TCP_LEN]) -> bool {
    tcp::is_reset(frame, LEN)
}

/// Is this frame TCP without extension headers from the metadata address, as our own stack sends it?
#[inline(always)]
pub fn is_reply(frame: &[u8; TCP_LEN]) -> bool {
    frame[VERSION] >> 4 == 6
        && frame[NEXT_HEADER] == tcp::PROTOCOL
        && field::<16, TCP_LEN>(frame, SOURCE) == METADATA_V6.octets()
}

/// Unspecified and loopback (::/96 with them), IPv4-mapped and multicast addresses are no host's address here; the
/// service's own and the synthetic ones would be answered to ourselves.
#[inline(always)]
fn is_source<const N: usize>(frame: &[u8; N]) -> bool {
    let source = field::<16, N>(frame, SOURCE);
    let high = u64::from_be_bytes(field(&source, 0));
    let tag_net = TAG_NET_V6.octets();
    high != 0
        && source[0] != 0xff
        && source != METADATA_V6.octets()
        && field::<12, 16>(&source, 0) != field::<12, 16>(&tag_net, 0)
}
