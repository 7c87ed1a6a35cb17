//! Model of the programs, said again in plain Rust: the reference that property tests compare them with.
//!
//! Written from the description, over slices and without a look at the programs' own packet code, so that a mistake has
//! to be made twice to go unnoticed.

use metadata_ebpf::{
    counter::Counter,
    map::{PortKey, PortSources, SOURCE_IDLE_NS},
};

pub const PASS: i32 = -1;
pub const DROP: i32 = 2;
pub const REDIRECT: i32 = 7;

pub const METADATA_V4: [u8; 4] = [169, 254, 169, 254];
pub const METADATA_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa9, 0xfe, 0xa9, 0xfe];
const SERVICE_MAC: [u8; 6] = [2, 0, 0xa9, 0xfe, 0xa9, 0xfe];
const TAGS_V6: [u8; 12] = [0xfd, 0, 0xa9, 0xfe, 0xa9, 0xfe, 0, 0, 0, 0, 0, 0];

/// One port, the only one there is.
#[derive(Debug, Clone)]
pub struct World {
    /// True if frames lead to it.
    pub known: bool,
    pub index: u32,
    pub generation: u8,
    /// True if its limits are used up.
    pub exhausted: bool,
    pub sources: [Option<Source>; 16],
    /// Sources with open connections, and those with an address of the port's own: a bit for each.
    pub open: u16,
    pub own: u16,
    /// The port's own address.
    pub address: [u8; 16],
    pub agent: Agent,
    /// True if the assignment has ended.
    pub ended: bool,
    /// The port's MAC address, by which it is known on a network's device, and the metadata port that the device is bound to.
    pub station: [u8; 6],
    pub metadata_port: MetadataPort,
}

/// The metadata port of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataPort {
    pub mac: [u8; 6],
    pub v4: [u8; 4],
    pub v6: [u8; 16],
}

/// State of the agent, as far as the programs know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agent {
    pub alive: bool,
    pub leaving: bool,
    pub ipv6: bool,
    /// True if connections may still be another agent's.
    pub young: bool,
}

/// A source, with its age in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub address: [u8; 16],
    pub mac: [u8; 6],
    pub via: [u8; 6],
    pub age: u64,
}

/// Outcome for a frame and for the world.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub action: i32,
    /// The bytes afterwards; nobody sees those of a dropped frame.
    pub frame: Vec<u8>,
    pub counters: Vec<Counter>,
    pub sources: [Option<Source>; 16],
    pub own: u16,
}

type Step<T> = Result<T, Verdict>;

enum Verdict {
    Pass,
    Drop(Counter),
}

impl World {
    pub fn from_guest(&self, frame: &[u8]) -> Outcome {
        let mut after = self.clone();
        let mut bytes = frame.to_vec();
        let mut counters = Vec::new();
        let result = after.guest_frame(&mut bytes, &mut counters);
        after.conclude(frame, bytes, counters, result)
    }

    /// Outcome of `from_network`, which drops whatever passes: behind a network's device is nobody but the host itself.
    pub fn from_network(&self, frame: &[u8]) -> Outcome {
        let mut after = self.clone();
        let mut bytes = frame.to_vec();
        let mut counters = Vec::new();
        let result = after.network_frame(&mut bytes, &mut counters);
        let outcome = after.conclude(frame, bytes, counters, result);
        Outcome { action: if outcome.action == PASS { DROP } else { outcome.action }, ..outcome }
    }

    pub fn to_guest(&self, frame: &[u8]) -> Outcome {
        let mut bytes = frame.to_vec();
        let result = self.reply(&mut bytes);
        self.clone().conclude(frame, bytes, Vec::new(), result)
    }

    fn conclude(
        self,
        before: &[u8],
        after: Vec<u8>,
        mut counters: Vec<Counter>,
        result: Step<Counter>,
    ) -> Outcome {
        let (action, frame) = match result {
            Ok(counter) => {
                counters.push(counter);
                (REDIRECT, after)
            }
            Err(Verdict::Pass) => (PASS, before.to_vec()),
            Err(Verdict::Drop(counter)) => {
                counters.push(counter);
                (DROP, Vec::new())
            }
        };
        Outcome { action, frame, counters, sources: self.sources, own: self.own }
    }

    fn guest_frame(&mut self, frame: &mut Vec<u8>, counters: &mut Vec<Counter>) -> Step<Counter> {
        if !self.agent.alive {
            return Err(Verdict::Pass);
        }
        match (frame[12], frame[13]) {
            (0x08, 0x00) if frame.len() >= 34 && frame[30..34] == METADATA_V4 => match frame[23] {
                6 => self.ipv4(frame).and_then(|()| self.tcp(frame, 34, counters)),
                1 => self.ipv4(frame).and_then(|()| self.echo(frame, 34, 8, 0)),
                _ => Err(Verdict::Pass),
            },
            (0x08, 0x06) if frame.len() >= 42 => self.arp(frame),
            (0x86, 0xdd) if frame.len() >= 54 && self.agent.ipv6 => self.ipv6(frame, counters),
            _ => Err(Verdict::Pass),
        }
    }

    fn network_frame(&mut self, frame: &mut Vec<u8>, counters: &mut Vec<Counter>) -> Step<Counter> {
        let MetadataPort { v4, v6, .. } = self.metadata_port;
        let is_arp = |at: usize, frame: &[u8]| frame[at..at + 4] == METADATA_V4 || frame[at..at + 4] == v4;
        match (frame[12], frame[13]) {
            (0x08, 0x00) if frame.len() >= 34 && frame[30..34] == METADATA_V4 => {
                if !matches!(frame[23], 1 | 6) {
                    return Err(Verdict::Pass);
                }
                self.must_be_station(frame)?;
                self.ipv4(frame)?;
                let mapped = [&[0; 10][..], &[0xff, 0xff], &frame[26..30]].concat();
                self.must_be_own(&mapped)?;
                if frame[23] == 6 { self.tcp(frame, 34, counters) } else { self.echo(frame, 34, 8, 0) }
            }
            (0x08, 0x06) if frame.len() >= 42 && frame[14..20] == [0, 1, 8, 0, 6, 4] => {
                if is_arp(28, frame) {
                    return Err(Verdict::Drop(Counter::ArpClaim));
                }
                if !is_arp(38, frame) || frame[20..22] != [0, 1] {
                    return Err(Verdict::Pass);
                }
                self.must_be_station(frame)?;
                self.arp_answer(frame, self.metadata_port.mac)
            }
            (0x86, 0xdd) if frame.len() >= 54 && self.agent.ipv6 => {
                let to_us = frame[38..54] == METADATA_V6;
                let is_nd = frame[20] == 58 && frame.len() >= 78 && matches!(frame[54], 135 | 136);
                if is_nd && (frame[62..78] == METADATA_V6 || frame[62..78] == v6) {
                    let asker = &frame[22..38];
                    let pretends = asker == METADATA_V6 || asker == v6;
                    check_discovery(frame, pretends)?;
                    self.must_be_station(frame)?;
                    return self.advertise(frame, self.metadata_port.mac, true);
                }
                if !to_us || !matches!(frame[20], 0 | 6 | 43 | 44 | 50 | 51 | 58 | 60 | 135 | 139 | 140) {
                    return Err(Verdict::Pass);
                }
                self.must_be_station(frame)?;
                if frame[22] != 0xfe || frame[23] & 0xc0 != 0x80 {
                    self.must_be_own(&frame[22..38])?;
                }
                match frame[20] {
                    6 => self.tcp(frame, 54, counters),
                    58 => self.echo(frame, 54, 128, 129),
                    44 => Err(Verdict::Drop(Counter::Fragment)),
                    _ => Err(Verdict::Drop(Counter::Ipv6Extension)),
                }
            }
            _ => Err(Verdict::Pass),
        }
    }

    fn must_be_station(&self, frame: &[u8]) -> Step<()> {
        if !self.agent.alive {
            return Err(Verdict::Pass);
        }
        if self.known && frame[6..12] == self.station {
            Ok(())
        } else {
            Err(Verdict::Drop(Counter::OtherStation))
        }
    }

    fn must_be_own(&self, address: &[u8]) -> Step<()> {
        // An unspecified address is as good as any here, and no source of anything.
        if address == self.address || address == [0; 16] {
            Ok(())
        } else {
            Err(Verdict::Drop(Counter::ForeignSource))
        }
    }

    fn must_be_known(&self) -> Step<()> {
        if self.known { Ok(()) } else { Err(Verdict::Drop(Counter::UnknownPort)) }
    }

    fn ipv4(&self, frame: &[u8]) -> Step<()> {
        self.must_be_known()?;
        if frame[20] & 0x3f != 0 || frame[21] != 0 {
            return Err(Verdict::Drop(Counter::Fragment));
        }
        if frame[14] != 0x45 { Err(Verdict::Drop(Counter::IpHeader)) } else { Ok(()) }
    }

    fn ipv6(&mut self, frame: &mut Vec<u8>, counters: &mut Vec<Counter>) -> Step<Counter> {
        let to_us = frame[38..54] == METADATA_V6;
        if frame[20] == 58 {
            if frame.len() >= 78 && matches!(frame[54], 135 | 136) && frame[62..78] == METADATA_V6 {
                return self.neighbour_discovery(frame);
            }
            if !to_us {
                return Err(Verdict::Pass);
            }
            self.must_be_known()?;
            return self.echo(frame, 54, 128, 129);
        }
        match frame[20] {
            _ if !to_us => Err(Verdict::Pass),
            6 => {
                self.must_be_known()?;
                self.tcp(frame, 54, counters)
            }
            44 => self.must_be_known().and(Err(Verdict::Drop(Counter::Fragment))),
            0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 => {
                self.must_be_known().and(Err(Verdict::Drop(Counter::Ipv6Extension)))
            }
            _ => Err(Verdict::Pass),
        }
    }

    fn tcp(&mut self, frame: &mut [u8], at: usize, counters: &mut Vec<Counter>) -> Step<Counter> {
        if frame.len() < at + 20 {
            return Err(Verdict::Drop(Counter::TcpTruncated));
        }
        if frame[at + 2..at + 4] != [0, 80] {
            return Err(Verdict::Pass);
        }
        if frame[at + 12] < 0x50 {
            return Err(Verdict::Drop(Counter::TcpTruncated));
        }
        answerable(frame, at)?;
        let number = self.source(frame, at, counters)?;
        let tag = (u32::from(self.generation) << 16 | self.index << 4 | number as u32).to_be_bytes();
        frame[..6].copy_from_slice(&SERVICE_MAC);
        let new = if at == 34 { [&[240], &tag[1..]].concat() } else { [&TAGS_V6, &tag[..]].concat() };
        let (source, _) = addresses(at);
        replace(frame, at, source, &new);
        Ok(Counter::Redirected)
    }

    fn source(&mut self, frame: &[u8], at: usize, counters: &mut Vec<Counter>) -> Step<usize> {
        let (source, _) = addresses(at);
        let address = if at == 34 {
            [&[0; 10][..], &[0xff, 0xff], &frame[source..source + 4]].concat()
        } else {
            frame[source..source + 16].to_vec()
        };
        let seen =
            Source { address: array(&address), mac: array(&frame[6..12]), via: array(&frame[..6]), age: 0 };
        let is_over = self.agent.leaving && at == 54 && frame[at + 13] & 0x12 != 0x02;
        if self.ended && !is_over {
            return Err(Verdict::Drop(Counter::UnknownPort));
        }
        let opens = frame[at + 13] & 0x12 == 0x02;
        let resets = !opens && frame[at + 13] & 0x04 != 0;
        if self.agent.leaving && (opens || at == 54) {
            counters.push(Counter::Leaving);
            return Err(Verdict::Pass);
        }
        if opens && self.exhausted {
            return Err(Verdict::Drop(Counter::ConnectionsLimited));
        }
        let same =
            |known: &Option<Source>| known.is_some_and(|k| (k.address, k.mac) == (seen.address, seen.mac));
        let number = match self.sources.iter().position(same) {
            Some(number) => number,
            None if !opens && (self.agent.young || self.agent.leaving) => {
                counters.push(Counter::ForeignConnection);
                return Err(Verdict::Pass);
            }
            None if resets => return Err(Verdict::Drop(Counter::UnknownSource)),
            None => {
                if !opens {
                    self.answers()?;
                    counters.push(Counter::UnknownConnection);
                }
                let is_own = address == self.address;
                let is_link_local = |address: &[u8]| address[0] == 0xfe && address[1] & 0xc0 == 0x80;
                let displaces = |n: usize| {
                    let link_local = self.sources[n].is_some_and(|source| is_link_local(&source.address));
                    self.own & 1 << n == 0 && (is_own || is_link_local(&address) && !link_local)
                };
                let age = |n: &usize| self.sources[*n].map_or(0, |source| source.age);
                let oldest = |eligible: &dyn Fn(usize) -> bool| {
                    (0..16).filter(|n| eligible(*n)).max_by_key(|n| (age(n), 16 - n))
                };
                let free = self.sources.iter().position(Option::is_none);
                let idle = oldest(&|n| self.open & 1 << n == 0 && age(&n) >= SOURCE_IDLE_NS);
                let other = oldest(&displaces);
                let number = free.or(idle).or(other).ok_or(Verdict::Drop(Counter::SourcesExhausted))?;
                if free.is_none() {
                    counters.push(Counter::SourceReclaimed);
                }
                counters.push(Counter::SourceLearned);
                self.own = self.own & !(1 << number) | u16::from(is_own) << number;
                number
            }
        };
        self.sources[number] = Some(seen);
        Ok(number)
    }

    fn answers(&self) -> Step<()> {
        if self.exhausted { Err(Verdict::Drop(Counter::AnswersLimited)) } else { Ok(()) }
    }

    fn echo(&self, frame: &mut [u8], at: usize, request: u8, reply: u8) -> Step<Counter> {
        if frame.len() < at + 8 || frame[at..at + 2] != [request, 0] {
            return Err(Verdict::Pass);
        }
        answerable(frame, at)?;
        self.answers()?;
        let (source, destination) = addresses(at);
        let length = destination - source;
        let (asker, asked) =
            (frame[source..destination].to_vec(), frame[destination..destination + length].to_vec());
        frame[source..destination].copy_from_slice(&asked);
        frame[destination..destination + length].copy_from_slice(&asker);
        let (to, from) = (frame[..6].to_vec(), frame[6..12].to_vec());
        frame[..6].copy_from_slice(&from);
        frame[6..12].copy_from_slice(&to);
        update(frame, at + 2, &[request, 0], &[reply, 0]);
        frame[at] = reply;
        Ok(Counter::EchoAnswered)
    }

    fn arp(&self, frame: &mut [u8]) -> Step<Counter> {
        if frame[14..20] != [0, 1, 8, 0, 6, 4] {
            return Err(Verdict::Pass);
        }
        if frame[28..32] == METADATA_V4 {
            return self.must_be_known().and(Err(Verdict::Drop(Counter::ArpClaim)));
        }
        if frame[38..42] != METADATA_V4 || frame[20..22] != [0, 1] {
            return Err(Verdict::Pass);
        }
        self.must_be_known()?;
        self.arp_answer(frame, SERVICE_MAC)
    }

    fn arp_answer(&self, frame: &mut [u8], mac: [u8; 6]) -> Step<Counter> {
        self.answers()?;
        let asker = frame[6..12].to_vec();
        let (sender, asked) = (frame[22..32].to_vec(), frame[38..42].to_vec());
        frame[..6].copy_from_slice(&asker);
        frame[6..12].copy_from_slice(&mac);
        frame[21] = 2;
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&asked);
        frame[32..42].copy_from_slice(&sender);
        Ok(Counter::ArpAnswered)
    }

    fn neighbour_discovery(&self, frame: &mut Vec<u8>) -> Step<Counter> {
        self.must_be_known()?;
        check_discovery(frame, frame[22..38] == METADATA_V6)?;
        self.advertise(frame, SERVICE_MAC, false)
    }

    fn advertise(&self, frame: &mut Vec<u8>, from: [u8; 6], unicast: bool) -> Step<Counter> {
        self.answers()?;
        let (asker, target): ([u8; 16], [u8; 16]) = (array(&frame[22..38]), array(&frame[62..78]));
        let detection = asker == [0; 16];
        let all_nodes: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let to: [u8; 6] = if detection && !unicast { [0x33, 0x33, 0, 0, 0, 1] } else { array(&frame[6..12]) };
        let mut answer = [&to[..], &from, &[0x86, 0xdd], &frame[14..18], &[0, 32, 58, 255]].concat();
        answer.extend(target);
        answer.extend(if detection { all_nodes } else { asker });
        answer.extend([136, 0, 0, 0, if detection { 0x20 } else { 0x60 }, 0, 0, 0]);
        answer.extend(target);
        answer.extend([2, 1]);
        answer.extend(from);
        let sum = !sum(&[&answer[22..], &[0, 32, 0, 58]].concat());
        answer[56..58].copy_from_slice(&sum.to_be_bytes());
        *frame = answer;
        Ok(Counter::NdAnswered)
    }

    fn reply(&self, frame: &mut [u8]) -> Step<Counter> {
        let other = || Verdict::Drop(Counter::ServiceOther);
        let stale = || Verdict::Drop(Counter::StaleTag);
        let at = match (frame[12], frame[13]) {
            (0x08, 0x00) if frame.len() >= 54 => 34,
            (0x86, 0xdd) if frame.len() >= 74 => 54,
            _ => return Err(other()),
        };
        let is_reply = if at == 34 {
            frame[14] == 0x45
                && frame[23] == 6
                && frame[20] & 0x3f == 0
                && frame[21] == 0
                && frame[26..30] == METADATA_V4
        } else {
            frame[14] >> 4 == 6 && frame[20] == 6 && frame[22..38] == METADATA_V6
        };
        if !is_reply {
            return Err(other());
        }
        if frame[at + 13] & 0x14 == 0x14 && frame[at + 4..at + 8] == [0; 4] {
            return Err(Verdict::Drop(Counter::RefusalHidden));
        }
        let (_, destination) = addresses(at);
        let tag = if at == 34 {
            (frame[destination] == 240).then(|| &frame[destination + 1..destination + 4])
        } else {
            let (net, tag) = frame[destination..destination + 16].split_at(13);
            (net[..12] == TAGS_V6 && net[12] == 0).then_some(tag)
        };
        let tag = tag.ok_or_else(other)?;
        let tag = u32::from_be_bytes([0, tag[0], tag[1], tag[2]]);
        let resets = frame[at + 13] & 0x04 != 0;
        if tag >> 4 & 0xfff != self.index
            || tag >> 16 != u32::from(self.generation)
            || (self.ended && !resets)
        {
            return Err(stale());
        }
        let source = self.sources[tag as usize & 15].ok_or_else(stale)?;
        let is_v4 = source.address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        if is_v4 != (at == 34) {
            return Err(stale());
        }
        frame[..6].copy_from_slice(&source.mac);
        frame[6..12].copy_from_slice(&source.via);
        let address = if is_v4 { &source.address[12..] } else { &source.address[..] };
        replace(frame, at, destination, address);
        Ok(Counter::Replied)
    }
}

/// An advertisement claims its target; a solicitation has to be one that may be answered, and its source must not pretend
/// to be ours.
fn check_discovery(frame: &[u8], pretends: bool) -> Step<()> {
    if frame[54] == 136 {
        return Err(Verdict::Drop(Counter::NdClaim));
    }
    if frame[21] != 255 || frame[55] != 0 || frame[6] & 1 != 0 || frame[22] == 0xff || pretends {
        return Err(Verdict::Drop(Counter::NdInvalid));
    }
    Ok(())
}

/// Offsets of source and destination address in the packet whose payload begins at `at`.
fn addresses(at: usize) -> (usize, usize) {
    if at == 34 { (26, 30) } else { (22, 38) }
}

fn answerable(frame: &[u8], at: usize) -> Step<()> {
    if (frame[0] | frame[6]) & 1 != 0 {
        return Err(Verdict::Drop(Counter::GroupMac));
    }
    let (source, _) = addresses(at);
    let good = if at == 34 {
        let source = &frame[source..source + 4];
        !matches!(source[0], 0 | 127 | 224..) && source != METADATA_V4
    } else {
        let source = &frame[source..source + 16];
        source[..8] != [0; 8] && source[0] != 0xff && source != METADATA_V6 && source[..12] != TAGS_V6
    };
    if good { Ok(()) } else { Err(Verdict::Drop(Counter::BadSource)) }
}

/// Puts an address in place of another, under the TCP checksum and, for IPv4, the header's.
fn replace(frame: &mut [u8], at: usize, place: usize, new: &[u8]) {
    let old = frame[place..place + new.len()].to_vec();
    update(frame, at + 16, &old, new);
    if at == 34 {
        update(frame, 24, &old, new);
    }
    frame[place..place + new.len()].copy_from_slice(new);
}

/// A checksum after some words under it changed.
fn update(frame: &mut [u8], place: usize, old: &[u8], new: &[u8]) {
    let held = u16::from_be_bytes(array(&frame[place..place + 2]));
    let total = u32::from(!held) + u32::from(!sum(old)) + u32::from(sum(new));
    let folded = (total & 0xffff) + (total >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    frame[place..place + 2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// The Internet checksum; 0 for bytes that have theirs among them.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The one's complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let word = |word: &[u8]| u64::from(word[0]) << 8 | word.get(1).copied().map_or(0, u64::from);
    let mut total: u64 = bytes.chunks(2).map(word).sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// A world's sources as the map holds them.
pub fn map_sources(world: &World, key: PortKey, now: u64) -> PortSources {
    use metadata_ebpf::map::{Mac, Source as Entry};
    let mut port = PortSources::assigned(key, world.generation);
    for (entry, source) in port.sources.iter_mut().zip(&world.sources) {
        if let Some(source) = source {
            let word = |at: usize| u32::from_ne_bytes(array(&source.address[at..at + 4]));
            *entry = Entry {
                last_seen: now.saturating_sub(source.age).max(1),
                address: [word(0), word(4), word(8), word(12)],
                mac: Mac::new(source.mac),
                via: Mac::new(source.via),
            };
        }
    }
    (port.own, port.ended) = (world.own.into(), world.ended.into());
    if world.exhausted {
        port.connections = u64::MAX / 2;
        port.answers = u64::MAX / 2;
    }
    port
}
