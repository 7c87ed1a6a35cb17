//! ARP for the metadata address (RFC 826, RFC 5227), and for those of a network's metadata port.
use core::net::Ipv4Addr;

use super::{ETHERNET_LEN, ETHERTYPE_ARP, field, holds, mac_source, set_field, set_macs};
use crate::address::METADATA_V4;

/// Bytes of Ethernet header and an ARP packet for IPv4 over Ethernet.
pub const LEN: usize = ETHERNET_LEN + 28;

const FIXED: usize = 14;
const OPERATION: usize = 20;
const SENDER_MAC: usize = 22;
const SENDER: usize = 28;
const TARGET_MAC: usize = 32;
const TARGET: usize = 38;

/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// Demand of an ARP frame of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arp {
    /// Nothing of us.
    Pass,
    /// The MAC of the address.
    Request,
    /// To have the address for itself.
    Claim,
}

/// Requests for the metadata address, probes (sender 0.0.0.0) included, are answered: a guest that probes for the address
/// finds it taken. Whatever has the metadata address as its sender claims it.
#[inline(always)]
pub fn classify(frame: &[u8; LEN]) -> Arp {
    let is_claim = holds(frame, SENDER, METADATA_V4.octets());
    if !is_claim && !holds(frame, TARGET, METADATA_V4.octets()) {
        return Arp::Pass;
    }
    classify_by(frame, |address| address == METADATA_V4)
}

/// The same for all addresses that are `ours`.
#[inline(always)]
pub fn classify_by(frame: &[u8; LEN], ours: impl Fn(Ipv4Addr) -> bool) -> Arp {
    let (is_claim, is_asked) = (ours(address(frame, SENDER)), ours(address(frame, TARGET)));
    if (!is_claim && !is_asked) || field::<6, LEN>(frame, FIXED) != ETHERNET_IPV4 {
        return Arp::Pass;
    }
    if is_claim {
        return Arp::Claim;
    }
    if field::<2, LEN>(frame, OPERATION) == REQUEST { Arp::Request } else { Arp::Pass }
}

/// Turns a request for an address into its answer, in place: the address is at `mac`.
#[inline(always)]
pub fn answer(frame: &mut [u8; LEN], mac: [u8; 6]) {
    let sender = field::<10, LEN>(frame, SENDER_MAC);
    let asked = field::<4, LEN>(frame, TARGET);
    set_macs(frame, mac_source(frame), mac);
    set_field(frame, OPERATION, REPLY);
    set_field(frame, SENDER_MAC, mac);
    set_field(frame, SENDER, asked);
    set_field(frame, TARGET_MAC, sender);
}

/// A reply that nobody asked for: the address is at `mac`, for who has the other one.
pub fn announcement(address: Ipv4Addr, mac: [u8; 6], to: [u8; 6]) -> [u8; LEN] {
    let mut frame = [0; LEN];
    set_macs(&mut frame, to, mac);
    set_field(&mut frame, ETHERNET_LEN - 2, ETHERTYPE_ARP.to_be_bytes());
    set_field(&mut frame, FIXED, ETHERNET_IPV4);
    set_field(&mut frame, OPERATION, REPLY);
    set_field(&mut frame, SENDER_MAC, mac);
    set_field(&mut frame, SENDER, address.octets());
    set_field(&mut frame, TARGET_MAC, to);
    set_field(&mut frame, TARGET, address.octets());
    frame
}

#[inline(always)]
fn address(frame: &[u8; LEN], at: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes(field(frame, at)))
}
