//! Frames and worlds for the comparison: mostly such as the programs serve, with every part now and then another one.

use metadata_ebpf::address::MAX_PORTS;
use metadata_tests::model::{Agent, METADATA_V4, METADATA_V6, MetadataPort, Source, World};
use proptest::prelude::*;

use super::uptime;

/// The metadata port of the network whose device it is.
const METADATA_PORT: MetadataPort = MetadataPort {
    mac: [0xfa, 0x16, 0x3e, 0xaa, 0xbb, 0xcc],
    v4: [192, 168, 1, 2],
    v6: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
};

pub(super) const MACS: [[u8; 6]; 4] =
    [[0xfa, 0x16, 0x3e, 1, 2, 3], [0xfa, 0x16, 0x3e, 9, 9, 9], [2, 0, 0xa9, 0xfe, 0xa9, 0xfe], [0xff; 6]];

fn mac() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![8 => proptest::sample::select(&MACS[..2]), 1 => proptest::sample::select(&MACS[..]), 1 => any::<[u8; 6]>()]
}

fn v4() -> impl Strategy<Value = [u8; 4]> {
    let known = [
        [192, 168, 1, 10],
        [192, 168, 1, 11],
        METADATA_V4,
        METADATA_PORT.v4,
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [240, 0, 0, 0x70],
    ];
    prop_oneof![6 => proptest::sample::select(known[..2].to_vec()), 2 => proptest::sample::select(known.to_vec()), 1 => any::<[u8; 4]>()]
}

fn v6() -> impl Strategy<Value = [u8; 16]> {
    let mut guest = METADATA_V6;
    guest[15] = 1;
    let mut fixed = METADATA_PORT.v6;
    fixed[15] = 10;
    let mut tagged = [0; 16];
    tagged[..6].copy_from_slice(&[0xfd, 0, 0xa9, 0xfe, 0xa9, 0xfe]);
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 192, 168, 1, 10]);
    let mut all_nodes = [0; 16];
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    let known = vec![guest, fixed, METADATA_V6, METADATA_PORT.v6, [0; 16], tagged, mapped, all_nodes];
    prop_oneof![6 => Just(guest), 2 => proptest::sample::select(known), 1 => any::<[u8; 16]>()]
}

fn ethernet(ethertype: u16) -> impl Strategy<Value = Vec<u8>> {
    (mac(), mac()).prop_map(move |(to, from)| [&to[..], &from, &ethertype.to_be_bytes()].concat())
}

fn tcp() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(0x02_u8), 2 => Just(0x10), 1 => Just(0x14), 1 => any::<u8>()];
    let port = prop_oneof![8 => Just(80_u16), 1 => any::<u16>()];
    let sequence = prop_oneof![Just(0_u32), any::<u32>()];
    let payload = proptest::collection::vec(any::<u8>(), 0..40);
    (any::<u16>(), port, sequence, flags, any::<u16>(), payload).prop_map(
        |(from, to, sequence, flags, sum, payload)| {
            let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
            segment.extend(sequence.to_be_bytes());
            segment.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff]);
            segment.extend(sum.to_be_bytes());
            segment.extend([0, 0]);
            segment.extend(payload);
            segment
        },
    )
}

fn icmp(kinds: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(any::<u8>(), 4..60);
    (proptest::sample::select(kinds), any::<u16>(), payload)
        .prop_map(|(kind, sum, payload)| [&[kind, 0][..], &sum.to_be_bytes(), &payload].concat())
}

fn ipv4(
    to: impl Strategy<Value = [u8; 4]>,
    from: impl Strategy<Value = [u8; 4]>,
) -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        6 => tcp().prop_map(|bytes| (6_u8, bytes)),
        2 => icmp(&[8, 0, 3]).prop_map(|bytes| (1, bytes)),
        1 => tcp().prop_map(|bytes| (17, bytes)),
    ];
    (ethernet(0x0800), from, to, any::<u16>(), payload).prop_map(
        |(head, from, to, sum, (protocol, payload))| {
            let sum = sum.to_be_bytes();
            [&head[..], &[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol], &sum, &from, &to, &payload].concat()
        },
    )
}

fn ipv6(
    to: impl Strategy<Value = [u8; 16]>,
    from: impl Strategy<Value = [u8; 16]>,
) -> impl Strategy<Value = Vec<u8>> {
    let nd =
        (proptest::sample::select(&[135_u8, 136][..]), v6(), proptest::collection::vec(any::<u8>(), 0..24));
    let nd =
        nd.prop_map(|(kind, target, options)| [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target, &options].concat());
    let payload = prop_oneof![
        5 => tcp().prop_map(|bytes| (6_u8, bytes)),
        2 => icmp(&[128, 129, 1]).prop_map(|bytes| (58, bytes)),
        3 => nd.prop_map(|bytes| (58, bytes)),
        1 => (proptest::sample::select(&[0_u8, 17, 43, 44, 50, 51, 60, 135, 139, 140][..]), tcp()),
    ];
    (ethernet(0x86dd), from, to, payload).prop_map(|(head, from, to, (next, payload))| {
        let length = (payload.len() as u16).to_be_bytes();
        [&head[..], &[0x60, 0, 0, 0], &length, &[next, 255], &from, &to, &payload].concat()
    })
}

fn arp() -> impl Strategy<Value = Vec<u8>> {
    (ethernet(0x0806), 1..=2_u8, mac(), v4(), mac(), prop_oneof![Just(METADATA_V4), v4()]).prop_map(
        |(head, operation, sender_mac, sender, target_mac, target)| {
            [&head[..], &[0, 1, 8, 0, 6, 4, 0, operation], &sender_mac, &sender, &target_mac, &target]
                .concat()
        },
    )
}

/// A frame as built, with a few bytes changed or cut off.
fn mutated(frame: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let mutations = prop_oneof![
        3 => Just(Vec::new()),
        2 => proptest::collection::vec((0..100_usize, any::<u8>()), 1..4),
    ];
    let cut = prop_oneof![5 => Just(None), 1 => (15..100_usize).prop_map(Some)];
    (frame, mutations, cut).prop_map(|(mut frame, mutations, cut)| {
        for (at, value) in mutations {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        frame
    })
}

pub(super) fn guest_frames() -> impl Strategy<Value = Vec<u8>> {
    let to_v4 = prop_oneof![8 => Just(METADATA_V4), 1 => v4()];
    let to_v6 = prop_oneof![8 => Just(METADATA_V6), 1 => v6()];
    mutated(prop_oneof![4 => ipv4(to_v4, v4()), 4 => ipv6(to_v6, v6()), 2 => arp()])
}

fn tag_v4() -> impl Strategy<Value = [u8; 4]> {
    (proptest::sample::select(&[240_u8, 240, 240, 10][..]), generation(), index(), 0..16_u32).prop_map(
        |(net, generation, index, source)| {
            let tag = (u32::from(generation) << 16 | index << 4 | source).to_be_bytes();
            [net, tag[1], tag[2], tag[3]]
        },
    )
}

fn tag_v6() -> impl Strategy<Value = [u8; 16]> {
    tag_v4().prop_map(|tag| {
        let mut address = [0; 16];
        address[..6].copy_from_slice(&[0xfd, 0, 0xa9, 0xfe, 0xa9, 0xfe]);
        address[12] = tag[0] ^ 240;
        address[13..].copy_from_slice(&tag[1..]);
        address
    })
}

pub(super) fn service_frames() -> impl Strategy<Value = Vec<u8>> {
    let from_v4 = prop_oneof![12 => Just(METADATA_V4), 1 => v4()];
    let from_v6 = prop_oneof![12 => Just(METADATA_V6), 1 => v6()];
    mutated(prop_oneof![6 => ipv4(tag_v4(), from_v4), 6 => ipv6(tag_v6(), from_v6), 1 => arp()])
}

fn generation() -> impl Strategy<Value = u8> {
    prop_oneof![8 => Just(3_u8), 1 => 1..=255_u8]
}

fn index() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(7_u32), 1 => 0..MAX_PORTS]
}

fn sources() -> impl Strategy<Value = [Option<Source>; 16]> {
    let address = prop_oneof![
        v4().prop_map(|address| {
            let mut mapped = [0; 16];
            mapped[10..12].copy_from_slice(&[0xff, 0xff]);
            mapped[12..].copy_from_slice(&address);
            mapped
        }),
        v6(),
    ];
    // What has been idle for long enough depends on how long the machine is up.
    let up = uptime();
    let age = prop_oneof![3 => Just(0_u64), 1 => Just(1_000_000_000), 1 => Just(if up > 20_000_000_000 { 6_000_000_000 } else { 0 })];
    let source = (address, mac(), mac(), age)
        .prop_map(|(address, mac, via, age)| Source { address, mac, via, age })
        .boxed();
    let some = proptest::array::uniform16(proptest::option::weighted(0.3, source.clone()));
    let full = proptest::array::uniform16(source.prop_map(Some));
    prop_oneof![3 => some, 1 => full].prop_map(distinct)
}

/// The programs never learn a source twice.
fn distinct(mut sources: [Option<Source>; 16]) -> [Option<Source>; 16] {
    for number in 1..16 {
        let (before, rest) = sources.split_at_mut(number);
        let key = |source: &Option<Source>| source.map(|source| (source.address, source.mac));
        if before.iter().any(|other| key(other).is_some() && key(other) == key(&rest[0])) {
            rest[0] = None;
        }
    }
    sources
}

fn agents() -> impl Strategy<Value = Agent> {
    let rarely = || proptest::bool::weighted(0.1);
    (proptest::bool::weighted(0.95), rarely(), proptest::bool::weighted(0.95), rarely())
        .prop_map(|(alive, leaving, ipv6, young)| Agent { alive, leaving, ipv6, young })
}

pub(super) fn worlds() -> impl Strategy<Value = World> {
    let known = proptest::bool::weighted(0.9);
    let exhausted = proptest::bool::weighted(0.1);
    let ended = proptest::bool::weighted(0.1);
    let bits = || prop_oneof![Just(0_u16), Just(u16::MAX), any::<u16>()];
    let v4 = world().address;
    let mut v6 = METADATA_PORT.v6;
    v6[15] = 10;
    let address = proptest::sample::select(vec![v4, v4, v6]);
    (known, exhausted, ended, sources(), bits(), bits(), agents(), address).prop_map(
        |(known, exhausted, ended, sources, open, own, agent, address)| World {
            address,
            known,
            exhausted,
            sources,
            open,
            own,
            agent,
            ended,
            ..world()
        },
    )
}

/// A world in which nothing has happened yet.
pub(super) fn world() -> World {
    World {
        known: true,
        index: 7,
        generation: 3,
        exhausted: false,
        sources: [None; 16],
        open: 0,
        own: 0,
        address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 10],
        agent: Agent { alive: true, leaving: false, ipv6: true, young: false },
        ended: false,
        station: MACS[0],
        metadata_port: METADATA_PORT,
    }
}
