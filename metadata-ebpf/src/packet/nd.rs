//! Neighbour discovery for the IPv6 metadata address (RFC 4861, RFC 4862), and for those of a network's metadata port.
use core::net::Ipv6Addr;

use super::{
    field, holds,
    ipv6::{self, DESTINATION, ICMP, LEN, SOURCE},
    mac_source, set_field, set_macs,
};
use crate::{address::METADATA_V6, counter::Counter};

/// Bytes of Ethernet, IPv6 and ICMPv6 header and a target: a solicitation or advertisement without options.
pub const TARGET_LEN: usize = LEN + 24;
/// Bytes of an advertisement with the target's link-layer address: what a solicitation is answered with.
pub const ANSWER_LEN: usize = TARGET_LEN + 8;

const PAYLOAD_LENGTH: usize = 18;
const HOP_LIMIT: usize = 21;
const TYPE: usize = LEN;
const CODE: usize = LEN + 1;
const CHECKSUM: usize = LEN + 2;
const FLAGS: usize = LEN + 4;
const TARGET: usize = LEN + 8;
const OPTION: usize = TARGET_LEN;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;
/// Target link-layer address, one unit of eight bytes.
const TARGET_LINK_LAYER: [u8; 2] = [2, 1];

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Demand of a guest's ICMPv6 packet for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nd {
    /// Nothing; it may still be an echo request.
    Other,
    /// The MAC of the address.
    Solicitation,
    /// To have the address for itself.
    Claim,
    /// Something that RFC 4861 (section 7.1.1) does not allow.
    Invalid(Counter),
}

/// Solicitations for the metadata address, duplicate address detection (source ::) included, are answered: a guest that
/// tries to take the address loses.
#[inline(always)]
pub fn classify(frame: &[u8; TARGET_LEN]) -> Nd {
    let kind = frame[TYPE];
    if kind != SOLICITATION && kind != ADVERTISEMENT {
        return Nd::Other;
    }
    if !holds(frame, TARGET, METADATA_V6.octets()) {
        return Nd::Other;
    }
    classify_by(frame, |address| address == METADATA_V6)
}

/// The same for all addresses that are `ours`.
#[inline(always)]
pub fn classify_by(frame: &[u8; TARGET_LEN], ours: impl Fn(Ipv6Addr) -> bool) -> Nd {
    let kind = frame[TYPE];
    if (kind != SOLICITATION && kind != ADVERTISEMENT) || !ours(target(frame)) {
        return Nd::Other;
    }
    if kind == ADVERTISEMENT {
        return Nd::Claim;
    }
    let source = ipv6::source(frame);
    let valid = frame[HOP_LIMIT] == 255
        && frame[CODE] == 0
        && frame[super::MAC_SOURCE] & 1 == 0
        && source.octets()[0] != 0xff
        && !ours(source);
    if valid { Nd::Solicitation } else { Nd::Invalid(Counter::NdInvalid) }
}

/// Destination MAC address of the answer to duplicate address detection, which is for all nodes (RFC 4861, section
/// 7.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detection {
    /// That of the group.
    Multicast,
    /// The asker's alone (RFC 6085): nothing else gets from a metadata port to a station outside of the switch.
    Unicast,
}

#[inline(always)]
fn target<const N: usize>(frame: &[u8; N]) -> Ipv6Addr {
    Ipv6Addr::from_octets(field(frame, TARGET))
}

/// Turns a solicitation, cut or padded to the length of its answer, into that answer, in place: the target is at `mac`.
#[inline(always)]
pub fn answer(frame: &mut [u8; ANSWER_LEN], mac: [u8; 6], detection: Detection) {
    let asker = ipv6::source(frame);
    let target = target(frame);
    // Nobody has the address yet in duplicate address detection: the answer is for all.
    let (destination, to, flags) = if asker.is_unspecified() {
        let to = match detection {
            Detection::Multicast => ALL_NODES_MAC,
            Detection::Unicast => mac_source(frame),
        };
        (ALL_NODES, to, FLAG_OVERRIDE)
    } else {
        (asker, mac_source(frame), FLAG_SOLICITED | FLAG_OVERRIDE)
    };
    set_macs(frame, to, mac);
    set_field(frame, PAYLOAD_LENGTH, ((ANSWER_LEN - LEN) as u16).to_be_bytes());
    frame[HOP_LIMIT] = 255;
    set_field(frame, SOURCE, target.octets());
    set_field(frame, DESTINATION, destination.octets());
    frame[TYPE] = ADVERTISEMENT;
    set_field(frame, CHECKSUM, [0, 0]);
    set_field(frame, FLAGS, [flags, 0, 0, 0]);
    set_field(frame, OPTION, TARGET_LINK_LAYER);
    set_field(frame, OPTION + 2, mac);
    let checksum = checksum(frame);
    set_field(frame, CHECKSUM, checksum.to_be_bytes());
}

/// ICMPv6's checksum over addresses, length, next header and packet (RFC 4443, section 2.3; RFC 8200, section 8.1).
#[inline(always)]
fn checksum(frame: &[u8; ANSWER_LEN]) -> u16 {
    let mut sum = (ANSWER_LEN - LEN) as u32 + u32::from(ICMP);
    let mut at = SOURCE;
    while at < ANSWER_LEN {
        sum += u32::from(u16::from_be_bytes(field(frame, at)));
        at += 2;
    }
    !(super::half(super::half(sum)) as u16)
}
