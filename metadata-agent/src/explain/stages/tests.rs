use std::borrow::Cow;

use super::*;
use crate::{
    datapath::PortFrames,
    directory::{Identity, Record, TallyReport},
    explain::{BindingSeen, DatabaseSeen, Evidence, InterfaceSeen},
    link::{PortNumber, PortReport, ProbeReport},
};

fn node() -> NodeFacts {
    let database = || DatabaseSeen { down: None, since: Duration::from_secs(60) };
    NodeFacts { databases: Some([database(), database()]), has_ipv6: true, ..NodeFacts::default() }
}

fn record(status: u16, by_nova: bool, refusal: Option<&'static str>) -> Record {
    Record {
        source: None,
        method: Some("GET".into()),
        path: Some("meta-data".into()),
        status: Some(status),
        by_nova,
        bytes: 0,
        us: 1500,
        nova_us: None,
        refusal: refusal.map(Cow::Borrowed),
        reason: None,
    }
}

/// A port that nothing is wrong with.
fn port() -> PortFacts {
    let identity = Identity {
        port: "port".into(),
        instance: "instance".into(),
        project: "project".into(),
        network: "network".into(),
        fixed_ips: Vec::new(),
    };
    let number = PortNumber { index: 7, generation: 3 };
    PortFacts {
        evidence: Evidence {
            port: "port".into(),
            interface: Some(InterfaceSeen {
                name: "tap0".into(),
                kind: String::new(),
                ifindex: Some(7),
                instance: None,
            }),
            binding: Some(BindingSeen {
                kind: String::new(),
                chassis: Some(true),
                device_id: Some("instance".into()),
                cidrs: "10.0.0.5/24".into(),
                macs: Vec::new(),
            }),
        },
        link: Some(7),
        served: Some(ServedSeen {
            device: "tap0".into(),
            ifindex: 7,
            vlan: 0,
            mac: None,
            who: Word::Known(identity),
            attached: Ok(()),
            is_on: true,
            frames: PortFrames { frames: vec![(Counter::Redirected, 12)], dropped: None },
            sources: Vec::new(),
            exhausted: 0,
        }),
        report: Some(PortReport {
            port: number,
            connections: 1,
            requests: 0,
            held: 0,
            tally: TallyReport { recent: vec![(100, record(200, true, None))], ..TallyReport::default() },
        }),
        ..PortFacts::default()
    }
}

/// The first stage that fails, and what was seen there.
fn failure(node: &NodeFacts, port: &PortFacts) -> Option<(Stage, String)> {
    explain(node, Some(port)).failure().map(|finding| {
        assert!(finding.remedy.is_some(), "{finding:?}");
        (finding.stage, finding.seen.clone())
    })
}

fn stage(node: &NodeFacts, port: &PortFacts) -> Option<Stage> {
    failure(node, port).map(|(stage, _)| stage)
}

fn dropped(counter: Counter, age: u64) -> PortFacts {
    let mut port = port();
    if let Some(served) = &mut port.served {
        served.frames.dropped = Some((counter, Duration::from_secs(age)));
    }
    port
}

fn answered(record: Record) -> PortFacts {
    let mut port = port();
    if let Some(report) = &mut port.report {
        report.tally.recent = vec![(100, record)];
    }
    port
}

#[test]
fn all_stages_are_told_in_their_order() {
    let explanation = explain(&node(), Some(&port()));
    let stages: Vec<_> = explanation.findings.iter().map(|finding| finding.stage).collect();
    assert_eq!(stages, Stage::ALL);
    assert_eq!(explanation.failure(), None, "{explanation:?}");
    let statuses: Vec<_> = Stage::ALL.iter().map(|stage| stage.status()).collect();
    assert_eq!(statuses, (10..21).collect::<Vec<u8>>());
}

#[test]
fn a_node_without_ipv6_is_noted_and_does_not_fail() {
    let node = NodeFacts { has_ipv6: false, ..node() };
    let explanation = explain(&node, Some(&port()));
    assert_eq!(explanation.failure(), None);
    let note = explanation.findings.iter().find(|finding| finding.state == State::Note).unwrap();
    assert!(note.stage == Stage::Agent && note.seen.contains("IPv6 is off"), "{note:?}");
}

#[test]
fn a_row_that_names_another_chassis_is_why_an_unserved_port_is_not() {
    let mut port = port();
    port.evidence.binding.as_mut().unwrap().chassis = Some(false);
    assert_eq!(stage(&node(), &port), None, "a migration is under way");
    (port.served, port.report) = (None, None);
    port.unserved = Some("of some reason".into());
    assert_eq!(stage(&node(), &port), Some(Stage::Southbound));
    // The agent's own reason stands where no stage has found one.
    port.evidence.binding.as_mut().unwrap().chassis = Some(true);
    assert_eq!(failure(&node(), &port).unwrap().1, "it is not served: of some reason");
}

#[test]
fn what_is_dropped_counts_while_it_is_recent() {
    for (counter, expected) in [
        (Counter::ConnectionsLimited, Some(Stage::Limits)),
        (Counter::AnswersLimited, Some(Stage::Limits)),
        (Counter::SourcesExhausted, Some(Stage::Sources)),
        (Counter::Fragment, Some(Stage::Frames)),
        (Counter::ForeignSource, Some(Stage::Frames)),
        (Counter::UnknownSource, None),
    ] {
        assert_eq!(stage(&node(), &dropped(counter, 3)), expected, "{counter:?}");
        assert_eq!(stage(&node(), &dropped(counter, 300)), None, "{counter:?}");
    }
}

#[test]
fn the_last_answer_says_whose_trouble_it_is() {
    for (record, expected) in [
        (record(404, true, None), None),
        (record(403, true, None), Some(Stage::Nova)),
        (record(500, true, None), Some(Stage::Nova)),
        (record(502, false, Some("nova_unreachable")), Some(Stage::Nova)),
        (record(504, false, Some("nova_timeout")), Some(Stage::Nova)),
        (record(400, false, Some("malformed")), Some(Stage::Requests)),
        (record(401, false, Some("token_missing")), Some(Stage::Requests)),
    ] {
        assert_eq!(stage(&node(), &answered(record.clone())), expected, "{record:?}");
    }
    // What Nova says now stands above what it said then.
    let probe = ProbeReport { status: Some(200), us: 900, refusal: None, reason: None };
    let port = PortFacts { probe: Some(Ok(probe)), ..answered(record(502, false, Some("nova_unreachable"))) };
    assert_eq!(stage(&node(), &port), None);
}
