//! Compares what we read in targets with what the servers read in which Nova runs, on targets that are written in odd ways.
use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use ::fuzz::{Random, fuzz};
use http1::Request;

use super::path::may_name;
use crate::config::Tokens;

/// Debian's, which has Debian's python3-eventlet, python3-paste and python3-webob.
const PYTHON: &str = "/usr/bin/python3";
/// Targets for each start of Python.
const BATCH: usize = 300;

const TARGETS: &[&str] = &[
    "/latest/user-data",
    "/2009-04-04/user-data/",
    "/ec2/latest/user-data?x=/y",
    "/openstack/latest/user_data",
    "/openstack/latest/password",
    "/openstack/2018-08-27/vendor_data.json",
    "/openstack/latest/vendor_data2.json",
    "/openstack/content/0000",
    "/latest/meta-data/../user-data",
    "//openstack//latest/./password",
    "/latest/meta-data/instance-id",
];
const WORDS: &[&str] = &[
    "/",
    "//",
    "..",
    "/../",
    "/./",
    "%",
    "%2",
    "%zz",
    "%%",
    "%2f",
    "%2e",
    "%25",
    "%3f",
    "%3b",
    ";",
    "?",
    "&",
    "\\",
    "\u{85}",
    "\u{a0}",
    "%a0",
    "%c2%a0",
    "%00",
    "%20",
    "+",
    "latest",
    "user-data",
    "openstack",
    "password",
    "http://",
    ":80",
    "~",
    ".",
];

/// A target as somebody writes it who wants to be read in another way.
fn target(random: &mut Random) -> Vec<u8> {
    let mut target = random.pick(TARGETS).as_bytes().to_vec();
    for _ in 0..random.below(3) {
        target = target.into_iter().flat_map(|byte| escaped(random, byte)).collect();
    }
    if random.once_in(2) {
        // Bytes that Python takes for spaces are more often at an end.
        let end: &[u8] =
            random.pick(&[b"".as_slice(), b"\x85", b"\xa0", b"\xa0\x85", b";x", b"/", b"/.", b"%2f"]);
        target.extend_from_slice(end);
    }
    if random.once_in(2) {
        random.damage(&mut target, WORDS);
    }
    target
}

/// One byte in sixteen is escaped.
fn escaped(random: &mut Random, byte: u8) -> Vec<u8> {
    match random.below(32) {
        0 => format!("%{byte:02x}").into_bytes(),
        1 => format!("%{byte:02X}").into_bytes(),
        _ => vec![byte],
    }
}

/// Nova's answers: for each target, whether it has a secret in it.
fn nova(targets: &[Vec<u8>]) -> Vec<bool> {
    let lines: String = targets
        .iter()
        .map(|target| target.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
        .collect();
    let mut python = Command::new(PYTHON);
    python.args(["-c", include_str!("nova.py")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().expect("there is a python3");
    python.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "it needs python3-eventlet, python3-paste and python3-webob (`cargo xtask setup`)"
    );
    let served: Vec<bool> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line == "1").collect();
    assert_eq!(served.len(), targets.len());
    served
}

#[test]
fn nova_reads_no_secret_where_we_see_none() {
    let names = Tokens::default().required_for;
    let (mut asked, mut secrets) = (0, 0);
    fuzz("proxy::token::oracle", |random| {
        let targets = (0..BATCH).map(|_| target(random));
        // What goes to Nova is the target of a request that was accepted, byte for byte.
        let targets: Vec<Vec<u8>> = targets
            .filter_map(|target| {
                let head = [b"GET ", &target[..], b" HTTP/1.1\r\n\r\n"].concat();
                Some(Request::parse(&head, &[]).ok()?.target.to_vec())
            })
            .collect();
        for (target, is_secret) in targets.iter().zip(nova(&targets)) {
            asked += 1;
            secrets += u32::from(is_secret);
            assert!(!is_secret || may_name(target, &names), "{}", target.escape_ascii());
        }
    });
    println!("fuzz::proxy::token::oracle: {secrets} of {asked} targets had a secret");
    assert!(secrets > 0, "{asked} targets had no secret");
}
