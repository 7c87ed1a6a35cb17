//! Path of a frame that the service sends.
#![forbid(unsafe_code)]
use metadata_ebpf::{
    address::Tag,
    counter::Counter,
    map::Source,
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ipv4, ipv6},
};

use crate::{
    maps::{self, PortState},
    program::{Outcome, Result, of_port},
    records,
    skb::{Packet, Skb},
};

#[inline(always)]
pub(crate) fn handle(skb: Skb<'_>, packet: Packet<'_>) -> Result {
    match skb.ethertype() {
        ETHERTYPE_IPV4 => reply4(skb, packet),
        ETHERTYPE_IPV6 => reply6(skb, packet),
        _ => Err(Counter::ServiceOther.into()),
    }
}

#[inline(always)]
fn reply4(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let frame = packet.head_for_writing::<{ ipv4::TCP_LEN }>().ok_or(Counter::ServiceOther)?;
    if !ipv4::is_reply(frame) {
        return Err(Counter::ServiceOther.into());
    }
    if ipv4::is_refusal(frame) {
        return Err(Counter::RefusalHidden.into());
    }
    let address = ipv4::destination(frame);
    let tag = Tag::from_v4(address).ok_or(Counter::ServiceOther)?;
    let port = port(tag, ipv4::is_reset(frame))?;
    let source = port.source(tag.source());
    let guest = source.v4().filter(|_| source.last_seen != 0).ok_or(Counter::StaleTag)?;
    ipv4::to_guest(frame, guest, source.mac.bytes(), source.via.bytes());
    let rewritten = packet.replace_tcp4_checksum(address, guest);
    of_port(tag.index(), to_tap(skb, packet, rewritten, tag.index(), port))
}

#[inline(always)]
fn reply6(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let frame = packet.head_for_writing::<{ ipv6::TCP_LEN }>().ok_or(Counter::ServiceOther)?;
    if !ipv6::is_reply(frame) {
        return Err(Counter::ServiceOther.into());
    }
    if ipv6::is_refusal(frame) {
        return Err(Counter::RefusalHidden.into());
    }
    let address = ipv6::destination(frame);
    let tag = Tag::from_v6(address).ok_or(Counter::ServiceOther)?;
    let port = port(tag, ipv6::is_reset(frame))?;
    let source = port.source(tag.source());
    if source.last_seen == 0 || source.v4().is_some() {
        return Err(Counter::StaleTag.into());
    }
    ipv6::to_guest(frame, source.v6(), source.mac.bytes(), source.via.bytes());
    let rewritten = packet.replace_tcp6_checksum(Source::words(address), source.address);
    of_port(tag.index(), to_tap(skb, packet, rewritten, tag.index(), port))
}

/// The port that a tag leads to, if that is still the assignment it was given out for. One that has ended still gets its
/// resets, by which the guest hears that its connections are over; they carry nothing else.
#[inline(always)]
fn port(tag: Tag, is_reset: bool) -> core::result::Result<PortState, Counter> {
    let port = maps::state(tag.index()).ok_or(Counter::StaleTag)?;
    // An index assigned anew has another generation.
    let leads = port.ifindex() != 0
        && port.generation() == u32::from(tag.generation())
        && (is_reset || !port.has_ended());
    if leads { Ok(port) } else { Err(Counter::StaleTag) }
}

/// Sends a frame whose addresses are the guest's by now, if that succeeded, out of its tap.
#[inline(always)]
fn to_tap(
    skb: Skb<'_>,
    mut packet: Packet<'_>,
    rewritten: Option<()>,
    index: u32,
    port: PortState,
) -> Result {
    rewritten.ok_or(Counter::RewriteFailed)?;
    let (ifindex, vlan) = (port.ifindex(), port.vlan());
    if vlan != 0 {
        packet.push_vlan(vlan as u16).ok_or(Counter::RewriteFailed)?;
    }
    maps::count(ifindex, index, Counter::Replied as u32);
    let action = skb.redirect_to_tap(ifindex);
    records::record(skb, ifindex, index, Counter::Replied as u32, action);
    Ok(Outcome::counted(action))
}
