//! Path of a frame that a guest sends.
#![forbid(unsafe_code)]
use metadata_ebpf::{
    address::{SERVICE_MAC, Tag},
    counter::Counter,
    map::{Port, PortKey, Source},
    packet::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Verdict,
        arp::{self, Arp},
        ipv4, ipv6,
        nd::{self, Detection, Nd},
        tcp,
    },
};

use crate::{
    limits,
    maps::{self, PortState},
    program::{Outcome, Result, of_port},
    skb::{self, Packet, Skb},
    sources,
};

#[inline(always)]
pub(crate) fn handle(skb: Skb<'_>, packet: Packet<'_>) -> Result {
    match skb.ethertype() {
        ETHERTYPE_IPV4 => ipv4(skb, packet),
        ETHERTYPE_IPV6 => ipv6(skb, packet),
        ETHERTYPE_ARP => arp(skb, packet),
        _ => Ok(Outcome::PASS),
    }
}

#[inline(always)]
fn ipv4(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let Some(head) = packet.head::<{ ipv4::LEN }>() else { return Ok(Outcome::PASS) };
    if !ipv4::is_ours(head) {
        return Ok(Outcome::PASS);
    }
    let kind = ipv4::kind(head);
    if matches!(kind, ipv4::Kind::Other) {
        return Ok(Outcome::PASS);
    }
    let checked = ipv4::check(head);
    let Some(asker) = asker(skb)? else { return Ok(Outcome::PASS) };
    let outcome = match (checked, kind) {
        (Err(counter), _) => Err(counter.into()),
        (Ok(()), ipv4::Kind::Tcp) => tcp4(skb, packet, asker),
        (Ok(()), ipv4::Kind::Icmp) => echo4(skb, packet, asker),
        (Ok(()), ipv4::Kind::Other) => Ok(Outcome::PASS),
    };
    of_port(asker.port.index, outcome)
}

#[inline(always)]
pub(crate) fn tcp4(skb: Skb<'_>, mut packet: Packet<'_>, asker: Asker) -> Result {
    let frame = packet.head_for_writing::<{ ipv4::TCP_LEN }>().ok_or(Counter::TcpTruncated)?;
    match ipv4::classify_tcp(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    let guest = ipv4::source(frame);
    let (source, kind) = (sources::seen(frame, Source::mapped(guest)), ipv4::tcp_kind(frame));
    let tag = tag(skb, asker, Segment { source, kind })?;
    if may_be_foreign(asker.port, source)
        && !matches!(kind, tcp::Kind::Opening)
        && !skb.is_connected(tag.to_v4(), ipv4::source_port(frame))
    {
        return Ok(Outcome::passed(skb, asker.port.index, Counter::ForeignConnection));
    }
    ipv4::to_service(frame, tag.to_v4());
    packet.replace_tcp4_checksum(guest, tag.to_v4()).ok_or(Counter::RewriteFailed)?;
    to_service(skb, packet)
}

#[inline(always)]
pub(crate) fn echo4(skb: Skb<'_>, mut packet: Packet<'_>, asker: Asker) -> Result {
    let Some(frame) = packet.head_for_writing::<{ ipv4::ICMP_LEN }>() else { return Ok(Outcome::PASS) };
    match ipv4::classify_icmp(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    limit_answers(asker.port)?;
    ipv4::answer_icmp(frame);
    Ok(back(skb, Counter::EchoAnswered))
}

#[inline(always)]
fn ipv6(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let Some(head) = packet.head::<{ ipv6::LEN }>() else { return Ok(Outcome::PASS) };
    match ipv6::kind(head) {
        ipv6::Kind::Other => Ok(Outcome::PASS),
        ipv6::Kind::Icmp { to_us } => icmp6(skb, packet, to_us),
        ipv6::Kind::Unusable(counter) => refuse(asker6(skb)?, counter),
        ipv6::Kind::Tcp => match asker6(skb)? {
            Some(asker) => of_port(asker.port.index, tcp6(skb, packet, asker)),
            None => Ok(Outcome::PASS),
        },
    }
}

#[inline(always)]
pub(crate) fn tcp6(skb: Skb<'_>, mut packet: Packet<'_>, asker: Asker) -> Result {
    let frame = packet.head_for_writing::<{ ipv6::TCP_LEN }>().ok_or(Counter::TcpTruncated)?;
    match ipv6::classify_tcp(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    let guest = Source::words(ipv6::source(frame));
    let (source, kind) = (sources::seen(frame, guest), ipv6::tcp_kind(frame));
    // A connection to a link-local address belongs to a device, and no lookup from here would find it: what is under way
    // when the agent leaves is given up for what begins.
    if maps::is_leaving() && !matches!(kind, tcp::Kind::Opening) {
        return Ok(Outcome::passed(skb, asker.port.index, Counter::Leaving));
    }
    let tag = tag(skb, asker, Segment { source, kind })?;
    ipv6::to_service(frame, tag.to_v6());
    packet.replace_tcp6_checksum(guest, Source::words(tag.to_v6())).ok_or(Counter::RewriteFailed)?;
    to_service(skb, packet)
}

#[inline(always)]
fn icmp6(skb: Skb<'_>, mut packet: Packet<'_>, to_us: bool) -> Result {
    if let Some(head) = packet.head::<{ nd::TARGET_LEN }>() {
        match nd::classify(head) {
            Nd::Other => {}
            Nd::Solicitation => {
                return match asker6(skb)? {
                    Some(asker) => {
                        let answered = solicitation(skb, packet, asker, SERVICE_MAC, Detection::Multicast);
                        of_port(asker.port.index, answered)
                    }
                    None => Ok(Outcome::PASS),
                };
            }
            Nd::Claim => return refuse(asker6(skb)?, Counter::NdClaim),
            Nd::Invalid(counter) => return refuse(asker6(skb)?, counter),
        }
    }
    if !to_us {
        return Ok(Outcome::PASS);
    }
    match asker6(skb)? {
        Some(asker) => of_port(asker.port.index, echo6(skb, packet, asker)),
        None => Ok(Outcome::PASS),
    }
}

/// Answers a solicitation: its target is at `mac`.
#[inline(always)]
pub(crate) fn solicitation(
    skb: Skb<'_>,
    mut packet: Packet<'_>,
    asker: Asker,
    mac: [u8; 6],
    detection: Detection,
) -> Result {
    limit_answers(asker.port)?;
    // A solicitation may have no option, or others; its answer has exactly one.
    packet.set_len(nd::ANSWER_LEN as u32).ok_or(Counter::RewriteFailed)?;
    let frame = packet.head_for_writing::<{ nd::ANSWER_LEN }>().ok_or(Counter::RewriteFailed)?;
    nd::answer(frame, mac, detection);
    Ok(back(skb, Counter::NdAnswered))
}

#[inline(always)]
pub(crate) fn echo6(skb: Skb<'_>, mut packet: Packet<'_>, asker: Asker) -> Result {
    let Some(frame) = packet.head_for_writing::<{ ipv6::ICMP_LEN }>() else { return Ok(Outcome::PASS) };
    match ipv6::classify_echo(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    limit_answers(asker.port)?;
    ipv6::answer_icmp(frame);
    Ok(back(skb, Counter::EchoAnswered))
}

#[inline(always)]
fn arp(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    let Some(head) = packet.head::<{ arp::LEN }>() else { return Ok(Outcome::PASS) };
    match arp::classify(head) {
        Arp::Pass => return Ok(Outcome::PASS),
        Arp::Claim => return refuse(asker(skb)?, Counter::ArpClaim),
        Arp::Request => {}
    }
    match asker(skb)? {
        Some(asker) => of_port(asker.port.index, arp_request(skb, packet, asker, SERVICE_MAC)),
        None => Ok(Outcome::PASS),
    }
}

/// Answers a request for an address: it is at `mac`.
#[inline(always)]
pub(crate) fn arp_request(skb: Skb<'_>, mut packet: Packet<'_>, asker: Asker, mac: [u8; 6]) -> Result {
    limit_answers(asker.port)?;
    let frame = packet.head_for_writing::<{ arp::LEN }>().ok_or(Counter::RewriteFailed)?;
    arp::answer(frame, mac);
    Ok(back(skb, Counter::ArpAnswered))
}

/// A port, and the key by which a frame was found to be its own.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) key: PortKey,
    pub(crate) port: &'static Port,
}

/// The port of the frame's device and VLAN, while its agent lives: nothing is ours for one that is gone. A tagged frame
/// that is no subport's is none of ours: a network may carry its tenant's own VLANs.
#[inline(always)]
fn asker(skb: Skb<'_>) -> core::result::Result<Option<Asker>, Outcome> {
    if !is_alive() {
        return Ok(None);
    }
    let key = PortKey::tap(skb.ifindex(), skb.vlan());
    match maps::port(key) {
        Some(port) => Ok(Some(Asker { key, port })),
        None if key.vlan != 0 => Ok(None),
        None => Err(Counter::UnknownPort.into()),
    }
}

/// The same for IPv6, which is nothing of ours on a host without it: a guest that hears of no IPv6 address asks the
/// other one at once.
#[inline(always)]
fn asker6(skb: Skb<'_>) -> core::result::Result<Option<Asker>, Outcome> {
    if has_ipv6() { asker(skb) } else { Ok(None) }
}

/// True if the agent lives.
#[inline(always)]
pub(crate) fn is_alive() -> bool {
    maps::control().is_some_and(|control| skb::now() < control.alive_until)
}

/// True if the service has its IPv6 address.
#[inline(always)]
pub(crate) fn has_ipv6() -> bool {
    maps::control().is_some_and(|control| control.ipv6 != 0)
}

/// Drops what must not leave the port, if it is one.
#[inline(always)]
fn refuse(asker: Option<Asker>, counter: Counter) -> Result {
    match asker {
        Some(asker) => of_port(asker.port.index, Err(counter.into())),
        None => Ok(Outcome::PASS),
    }
}

/// The state of a port, if it is still the assignment that the frame was matched with.
#[inline(always)]
fn state(asker: Asker) -> core::result::Result<PortState, Counter> {
    let Asker { key, port } = asker;
    let state = maps::state(port.index).ok_or(Counter::UnknownPort)?;
    let same = state.generation() == port.generation && state.key() == key && !state.has_ended();
    if same { Ok(state) } else { Err(Counter::UnknownPort) }
}

/// The state that has the limits of the port's tap.
#[inline(always)]
fn meter(port: &Port) -> core::result::Result<PortState, Counter> {
    maps::state(port.meter).ok_or(Counter::UnknownPort)
}

/// A segment for the service: what of it decides about its tag.
#[derive(Clone, Copy)]
struct Segment {
    source: Source,
    kind: tcp::Kind,
}

/// The tag of a segment from this source.
///
/// A segment of a connection that nobody has makes its source known as well: the service's own TCP answers it with a
/// reset, for which it has to find the way back. Without it a guest that lost its connections (its assignment ended, or
/// it was migrated here) would wait for as long as its patience lasts.
#[inline(always)]
fn tag(skb: Skb<'_>, asker: Asker, segment: Segment) -> core::result::Result<Tag, Outcome> {
    let Segment { source, kind } = segment;
    let (port, state) = (asker.port, state(asker)?);
    let tag = |number| Tag::new(port.generation as u8, port.index, number);
    if matches!(kind, tcp::Kind::Opening) {
        if maps::is_leaving() {
            return Err(Outcome::passed(skb, port.index, Counter::Leaving));
        }
        limits::connection(meter(port)?, port.connections, source.last_seen)?;
    } else {
        if let Some(number) = state.find(source) {
            return Ok(tag(number));
        }
        if may_be_foreign(port, source) {
            return Err(Outcome::passed(skb, port.index, Counter::ForeignConnection));
        }
        if matches!(kind, tcp::Kind::Reset) {
            return Err(Counter::UnknownSource.into());
        }
        limits::answer(meter(port)?, port.answers, source.last_seen)?;
        maps::count(skb.ifindex(), port.index, Counter::UnknownConnection as u32);
    }
    let open = maps::open(port.index).ok_or(Counter::UnknownPort)?;
    Ok(tag(sources::find_or_learn(port.index, state, open, source, port.owns(source.address))?))
}

/// True if the connection of a segment may be another agent's: one that served the tap before, or one that does already
/// while this one leaves.
#[inline(always)]
fn may_be_foreign(port: &Port, source: Source) -> bool {
    source.last_seen < port.foreign_until || maps::is_leaving()
}

#[inline(always)]
fn limit_answers(port: &Port) -> core::result::Result<(), Counter> {
    limits::answer(meter(port)?, port.answers, skb::now())
}

/// Into the service namespace, which knows no VLANs.
#[inline(always)]
fn to_service(skb: Skb<'_>, mut packet: Packet<'_>) -> Result {
    if skb.has_vlan() {
        packet.pop_vlan().ok_or(Counter::RewriteFailed)?;
    }
    Ok(Outcome::redirect(skb.redirect_to_service(maps::service_ifindex()), Counter::Redirected))
}

/// Out of the device it came in on; an offloaded VLAN tag goes with it.
#[inline(always)]
fn back(skb: Skb<'_>, counter: Counter) -> Outcome {
    Outcome::redirect(skb.redirect_to_tap(skb.ifindex()), counter)
}
