//! Tests of the packet logic on frames built by hand.
use core::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::address::{METADATA_V4, METADATA_V6, SERVICE_MAC, Tag};

const GUEST_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 2, 3];
const GATEWAY_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 9, 9, 9];
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x1234, 0x5678, 0x9abc, 0xdef1);

/// The Internet checksum computed over everything, to check the incremental one against.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// The checksum of an IPv6 packet's payload, which is 0 when the one in it is right.
fn checksum_v6(frame: &[u8]) -> u16 {
    let payload = &frame[ipv6::LEN..];
    let pseudo = [&frame[22..54], &(payload.len() as u32).to_be_bytes(), &[0, 0, 0, frame[20]]].concat();
    checksum(&[&pseudo, payload].concat())
}

fn ethernet<const N: usize>(ethertype: u16) -> [u8; N] {
    let mut frame = [0; N];
    frame[..6].copy_from_slice(&GATEWAY_MAC);
    frame[6..12].copy_from_slice(&GUEST_MAC);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

fn frame_v4<const N: usize>(protocol: u8) -> [u8; N] {
    let mut frame = ethernet(ETHERTYPE_IPV4);
    put(&mut frame, 14, &[0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 64, protocol]);
    put(&mut frame, 26, &GUEST.octets());
    put(&mut frame, 30, &METADATA_V4.octets());
    let sum = checksum(&frame[14..34]);
    put(&mut frame, 24, &sum.to_be_bytes());
    frame
}

fn frame_v6<const N: usize>(next: u8, source: Ipv6Addr, destination: Ipv6Addr) -> [u8; N] {
    let mut frame = ethernet(ETHERTYPE_IPV6);
    put(&mut frame, 14, &[0x60, 0, 0, 0, 0, (N - ipv6::LEN) as u8, next, 255]);
    put(&mut frame, 22, &source.octets());
    put(&mut frame, 38, &destination.octets());
    frame
}

fn syn_v4() -> [u8; ipv4::TCP_LEN] {
    let mut frame = frame_v4(6);
    put(&mut frame, ipv4::LEN, &[0x9c, 0x40, 0, 80]);
    put(&mut frame, ipv4::LEN + 12, &[0x50, 0x02]);
    frame
}

fn syn_v6() -> [u8; ipv6::TCP_LEN] {
    let mut frame = frame_v6(6, GUEST_V6, METADATA_V6);
    put(&mut frame, ipv6::LEN, &[0x9c, 0x40, 0, 80]);
    put(&mut frame, ipv6::LEN + 12, &[0x50, 0x02]);
    frame
}

fn classify_v4(frame: &[u8; ipv4::TCP_LEN]) -> Verdict {
    let head = frame.first_chunk().unwrap();
    if !ipv4::is_ours(head) || ipv4::kind(head) != ipv4::Kind::Tcp {
        return Verdict::Pass;
    }
    ipv4::check(head).map_or_else(Verdict::Drop, |()| ipv4::classify_tcp(frame))
}

fn classify_v6(frame: &[u8; ipv6::TCP_LEN]) -> Verdict {
    match ipv6::kind(frame.first_chunk().unwrap()) {
        ipv6::Kind::Tcp => ipv6::classify_tcp(frame),
        ipv6::Kind::Unusable(counter) => Verdict::Drop(counter),
        ipv6::Kind::Icmp { .. } | ipv6::Kind::Other => Verdict::Pass,
    }
}

fn changed<const N: usize>(mut frame: [u8; N], at: usize, bytes: &[u8]) -> [u8; N] {
    put(&mut frame, at, bytes);
    frame
}

#[test]
fn ipv4_frames_are_told_apart() {
    use Verdict::{Drop, Pass, Take};
    let with = |at, bytes: &[u8]| changed(syn_v4(), at, bytes);
    let cases = [
        ("a SYN to the service", syn_v4(), Take),
        ("another destination", with(33, &[253]), Pass),
        ("UDP to the address", with(23, &[17]), Pass),
        ("another TCP port", with(36, &[0, 81]), Pass),
        ("don't-fragment is no fragment", with(20, &[0x40, 0]), Take),
        ("first fragment", with(20, &[0x20, 0]), Drop(Counter::Fragment)),
        ("later fragment", with(20, &[0x00, 0x10]), Drop(Counter::Fragment)),
        ("IP options", with(14, &[0x46]), Drop(Counter::IpHeader)),
        ("header length below the minimum", with(14, &[0x44]), Drop(Counter::IpHeader)),
        ("TCP header length below the minimum", with(46, &[0x40]), Drop(Counter::TcpTruncated)),
        ("broadcast destination MAC", with(0, &[0xff; 6]), Drop(Counter::GroupMac)),
        ("group source MAC", with(6, &[0x01]), Drop(Counter::GroupMac)),
        ("source 0.0.0.0", with(26, &[0, 0, 0, 0]), Drop(Counter::BadSource)),
        ("source loopback", with(26, &[127, 0, 0, 1]), Drop(Counter::BadSource)),
        ("source multicast", with(26, &[224, 0, 0, 1]), Drop(Counter::BadSource)),
        ("source in the synthetic range", with(26, &[240, 0, 0, 16]), Drop(Counter::BadSource)),
        ("source broadcast", with(26, &[255; 4]), Drop(Counter::BadSource)),
        ("source is the service", with(26, &[169, 254, 169, 254]), Drop(Counter::BadSource)),
        ("source link-local", with(26, &[169, 254, 3, 4]), Take),
    ];
    for (what, frame, expected) in cases {
        assert_eq!(classify_v4(&frame), expected, "{what}");
    }
}

#[test]
fn ipv6_frames_are_told_apart() {
    use Verdict::{Drop, Pass, Take};
    let with = |at, bytes: &[u8]| changed(syn_v6(), at, bytes);
    let source = |address: &str| changed(syn_v6(), 22, &address.parse::<Ipv6Addr>().unwrap().octets());
    let cases = [
        ("a SYN to the service", syn_v6(), Take),
        ("another destination", with(53, &[0xff]), Pass),
        ("UDP to the address", with(20, &[17]), Pass),
        ("another TCP port", with(56, &[0, 81]), Pass),
        ("a fragment", with(20, &[44]), Drop(Counter::Fragment)),
        ("hop-by-hop options", with(20, &[0]), Drop(Counter::Ipv6Extension)),
        ("destination options", with(20, &[60]), Drop(Counter::Ipv6Extension)),
        ("an authentication header", with(20, &[51]), Drop(Counter::Ipv6Extension)),
        ("TCP header length below the minimum", with(66, &[0x40]), Drop(Counter::TcpTruncated)),
        ("multicast destination MAC", with(0, &[0x33, 0x33]), Drop(Counter::GroupMac)),
        ("source ::", source("::"), Drop(Counter::BadSource)),
        ("source ::1", source("::1"), Drop(Counter::BadSource)),
        ("source IPv4-mapped", source("::ffff:192.168.1.10"), Drop(Counter::BadSource)),
        ("source multicast", source("ff02::1"), Drop(Counter::BadSource)),
        ("source is the service", source("fe80::a9fe:a9fe"), Drop(Counter::BadSource)),
        ("source in the synthetic range", source("fd00:a9fe:a9fe::10"), Drop(Counter::BadSource)),
        ("a unique local source", source("fd00:1::5"), Take),
        ("a global source", source("2001:db8::5"), Take),
    ];
    for (what, frame, expected) in cases {
        assert_eq!(classify_v6(&frame), expected, "{what}");
    }
}

#[test]
fn ipv4_rewriting_there_and_back_restores_the_frame() {
    let mut frame = syn_v4();
    let tag = Tag::new(1, 1, 0).to_v4();
    ipv4::to_service(&mut frame, tag);
    assert_eq!((mac_destination(&frame), mac_source(&frame)), (SERVICE_MAC, GUEST_MAC));
    assert_eq!(ipv4::source(&frame), tag);
    assert_eq!(checksum(&frame[14..34]), 0, "the IPv4 header verifies");

    // The reply: addresses swapped by the stack.
    let mut reply = frame;
    put(&mut reply, 26, &METADATA_V4.octets());
    put(&mut reply, 30, &tag.octets());
    assert!(ipv4::is_reply(&reply));
    ipv4::to_guest(&mut reply, GUEST, GUEST_MAC, GATEWAY_MAC);
    assert_eq!(ipv4::destination(&reply), GUEST);
    assert_eq!((mac_destination(&reply), mac_source(&reply)), (GUEST_MAC, GATEWAY_MAC));
    assert_eq!(checksum(&reply[14..34]), 0, "the IPv4 header verifies");
}

#[test]
fn ipv6_rewriting_there_and_back_restores_the_frame() {
    let mut frame = syn_v6();
    let tag = Tag::new(1, 1, 0).to_v6();
    ipv6::to_service(&mut frame, tag);
    assert_eq!((mac_destination(&frame), mac_source(&frame)), (SERVICE_MAC, GUEST_MAC));
    assert_eq!(ipv6::source(&frame), tag);

    let mut reply = frame;
    put(&mut reply, 22, &METADATA_V6.octets());
    put(&mut reply, 38, &tag.octets());
    assert!(ipv6::is_reply(&reply));
    ipv6::to_guest(&mut reply, GUEST_V6, GUEST_MAC, GATEWAY_MAC);
    assert_eq!(ipv6::destination(&reply), GUEST_V6);
    assert_eq!((mac_destination(&reply), mac_source(&reply)), (GUEST_MAC, GATEWAY_MAC));
}

const WORDS: [u32; 9] =
    [0, 1, 0xffff, 0x10000, 0xffff_0000, 0xffff_ffff, 0xc0a8_010a, 0xf000_0010, 0xa9fe_a9fe];

#[test]
fn incremental_checksum_equals_the_computed_one() {
    for old in WORDS {
        for new in WORDS {
            for rest in [[0u8, 0], [0xff, 0xff], [0x12, 0x34]] {
                let sum = |word: u32| checksum(&[&word.to_be_bytes()[..], &rest[..]].concat());
                let updated = checksum_replace(sum(old), old, new);
                // Zero has two representations in one's complement arithmetic; both verify.
                let verifies = |sum: u16| {
                    checksum(&[&new.to_be_bytes()[..], &rest[..], &sum.to_be_bytes()[..]].concat()) == 0
                };
                assert!(verifies(updated) || (new == 0 && rest == [0, 0]), "{old:x} -> {new:x} ({rest:?})");
            }
        }
    }
}

#[test]
fn checksum_difference_is_what_the_words_differ_by() {
    for old in WORDS {
        for new in WORDS {
            let (old, new) = ([old, 7, 0xffff_ffff, old], [new, 0, 0x1234_5678, new]);
            let sum = |words: [u32; 4]| !checksum(&words.map(u32::to_be_bytes).concat());
            // Adding the difference to the old sum gives the new one, modulo the two zeros.
            let difference =
                half(half(checksum_difference(old.map(u32::to_be), new.map(u32::to_be)).to_be()));
            let difference = if cfg!(target_endian = "little") {
                half(half(checksum_difference(old.map(u32::to_be), new.map(u32::to_be)))).swap_bytes() >> 16
            } else {
                difference
            };
            let total = half(half(u32::from(sum(old)) + difference));
            assert_eq!(total % 0xffff, u32::from(sum(new)) % 0xffff, "{old:x?} -> {new:x?}");
        }
    }
}

fn arp_frame(operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; arp::LEN] {
    let mut frame = ethernet(ETHERTYPE_ARP);
    put(&mut frame, 0, &[0xff; 6]);
    put(&mut frame, 14, &[0, 1, 8, 0, 6, 4, 0, operation]);
    put(&mut frame, 22, &GUEST_MAC);
    put(&mut frame, 28, &sender.octets());
    put(&mut frame, 38, &target.octets());
    frame
}

#[test]
fn arp_is_told_apart() {
    use arp::Arp;
    let other = Ipv4Addr::new(192, 168, 1, 2);
    let classify = |operation, sender, target| arp::classify(&arp_frame(operation, sender, target));
    assert_eq!(classify(1, GUEST, METADATA_V4), Arp::Request);
    assert_eq!(classify(1, Ipv4Addr::UNSPECIFIED, METADATA_V4), Arp::Request, "probe");
    assert_eq!(classify(1, GUEST, other), Arp::Pass);
    assert_eq!(classify(2, GUEST, METADATA_V4), Arp::Pass, "a reply that happens to go there");
    assert_eq!(classify(1, METADATA_V4, METADATA_V4), Arp::Claim, "announcement");
    assert_eq!(classify(1, METADATA_V4, other), Arp::Claim);
    assert_eq!(classify(2, METADATA_V4, GUEST), Arp::Claim);
}

#[test]
fn arp_answer() {
    let mut frame = arp_frame(1, GUEST, METADATA_V4);
    arp::answer(&mut frame, SERVICE_MAC);
    let mut expected = ethernet::<{ arp::LEN }>(ETHERTYPE_ARP);
    put(&mut expected, 0, &GUEST_MAC);
    put(&mut expected, 6, &SERVICE_MAC);
    put(&mut expected, 14, &[0, 1, 8, 0, 6, 4, 0, 2]);
    put(&mut expected, 22, &SERVICE_MAC);
    put(&mut expected, 28, &METADATA_V4.octets());
    put(&mut expected, 32, &GUEST_MAC);
    put(&mut expected, 38, &GUEST.octets());
    assert_eq!(frame, expected);
}

#[test]
fn an_announcement_is_a_reply_for_one_alone() {
    let mut expected = arp_frame(2, METADATA_V4, METADATA_V4);
    put(&mut expected, 0, &GUEST_MAC);
    put(&mut expected, 6, &SERVICE_MAC);
    put(&mut expected, 22, &SERVICE_MAC);
    put(&mut expected, 32, &GUEST_MAC);
    assert_eq!(arp::announcement(METADATA_V4, SERVICE_MAC, GUEST_MAC), expected);
}

const SOLICITED_NODE: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xfffe, 0xa9fe);

fn nd_frame(kind: u8, source: Ipv6Addr, target: Ipv6Addr) -> [u8; nd::ANSWER_LEN] {
    let mut frame = frame_v6(58, source, SOLICITED_NODE);
    put(&mut frame, ipv6::LEN, &[kind, 0]);
    put(&mut frame, ipv6::LEN + 8, &target.octets());
    put(&mut frame, nd::TARGET_LEN, &[1, 1]);
    put(&mut frame, nd::TARGET_LEN + 2, &GUEST_MAC);
    frame
}

#[test]
fn neighbour_discovery_is_told_apart() {
    use nd::Nd;
    let classify = |frame: [u8; nd::ANSWER_LEN]| nd::classify(frame.first_chunk().unwrap());
    assert_eq!(classify(nd_frame(135, GUEST_V6, METADATA_V6)), Nd::Solicitation);
    assert_eq!(classify(nd_frame(135, Ipv6Addr::UNSPECIFIED, METADATA_V6)), Nd::Solicitation, "detection");
    assert_eq!(classify(nd_frame(135, GUEST_V6, GUEST_V6)), Nd::Other);
    assert_eq!(classify(nd_frame(136, GUEST_V6, METADATA_V6)), Nd::Claim);
    assert_eq!(classify(nd_frame(136, GUEST_V6, GUEST_V6)), Nd::Other);
    assert_eq!(classify(nd_frame(128, GUEST_V6, METADATA_V6)), Nd::Other, "echo");
    let invalid = Nd::Invalid(Counter::NdInvalid);
    assert_eq!(classify(changed(nd_frame(135, GUEST_V6, METADATA_V6), 21, &[254])), invalid, "hop limit");
    assert_eq!(classify(nd_frame(135, METADATA_V6, METADATA_V6)), invalid);
    assert_eq!(classify(nd_frame(135, SOLICITED_NODE, METADATA_V6)), invalid);
}

#[test]
fn solicitations_are_answered() {
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let cases = [
        (GUEST_V6, GUEST_V6, GUEST_MAC, 0x60),
        (Ipv6Addr::UNSPECIFIED, all_nodes, [0x33, 0x33, 0, 0, 0, 1], 0x20),
    ];
    for (asker, destination, mac, flags) in cases {
        let mut frame = nd_frame(135, asker, METADATA_V6);
        nd::answer(&mut frame, SERVICE_MAC, nd::Detection::Multicast);
        let mut expected = frame_v6::<{ nd::ANSWER_LEN }>(58, METADATA_V6, destination);
        put(&mut expected, 0, &mac);
        put(&mut expected, 6, &SERVICE_MAC);
        put(&mut expected, ipv6::LEN, &[136, 0, 0, 0, flags]);
        put(&mut expected, ipv6::LEN + 8, &METADATA_V6.octets());
        put(&mut expected, nd::TARGET_LEN, &[2, 1]);
        put(&mut expected, nd::TARGET_LEN + 2, &SERVICE_MAC);
        let sum = checksum_v6(&expected);
        put(&mut expected, ipv6::LEN + 2, &sum.to_be_bytes());
        assert_eq!(frame, expected, "{asker}");
        assert_eq!(checksum_v6(&frame), 0);
    }
}

#[test]
fn echo_is_answered() {
    let mut frame = frame_v4::<{ ipv4::ICMP_LEN }>(1);
    put(&mut frame, ipv4::LEN, &[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let sum = checksum(&frame[ipv4::LEN..]);
    put(&mut frame, ipv4::LEN + 2, &sum.to_be_bytes());
    assert_eq!(ipv4::classify_icmp(&frame), Verdict::Take);
    ipv4::answer_icmp(&mut frame);
    assert_eq!((frame[ipv4::LEN], checksum(&frame[ipv4::LEN..]), checksum(&frame[14..34])), (0, 0, 0));
    assert_eq!((&frame[26..30], &frame[30..34]), (&METADATA_V4.octets()[..], &GUEST.octets()[..]));
    assert_eq!((mac_destination(&frame), mac_source(&frame)), (GUEST_MAC, GATEWAY_MAC));

    let mut frame = frame_v6::<{ ipv6::ICMP_LEN }>(58, GUEST_V6, METADATA_V6);
    put(&mut frame, ipv6::LEN, &[128, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let sum = checksum_v6(&frame);
    put(&mut frame, ipv6::LEN + 2, &sum.to_be_bytes());
    assert_eq!(ipv6::classify_echo(&frame), Verdict::Take);
    ipv6::answer_icmp(&mut frame);
    assert_eq!((frame[ipv6::LEN], checksum_v6(&frame)), (129, 0));
    assert_eq!(ipv6::source(&frame), METADATA_V6);
    assert_eq!(frame[38..54], GUEST_V6.octets());
}

#[test]
fn refusals_are_recognised() {
    let reset = |flags: u8, sequence: u32| {
        let frame = changed(syn_v4(), ipv4::LEN + 4, &sequence.to_be_bytes());
        ipv4::is_refusal(&changed(frame, ipv4::LEN + 13, &[flags]))
    };
    assert!(reset(0x14, 0), "RST|ACK to a SYN");
    assert!(!reset(0x14, 77), "reset of a connection");
    assert!(!reset(0x04, 77), "answer to a stray segment");
    assert!(!reset(0x12, 0), "SYN|ACK");
    assert!(ipv6::is_refusal(&changed(syn_v6(), ipv6::LEN + 13, &[0x14])));
}

#[test]
fn kinds_of_segments() {
    use tcp::Kind;
    let kind = |flags: u8| ipv4::tcp_kind(&changed(syn_v4(), ipv4::LEN + 13, &[flags]));
    assert_eq!([kind(0x02), kind(0xc2)], [Kind::Opening; 2], "SYN, with ECN too");
    assert_eq!([kind(0x04), kind(0x14)], [Kind::Reset; 2], "RST, with ACK too");
    assert_eq!([kind(0x12), kind(0x10), kind(0x11), kind(0)], [Kind::Other; 4]);
}
