//! Path of a frame that the switch delivers to a network's metadata port, by which ports without a tap ask.
//!
//! The port is the one that has the frame's source MAC address, and the source address has to be one of that port's own.
//! Whatever passes here is dropped in the end.
#![forbid(unsafe_code)]
use core::net::{Ipv4Addr, Ipv6Addr};

use metadata_ebpf::{
    address::{METADATA_V4, METADATA_V6},
    counter::Counter,
    map::{LINK_LOCAL, LINK_LOCAL_MASK, Mac, Network, PortKey, Source},
    packet::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6,
        arp::{self, Arp},
        ipv4, ipv6, mac_source,
        nd::{self, Detection, Nd},
    },
};

use crate::{
    from_guest::{self, Asker},
    maps,
    program::{Outcome, Result, of_port},
    skb::{Packet, Skb},
};

#[inline(always)]
pub(crate) fn handle(skb: Skb<'_>, packet: Packet<'_>) -> Result {
    match skb.ethertype() {
        // A station's own VLANs are none of the network's.
        _ if skb.has_vlan() => Ok(Outcome::PASS),
        ETHERTYPE_IPV4 => ipv4(skb, packet),
        ETHERTYPE_IPV6 => ipv6(skb, packet),
        ETHERTYPE_ARP => arp(skb, packet),
        _ => Ok(Outcome::PASS),
    }
}

#[inline(always)]
fn ipv4(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let Some(head) = packet.head::<{ ipv4::LEN }>() else { return Ok(Outcome::PASS) };
    let kind = ipv4::kind(head);
    if !ipv4::is_ours(head) || matches!(kind, ipv4::Kind::Other) {
        return Ok(Outcome::PASS);
    }
    let (mac, source) = (mac_source(head), Source::mapped(ipv4::source(head)));
    let checked = ipv4::check(head);
    let Some(asker) = asker(skb, mac)? else { return Ok(Outcome::PASS) };
    let outcome = match (checked, kind) {
        (Err(counter), _) => Err(counter.into()),
        _ if !asker.port.owns(source) => Err(Counter::ForeignSource.into()),
        (Ok(()), ipv4::Kind::Tcp) => from_guest::tcp4(skb, packet, asker),
        (Ok(()), ipv4::Kind::Icmp) => from_guest::echo4(skb, packet, asker),
        (Ok(()), ipv4::Kind::Other) => Ok(Outcome::PASS),
    };
    of_port(asker.port.index, outcome)
}

#[inline(always)]
fn ipv6(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let Some(head) = packet.head::<{ ipv6::LEN }>() else { return Ok(Outcome::PASS) };
    let kind = ipv6::kind(head);
    if matches!(kind, ipv6::Kind::Other) || !from_guest::has_ipv6() {
        return Ok(Outcome::PASS);
    }
    let (mac, source) = (mac_source(head), Source::words(ipv6::source(head)));
    if let ipv6::Kind::Icmp { .. } = kind
        && let Some(head) = packet.head::<{ nd::TARGET_LEN }>()
        && let Some(network) = maps::network(skb.ifindex())
    {
        match nd::classify_by(head, |address| serves_v6(network, address)) {
            Nd::Other => {}
            Nd::Solicitation => {
                let Some(asker) = asker(skb, mac)? else { return Ok(Outcome::PASS) };
                let mac = network.mac.bytes();
                let answered = from_guest::solicitation(skb, packet, asker, mac, Detection::Unicast);
                return of_port(asker.port.index, answered);
            }
            Nd::Claim => return Err(Counter::NdClaim.into()),
            Nd::Invalid(counter) => return Err(counter.into()),
        }
    }
    if matches!(kind, ipv6::Kind::Icmp { to_us: false }) {
        return Ok(Outcome::PASS);
    }
    let Some(asker) = asker(skb, mac)? else { return Ok(Outcome::PASS) };
    // Neutron does not know the link-local address of a port, which is what most ask from.
    let is_foreign = source[0] & LINK_LOCAL_MASK != LINK_LOCAL && !asker.port.owns(source);
    let outcome = match kind {
        _ if is_foreign => Err(Counter::ForeignSource.into()),
        ipv6::Kind::Tcp => from_guest::tcp6(skb, packet, asker),
        ipv6::Kind::Icmp { .. } => from_guest::echo6(skb, packet, asker),
        ipv6::Kind::Unusable(counter) => Err(counter.into()),
        ipv6::Kind::Other => Ok(Outcome::PASS),
    };
    of_port(asker.port.index, outcome)
}

#[inline(always)]
fn arp(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let Some(head) = packet.head::<{ arp::LEN }>() else { return Ok(Outcome::PASS) };
    let Some(network) = maps::network(skb.ifindex()) else { return Ok(Outcome::PASS) };
    match arp::classify_by(head, |address| serves_v4(network, address)) {
        Arp::Pass => return Ok(Outcome::PASS),
        Arp::Claim => return Err(Counter::ArpClaim.into()),
        Arp::Request => {}
    }
    let Some(asker) = asker(skb, mac_source(head))? else { return Ok(Outcome::PASS) };
    of_port(asker.port.index, from_guest::arp_request(skb, packet, asker, network.mac.bytes()))
}

/// True if an address is the service's or the metadata port's own. Nobody else answers for the latter to those that reach
/// the network from outside of the switch.
#[inline(always)]
fn serves_v4(network: &Network, address: Ipv4Addr) -> bool {
    address == METADATA_V4 || network.has(Source::mapped(address))
}

/// The same over IPv6.
#[inline(always)]
fn serves_v6(network: &Network, address: Ipv6Addr) -> bool {
    address == METADATA_V6 || (!address.is_unspecified() && network.has(Source::words(address)))
}

/// The port that has this MAC address, while its agent lives. A network has others, which are served by taps, on other
/// hosts, or by nobody.
#[inline(always)]
fn asker(skb: Skb<'_>, mac: [u8; 6]) -> core::result::Result<Option<Asker>, Outcome> {
    if !from_guest::is_alive() {
        return Ok(None);
    }
    let key = PortKey::station(skb.ifindex(), Mac::new(mac));
    match maps::port(key) {
        Some(port) => Ok(Some(Asker { key, port })),
        None => Err(Counter::OtherStation.into()),
    }
}
