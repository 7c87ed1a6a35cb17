//! Cost of the programs to a frame for somebody else: few instructions, and nothing of it changes.

use anyhow::Result;
use metadata_tests::{
    interpreter::{self, Run},
    model::PASS,
    programs::{Programs, Which},
};

const MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 2, 3];
/// The most instructions that a frame to somebody else may take.
const MOST: usize = 40;

/// Most of what a guest sends is not for the service, and each of those frames passes through the program.
#[test]
fn a_foreign_frame_takes_few_instructions() -> Result<()> {
    let ethernet =
        |ethertype: u16| [&[0xfa, 0x16, 0x3e, 9, 9, 9][..], &MAC, &ethertype.to_be_bytes()].concat();
    let ipv4 = |protocol: u8| {
        let header = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol, 0, 0, 192, 168, 1, 10, 192, 168, 1, 11];
        [&ethernet(0x0800), &header[..], &[0; 20]].concat()
    };
    let ipv6 = |next: u8, to: [u8; 16], payload: &[u8]| {
        let header = [&[0x60, 0, 0, 0, 0, payload.len() as u8, next, 255][..], &[0xfd; 16], &to].concat();
        [&ethernet(0x86dd), &header[..], payload].concat()
    };
    let neighbour = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let solicited = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &neighbour, &[1, 1], &MAC].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC, &[192, 168, 1, 10], &[0; 6], &[192, 168, 1, 11]].concat();
    let programs = Programs::load()?;
    for (name, frame) in [
        ("IPv4 TCP", ipv4(6)),
        ("IPv4 UDP", ipv4(17)),
        ("IPv6 TCP", ipv6(6, neighbour, &[0; 20])),
        ("IPv6 UDP", ipv6(17, neighbour, &[0; 20])),
        ("neighbour solicitation", ipv6(58, solicited, &solicitation)),
        ("ARP request", [&ethernet(0x0806)[..], &arp].concat()),
        ("unknown type", [&ethernet(0x88cc)[..], &[0; 46]].concat()),
    ] {
        let Run { action, instructions } = interpreter::run(Which::FromGuest, &frame)?;
        println!("{name} to another: {instructions} instructions");
        assert_eq!(action, PASS, "{name}");
        assert_eq!(programs.run(Which::FromGuest, &frame)?, (action, frame), "{name}, by the kernel");
        assert!(instructions <= MOST, "{name}: {instructions} instructions");
    }
    Ok(())
}
