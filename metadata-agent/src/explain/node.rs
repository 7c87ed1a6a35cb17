//! Findings that are the node's: the agent, its databases and Nova.
use std::time::Duration;

use super::{
    DatabaseSeen, Finding, NodeFacts, PortFacts, Stage,
    words::{RECENT, blamed, describe, failed, good, note, unknown},
};

/// The agent, the way to its workers, and what of it other processes see.
pub(super) fn agent(node: &NodeFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(problem) = node.problems.first() {
        findings.push(failed(
            Stage::Agent,
            problem,
            "look into the agent's log, which says what it has tried",
        ));
    } else {
        let families = if node.has_ipv6 { "IPv4 and IPv6" } else { "IPv4" };
        findings.push(good(Stage::Agent, format!("it runs, and serves guests over {families}")));
    }
    if !node.has_ipv6 {
        findings.push(note(
            Stage::Agent,
            "IPv6 is off on this host: guests that ask http://[fe80::a9fe:a9fe] get no answer",
            "have the kernel load IPv6 (no ipv6.disable=1), and restart the agent, if guests have IPv6 alone",
        ));
    }
    for text in &node.notes {
        findings.push(note(Stage::Agent, text, "look into the log of the agent, which says more"));
    }
    findings
}

/// Both databases, without a port.
pub(super) fn databases(node: &NodeFacts) -> Vec<Finding> {
    let stages = [Stage::OpenVSwitch, Stage::Southbound];
    let Some(databases) = &node.databases else { return Vec::new() };
    let connected = |stage, since| Finding { age: Some(since), ..good(stage, "connected since then") };
    let of = |(stage, database): (Stage, &DatabaseSeen)| {
        database_down(node, stage).unwrap_or_else(|| connected(stage, database.since))
    };
    stages.into_iter().zip(databases).map(of).collect()
}

/// A database that is not there.
pub(super) fn database_down(node: &NodeFacts, stage: Stage) -> Option<Finding> {
    let [ovs, southbound] = node.databases.as_ref()?;
    let (database, name) = match stage {
        Stage::OpenVSwitch => (ovs, "the local Open vSwitch's database"),
        _ => (southbound, "the Southbound"),
    };
    let reason = database.down.as_ref()?;
    let lower = reason.to_lowercase();
    let is_certificate =
        ["certificate", "tls", "expired", "handshake"].iter().any(|word| lower.contains(word));
    let remedy = match stage {
        Stage::OpenVSwitch => "start ovsdb-server (openvswitch-switch), or correct [ovs] ovsdb_connection",
        _ if is_certificate => {
            "renew the certificate that is named (of the Southbound's servers, or [ovn] ovn_sb_certificate), or correct \
             [ovn] ovn_sb_ca_cert"
        }
        _ => {
            "see that the Southbound's servers run and are reached from here, or correct [ovn] ovn_sb_connection"
        }
    };
    let seen = format!("{name} is not connected: {reason}; known ports are served by what was known");
    Some(Finding { age: Some(database.since), ..failed(stage, seen, remedy) })
}

pub(super) fn nova(node: &NodeFacts, port: Option<&PortFacts>) -> Finding {
    const STAGE: Stage = Stage::Nova;
    const SECRET: &str = "set metadata_proxy_shared_secret here to what Nova's [neutron] has, and `systemctl reload metadata-agent`";
    const REACH: &str =
        "see that Nova's metadata service runs at nova_metadata_host, and is reached from this host";
    match port.and_then(|port| port.probe.as_ref()) {
        Some(Ok(probe)) => {
            let ms = probe.us as f64 / 1e3;
            return match (probe.status, &probe.refusal) {
                (Some(403), _) => {
                    failed(STAGE, "it refuses the agent's signature (403), asked just now", SECRET)
                }
                (Some(404), _) => failed(
                    STAGE,
                    "it does not know the instance (404), asked just now",
                    "see that the instance is Nova's, and that its metadata service is that of the instance's cell",
                ),
                (Some(status @ 500..), _) => failed(
                    STAGE,
                    format!("it answers {status}, asked just now"),
                    "look into the log of Nova's metadata service",
                ),
                (Some(status), _) => good(
                    STAGE,
                    format!("it answers {status} within {ms:.1} ms, asked just now in the port's name"),
                ),
                (None, refusal) => {
                    let reason = probe.reason.clone().or_else(|| refusal.clone()).unwrap_or_default();
                    let is_nova = refusal.as_deref().is_some_and(|refusal| refusal.starts_with("nova_"));
                    if is_nova {
                        let problem = node.nova.as_deref().unwrap_or(&reason);
                        failed(STAGE, format!("a request got as far as the way to it: {problem}"), REACH)
                    } else {
                        unknown(STAGE, format!("a request did not get as far: {reason}"))
                    }
                }
            };
        }
        Some(Err(error)) => {
            return failed(STAGE, format!("a request in the port's name got no answer: {error}"), REACH);
        }
        None => {}
    }
    if let Some(problem) = &node.nova {
        return failed(STAGE, problem, REACH);
    }
    let report = port.and_then(|port| port.report.as_ref());
    let last = report.and_then(|report| report.tally.recent.first());
    let Some((since, last)) = last.filter(|(since, _)| Duration::from_millis(*since) < RECENT) else {
        return good(STAGE, "a connection can be made to it");
    };
    let age = Some(Duration::from_millis(*since));
    let found = match (blamed(last), last.status) {
        (Some(STAGE), Some(403)) if last.by_nova => {
            failed(STAGE, "it refuses the agent's signature (403)", SECRET)
        }
        (Some(STAGE), _) => failed(STAGE, describe(last), REACH),
        _ => good(STAGE, "it has answered, or a connection can be made to it"),
    };
    Finding { age, ..found }
}
