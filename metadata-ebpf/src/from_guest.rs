//! What happens to a frame that a guest sends.
use metadata_ebpf::{
    address::Tag,
    counter::Counter,
    map::{Mac, Port, PortKey, PortSources, Source},
    packet::{
        self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Verdict,
        arp::{self, Arp},
        ipv4, ipv6,
        nd::{self, Nd},
    },
};

use crate::{
    limits, maps,
    program::{Outcome, Result},
    skb::{self, Skb},
    sources::{self, Seen},
};

#[inline(always)]
pub(crate) fn handle(skb: Skb<'_>) -> Result {
    match skb.ethertype() {
        ETHERTYPE_IPV4 => ipv4(skb),
        ETHERTYPE_IPV6 => ipv6(skb),
        ETHERTYPE_ARP => arp(skb),
        _ => Ok(Outcome::PASS),
    }
}

#[inline(always)]
fn ipv4(skb: Skb<'_>) -> Result {
    let Some(head) = skb.head::<{ ipv4::LEN }>() else { return Ok(Outcome::PASS) };
    if !ipv4::is_ours(head) {
        return Ok(Outcome::PASS);
    }
    let kind = ipv4::kind(head);
    if matches!(kind, ipv4::Kind::Other) {
        return Ok(Outcome::PASS);
    }
    let checked = ipv4::check(head);
    let Some(port) = port(skb)? else { return Ok(Outcome::PASS) };
    checked?;
    match kind {
        ipv4::Kind::Tcp => tcp4(skb, port),
        ipv4::Kind::Icmp => echo4(skb, port),
        ipv4::Kind::Other => Ok(Outcome::PASS),
    }
}

#[inline(always)]
fn tcp4(skb: Skb<'_>, port: &Port) -> Result {
    let frame = skb.head_for_writing::<{ ipv4::TCP_LEN }>().ok_or(Counter::TcpTruncated)?;
    match ipv4::classify_tcp(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    let guest = ipv4::source(frame);
    let opens = ipv4::opens_connection(frame);
    let tag = tag(
        skb,
        port,
        Source::mapped(guest),
        packet::mac_source(frame),
        packet::mac_destination(frame),
        opens,
    )?;
    ipv4::to_service(frame, tag.to_v4());
    skb.replace_tcp4_checksum(guest, tag.to_v4()).ok_or(Counter::RewriteFailed)?;
    to_service(skb)
}

#[inline(always)]
fn echo4(skb: Skb<'_>, port: &Port) -> Result {
    let Some(frame) = skb.head_for_writing::<{ ipv4::ICMP_LEN }>() else { return Ok(Outcome::PASS) };
    match ipv4::classify_icmp(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    limit_answers(skb, port)?;
    ipv4::answer_icmp(frame);
    Ok(back(skb, Counter::EchoAnswered))
}

#[inline(always)]
fn ipv6(skb: Skb<'_>) -> Result {
    let Some(head) = skb.head::<{ ipv6::LEN }>() else { return Ok(Outcome::PASS) };
    match ipv6::kind(head) {
        ipv6::Kind::Other => Ok(Outcome::PASS),
        ipv6::Kind::Icmp { to_us } => icmp6(skb, to_us),
        ipv6::Kind::Unusable(counter) => match port(skb)? {
            Some(_) => Err(counter.into()),
            None => Ok(Outcome::PASS),
        },
        ipv6::Kind::Tcp => match port(skb)? {
            Some(port) => tcp6(skb, port),
            None => Ok(Outcome::PASS),
        },
    }
}

#[inline(always)]
fn tcp6(skb: Skb<'_>, port: &Port) -> Result {
    let frame = skb.head_for_writing::<{ ipv6::TCP_LEN }>().ok_or(Counter::TcpTruncated)?;
    match ipv6::classify_tcp(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    let guest = Source::words(ipv6::source(frame));
    let opens = ipv6::opens_connection(frame);
    let tag = tag(skb, port, guest, packet::mac_source(frame), packet::mac_destination(frame), opens)?;
    ipv6::to_service(frame, tag.to_v6());
    skb.replace_tcp6_checksum(guest, Source::words(tag.to_v6())).ok_or(Counter::RewriteFailed)?;
    to_service(skb)
}

#[inline(always)]
fn icmp6(skb: Skb<'_>, to_us: bool) -> Result {
    if let Some(head) = skb.head::<{ nd::TARGET_LEN }>() {
        match nd::classify(head) {
            Nd::Other => {}
            Nd::Solicitation => return solicitation(skb),
            Nd::Claim => return refuse(skb, Counter::NdClaim),
            Nd::Invalid(counter) => return refuse(skb, counter),
        }
    }
    if to_us { echo6(skb) } else { Ok(Outcome::PASS) }
}

#[inline(always)]
fn solicitation(skb: Skb<'_>) -> Result {
    let Some(port) = port(skb)? else { return Ok(Outcome::PASS) };
    limit_answers(skb, port)?;
    // A solicitation may have no option, or others; its answer has exactly one.
    skb.set_len(nd::ANSWER_LEN as u32).ok_or(Counter::RewriteFailed)?;
    let frame = skb.head_for_writing::<{ nd::ANSWER_LEN }>().ok_or(Counter::RewriteFailed)?;
    nd::answer(frame);
    Ok(back(skb, Counter::NdAnswered))
}

#[inline(always)]
fn echo6(skb: Skb<'_>) -> Result {
    let Some(port) = port(skb)? else { return Ok(Outcome::PASS) };
    let Some(frame) = skb.head_for_writing::<{ ipv6::ICMP_LEN }>() else { return Ok(Outcome::PASS) };
    match ipv6::classify_echo(frame) {
        Verdict::Pass => return Ok(Outcome::PASS),
        Verdict::Drop(counter) => return Err(counter.into()),
        Verdict::Take => {}
    }
    limit_answers(skb, port)?;
    ipv6::answer_icmp(frame);
    Ok(back(skb, Counter::EchoAnswered))
}

#[inline(always)]
fn arp(skb: Skb<'_>) -> Result {
    let Some(head) = skb.head::<{ arp::LEN }>() else { return Ok(Outcome::PASS) };
    match arp::classify(head) {
        Arp::Pass => return Ok(Outcome::PASS),
        Arp::Claim => return refuse(skb, Counter::ArpClaim),
        Arp::Request => {}
    }
    let Some(port) = port(skb)? else { return Ok(Outcome::PASS) };
    limit_answers(skb, port)?;
    let frame = skb.head_for_writing::<{ arp::LEN }>().ok_or(Counter::RewriteFailed)?;
    arp::answer(frame);
    Ok(back(skb, Counter::ArpAnswered))
}

/// The port of the frame's device and VLAN. A tagged frame that is no subport's is none of ours: a network may carry
/// its tenant's own VLANs.
#[inline(always)]
fn port(skb: Skb<'_>) -> core::result::Result<Option<&'static Port>, Outcome> {
    let key = key(skb);
    match maps::port(key) {
        Some(port) => Ok(Some(port)),
        None if key.vlan != 0 => Ok(None),
        None => Err(Counter::UnknownPort.into()),
    }
}

/// Drops what must not leave the port, if it is one.
#[inline(always)]
fn refuse(skb: Skb<'_>, counter: Counter) -> Result {
    match port(skb)? {
        Some(_) => Err(counter.into()),
        None => Ok(Outcome::PASS),
    }
}

#[inline(always)]
fn key(skb: Skb<'_>) -> PortKey {
    PortKey { ifindex: skb.ifindex(), vlan: skb.vlan() }
}

/// The state of a port, if it is still the assignment that the frame was matched with.
#[inline(always)]
fn state(skb: Skb<'_>, index: u32, generation: u32) -> core::result::Result<*mut PortSources, Counter> {
    let state = maps::sources(index).ok_or(Counter::UnknownPort)?;
    let PortKey { ifindex, vlan } = key(skb);
    // SAFETY: a value of an array map; the agent changes these only while no PORTS entry leads here.
    let same =
        unsafe { (*state).generation == generation && (*state).ifindex == ifindex && (*state).vlan == vlan };
    if same { Ok(state) } else { Err(Counter::UnknownPort) }
}

/// The tag of a frame from this source. Only a segment that opens a connection makes a source known.
#[inline(always)]
fn tag(
    skb: Skb<'_>,
    port: &Port,
    address: [u32; 4],
    mac: [u8; 6],
    via: [u8; 6],
    opens: bool,
) -> core::result::Result<Tag, Counter> {
    let seen = Seen { address, mac: Mac::new(mac), via: Mac::new(via), now: skb::now() };
    let (index, generation) = (port.index, port.generation);
    let state = state(skb, index, generation)?;
    let number = if opens {
        limits::connection(state, port.connections, seen.now)?;
        sources::find_or_learn(state, seen)?
    } else {
        sources::find(state, seen).ok_or(Counter::UnknownSource)?
    };
    Ok(Tag::new(generation as u8, index, number))
}

#[inline(always)]
fn limit_answers(skb: Skb<'_>, port: &Port) -> core::result::Result<(), Counter> {
    limits::answer(state(skb, port.index, port.generation)?, port.answers, skb::now())
}

/// Into the service namespace, which knows no VLANs.
#[inline(always)]
fn to_service(skb: Skb<'_>) -> Result {
    if skb.has_vlan() {
        skb.pop_vlan().ok_or(Counter::RewriteFailed)?;
    }
    Ok(Outcome::redirect(skb.redirect_to_service(maps::service_ifindex()), Counter::Redirected))
}

/// Out of the device it came in on; an offloaded VLAN tag goes with it.
#[inline(always)]
fn back(skb: Skb<'_>, counter: Counter) -> Outcome {
    Outcome::redirect(skb.redirect_to_tap(skb.ifindex()), counter)
}
