//! Neighbour discovery for the IPv6 metadata address (RFC 4861, RFC 4862).
use core::net::Ipv6Addr;

use super::{
    field, holds,
    ipv6::{self, DESTINATION, ICMP, LEN, SOURCE},
    mac_source, set_field, set_macs,
};
use crate::{
    address::{METADATA_V6, SERVICE_MAC},
    counter::Counter,
};

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

/// What an ICMPv6 packet of a guest wants of the metadata address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nd {
    /// Nothing; it may still be an echo request.
    Other,
    /// The MAC of the metadata address.
    Solicitation,
    /// To have the metadata address for itself.
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
    if kind == ADVERTISEMENT {
        return Nd::Claim;
    }
    let source = ipv6::source(frame).octets();
    let valid = frame[HOP_LIMIT] == 255
        && frame[CODE] == 0
        && frame[super::MAC_SOURCE] & 1 == 0
        && source[0] != 0xff
        && source != METADATA_V6.octets();
    if valid { Nd::Solicitation } else { Nd::Invalid(Counter::NdInvalid) }
}

/// Turns a solicitation, cut or padded to the length of its answer, into that answer, in place.
#[inline(always)]
pub fn answer(frame: &mut [u8; ANSWER_LEN]) {
    let asker = ipv6::source(frame);
    // Nobody has the address yet in duplicate address detection: the answer goes to all (RFC 4861, section 7.2.4).
    let (destination, mac, flags) = if asker.is_unspecified() {
        (ALL_NODES, ALL_NODES_MAC, FLAG_OVERRIDE)
    } else {
        (asker, mac_source(frame), FLAG_SOLICITED | FLAG_OVERRIDE)
    };
    set_macs(frame, mac, SERVICE_MAC);
    set_field(frame, PAYLOAD_LENGTH, ((ANSWER_LEN - LEN) as u16).to_be_bytes());
    frame[HOP_LIMIT] = 255;
    set_field(frame, SOURCE, METADATA_V6.octets());
    set_field(frame, DESTINATION, destination.octets());
    frame[TYPE] = ADVERTISEMENT;
    set_field(frame, CHECKSUM, [0, 0]);
    set_field(frame, FLAGS, [flags, 0, 0, 0]);
    set_field(frame, OPTION, TARGET_LINK_LAYER);
    set_field(frame, OPTION + 2, SERVICE_MAC);
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
