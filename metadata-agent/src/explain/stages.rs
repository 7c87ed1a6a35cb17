//! Findings at each stage of a port's way, from the facts.
use std::time::Duration;

use metadata_ebpf::counter::Counter;

use super::{Explanation, Finding, NodeFacts, PortFacts, ServedSeen, Stage, State, Word};

use super::{
    node::{agent, database_down, databases, nova},
    words::{RECENT, ago, blamed, describe, failed, finding, good, note, status, unknown},
};

/// Outcomes that are limits, and told there.
const LIMITS: [Counter; 2] = [Counter::ConnectionsLimited, Counter::AnswersLimited];
/// Outcomes of frames that are dropped and that no guest misses: what a client sends after the end of its connection.
const HARMLESS: [Counter; 2] = [Counter::UnknownSource, Counter::RefusalHidden];

/// The explanation of a port on that node; of the node alone without one.
pub fn explain(node: &NodeFacts, port: Option<&PortFacts>) -> Explanation {
    let Some(port) = port else {
        let findings = [agent(node), databases(node), vec![nova(node, None)]].concat();
        return Explanation { subject: "this node".to_owned(), port: None, findings };
    };
    let findings = [
        agent(node),
        vec![
            device(node, port),
            open_vswitch(node, port),
            southbound(node, port),
            identity(node, port),
            program(port),
            frames(port),
            sources(port),
            limits(port),
            requests(port),
            nova(node, Some(port)),
        ],
    ]
    .concat();
    let mut explanation = Explanation { subject: subject(port), port: None, findings };
    explanation.port = Some(port.evidence.port.clone()).filter(|port| !port.is_empty());
    assign_reason(port, &mut explanation);
    explanation
}

/// The agent's own reason for not serving a port counts where no stage has found one.
fn assign_reason(port: &PortFacts, explanation: &mut Explanation) {
    let Some(reason) = &port.unserved else { return };
    let before_program =
        |finding: &&Finding| finding.stage <= Stage::Identity && finding.state == State::Failed;
    if explanation.findings.iter().any(|finding| before_program(&finding)) {
        return;
    }
    if let Some(finding) = explanation.findings.iter_mut().find(|finding| finding.stage == Stage::Identity) {
        let remedy = "look at what is plugged for it: `ovs-vsctl find Interface external_ids:iface-id=PORT`";
        *finding = failed(Stage::Identity, format!("it is not served: {reason}"), remedy);
    }
}

fn subject(port: &PortFacts) -> String {
    let id = &port.evidence.port;
    let device = match (&port.served, &port.evidence.interface) {
        (Some(served), _) => Some(place(served)),
        (None, Some(interface)) => Some(interface.name.clone()),
        (None, None) => None,
    };
    match (id.is_empty(), device) {
        (true, _) => port.asked.clone(),
        (false, Some(device)) => format!("port {id} on {device}"),
        (false, None) => format!("port {id}"),
    }
}

fn place(served: &ServedSeen) -> String {
    let ServedSeen { device, vlan, mac, .. } = served;
    match (mac, vlan) {
        (Some(mac), _) => format!("{device}, MAC address {mac}"),
        (None, 0) => device.clone(),
        (None, vlan) => format!("{device}, VLAN {vlan}"),
    }
}

/// True if the interface's type is one of a device of the kernel that a guest is behind.
fn has_tap(kind: &str) -> bool {
    matches!(kind, "" | "system")
}

fn device(node: &NodeFacts, port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Device;
    if let Some(served) = &port.served {
        return good(STAGE, format!("{} has index {}", place(served), served.ifindex));
    }
    match (&port.evidence.interface, port.link) {
        (Some(interface), Some(index)) => good(STAGE, format!("{} has index {index}", interface.name)),
        (Some(interface), None) if !has_tap(&interface.kind) => good(
            STAGE,
            format!(
                "it has no tap: {} is of type {}, and is reached through the switch",
                interface.name, interface.kind
            ),
        ),
        (Some(interface), None) if node.databases.is_none() => failed(
            STAGE,
            format!("there is no device {} on this host, which the inventory names", interface.name),
            "start the guest, or correct the inventory",
        ),
        (Some(interface), None) => failed(
            STAGE,
            format!("there is no device {} on this host, which Open vSwitch has a row for", interface.name),
            format!(
                "give the tap that name back (`ip link set NAME name {}`), or plug it anew (`openstack server reboot --hard`)",
                interface.name
            ),
        ),
        (None, Some(index)) => good(STAGE, format!("{} has index {index}", port.asked)),
        (None, None) => unknown(STAGE, "nothing names a device"),
    }
}

fn open_vswitch(node: &NodeFacts, port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::OpenVSwitch;
    let Some([ovs, _]) = &node.databases else {
        return good(STAGE, "not asked: ports are those of a static inventory");
    };
    if let Some(down) = database_down(node, STAGE) {
        return down;
    }
    let Some(interface) = &port.evidence.interface else {
        let is_here = port.served.is_some()
            || port
                .evidence
                .binding
                .as_ref()
                .is_some_and(|row| row.kind == "external" || row.kind == "parented");
        if is_here {
            return good(STAGE, "no interface of its own is plugged for it, and none is needed");
        }
        let what = if port.evidence.port.is_empty() { &port.asked } else { &port.evidence.port };
        return failed(
            STAGE,
            format!("no Interface of the local Open vSwitch is plugged for {what} (external_ids:iface-id)"),
            "look on which host its instance is (`openstack server show`), and whether nova-compute there has plugged it",
        );
    };
    let plugged = format!("Interface {} is plugged for {}", interface.name, port.evidence.port);
    let age = Some(ovs.since);
    if has_tap(&interface.kind) && port.served.is_none() && port.link.is_some() {
        let vswitchd =
            "see that ovs-vswitchd runs (`systemctl status openvswitch-switch`): it fills in the row";
        match interface.ifindex {
            None | Some(0) => {
                return Finding {
                    age,
                    ..failed(
                        STAGE,
                        format!("{plugged}, and Open vSwitch has not looked for its device yet"),
                        vswitchd,
                    )
                };
            }
            Some(index) if port.link.map(i64::from) != Some(index) => {
                let seen = format!(
                    "{plugged} with index {index}, which is not that of the device: it was made anew"
                );
                return Finding { age, ..failed(STAGE, seen, vswitchd) };
            }
            Some(_) => {}
        }
    }
    let instance = interface.instance.as_ref().map(|instance| format!(" of instance {instance}"));
    good(STAGE, plugged + &instance.unwrap_or_default())
}

fn southbound(node: &NodeFacts, port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Southbound;
    let Some([_, _]) = &node.databases else {
        return good(STAGE, "not asked: ports are those of a static inventory");
    };
    if let Some(down) = database_down(node, STAGE) {
        return down;
    }
    if port.evidence.port.is_empty() {
        return unknown(STAGE, "it is not known which port that would be");
    }
    let Some(row) = &port.evidence.binding else {
        let remedy =
            "see that Neutron has the port (`openstack port show`), and that ovn-northd runs and keeps up";
        let seen = format!("no row of Port_Binding has logical_port={}", port.evidence.port);
        return if port.evidence.interface.is_some() {
            failed(STAGE, seen, remedy)
        } else {
            note(STAGE, seen + " among those of this chassis", remedy)
        };
    };
    let is_served = port.served.is_some();
    match row.chassis {
        Some(false) if !is_served => failed(
            STAGE,
            "its row names another chassis",
            "look for the instance on that host; if it is here, see that ovn-controller runs here and has claimed the port",
        ),
        Some(false) => note(
            STAGE,
            "its row names another chassis, while it is plugged and served here: it is being migrated, or ovn-controller \
             has not claimed it",
            "see that ovn-controller runs here, unless a migration is under way",
        ),
        None => note(
            STAGE,
            "no chassis has claimed its row yet",
            "see that ovn-controller runs here: the guest has no other network either",
        ),
        Some(true) => good(STAGE, format!("its row names this chassis, and the addresses {}", row.cidrs)),
    }
}

fn identity(node: &NodeFacts, port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Identity;
    let doubt = match port.served.as_ref().map(|served| &served.who) {
        Some(Word::Known(identity)) => {
            let seen = format!("instance {} of project {}", identity.instance, identity.project);
            let local = port.evidence.interface.as_ref().and_then(|interface| interface.instance.as_ref());
            let confirmed = match (&node.databases, local) {
                (None, _) => "by the inventory",
                (Some(_), Some(_)) => "as the hypervisor says as well",
                (Some(_), None) => "which the hypervisor does not say anything about",
            };
            return good(STAGE, format!("{seen}, {confirmed}"));
        }
        Some(Word::Doubt(reason)) => reason.clone(),
        None => {
            // What is plugged and has a row lacks something that the row would tell.
            let lacks = port.evidence.binding.as_ref().is_some_and(|row| row.device_id.is_none());
            if !lacks || port.unserved.is_none() {
                return unknown(STAGE, "it is not served");
            }
            "its row in the Southbound names no instance (neutron:device_id)".to_owned()
        }
    };
    let remedy = if doubt.contains("device_id") && !doubt.contains("says instance") {
        "attach the port to an instance (`openstack server add port`): its device_id in Neutron has to be the instance's id"
    } else if doubt.contains("the local Open vSwitch") {
        "set device_id of the port in Neutron to the instance that the hypervisor runs (`openstack port show`)"
    } else {
        "see that Neutron has the port, and that the Southbound is there and keeps up"
    };
    failed(STAGE, doubt, remedy)
}

fn program(port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Program;
    let Some(served) = &port.served else { return unknown(STAGE, "it is not served, so that it needs none") };
    let device = &served.device;
    match (&served.attached, served.is_on) {
        (_, true) => good(STAGE, format!("the kernel has it on {device}")),
        (Ok(()), false) => failed(
            STAGE,
            format!("the kernel does not have it on {device}: somebody removed it"),
            "wait for some seconds, in which the agent puts it back; if it does not stay, find out who removes filters \
             and qdiscs (`tc monitor`)",
        ),
        (Err(error), false) => failed(
            STAGE,
            format!("it is not on {device}: {error}"),
            "look into the agent's log for why it cannot be attached, which is tried again each second",
        ),
    }
}

/// True if an outcome is a fault of what the guest sends.
fn is_of_frames(counter: Counter) -> bool {
    counter != Counter::SourcesExhausted && !LIMITS.contains(&counter) && !HARMLESS.contains(&counter)
}

fn frames(port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Frames;
    let Some(served) = &port.served else { return unknown(STAGE, "none are counted for it") };
    let counted = served.frames.frames.iter().map(|(counter, count)| format!("{} {count}", counter.name()));
    let counted = counted.collect::<Vec<_>>().join(", ");
    if counted.is_empty() {
        return note(
            STAGE,
            "none has come from the guest to the metadata service",
            "see in the guest whether it asks, and has a route or ARP entry for 169.254.169.254 (`ip route get`)",
        );
    }
    match served.frames.dropped {
        Some((counter, age)) if age < RECENT && is_of_frames(counter) => {
            let help = counter.help().trim().trim_start_matches("Dropped: ").trim_end_matches('.');
            Finding {
                age: Some(age),
                ..failed(
                    STAGE,
                    format!("the last one was dropped: {help} ({}); all: {counted}", counter.name()),
                    "correct what the guest sends; `metadata-agent log --datapath on --port TAP` shows each frame",
                )
            }
        }
        dropped => {
            let age =
                dropped.map(|(counter, age)| format!("; last dropped: {}, {}", counter.name(), ago(age)));
            good(STAGE, counted + &age.unwrap_or_default())
        }
    }
}

fn sources(port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Sources;
    let Some(served) = &port.served else { return unknown(STAGE, "none are learned for it") };
    let mut learned: Vec<_> = served.sources.iter().collect();
    learned.sort_by_key(|source| source.age);
    let texts =
        learned.iter().map(|source| format!("{} ({}, {})", source.address, source.mac, ago(source.age)));
    let texts = texts.collect::<Vec<_>>().join(", ");
    match served.frames.dropped {
        Some((Counter::SourcesExhausted, age)) if age < RECENT => Finding {
            age: Some(age),
            ..failed(
                STAGE,
                format!("more at once than the {} places of a port: {texts}", learned.len()),
                "give addresses that the guest routes for to the port (allowed address pairs), which always find a place",
            )
        },
        _ if learned.is_empty() => unknown(STAGE, "none yet: no connection was opened"),
        _ => good(STAGE, texts),
    }
}

fn limits(port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Limits;
    let Some(served) = &port.served else { return unknown(STAGE, "it is not served") };
    if let Some((counter, age)) = served.frames.dropped
        && age < RECENT
        && LIMITS.contains(&counter)
    {
        let option = if counter == Counter::ConnectionsLimited { "connection_rate" } else { "answer_rate" };
        let seen = format!("frames beyond [metadata_ebpf] {option} were dropped ({})", counter.name());
        return Finding { age: Some(age), ..failed(STAGE, seen, raise(option)) };
    }
    let Some(report) = &port.report else {
        return unknown(STAGE, "the process that guests talk to says nothing of the port");
    };
    let now = format!(
        "{} connections, {} requests with Nova, {} that wait for an identity",
        report.connections, report.requests, report.held
    );
    match &report.tally.limited {
        Some((limit, since)) if Duration::from_millis(*since) < RECENT => Finding {
            age: Some(Duration::from_millis(*since)),
            ..failed(
                STAGE,
                format!("the limit {limit} was met ({} times); now {now}", report.tally.totals.limited),
                raise(limit),
            )
        },
        _ => good(STAGE, now),
    }
}

fn raise(option: &str) -> String {
    format!(
        "find out why the guest asks so much, or raise [metadata_ebpf] {option} and `systemctl reload metadata-agent`"
    )
}

fn requests(port: &PortFacts) -> Finding {
    const STAGE: Stage = Stage::Requests;
    let Some(report) = &port.report else { return unknown(STAGE, "nothing is said of any") };
    let Some((since, last)) = report.tally.recent.first() else {
        return unknown(STAGE, "there was none since the process that guests talk to knows the port");
    };
    let age = Duration::from_millis(*since);
    let others = report.tally.recent.iter().skip(1).map(|(_, record)| status(record));
    let others = others.collect::<Vec<_>>().join(" ");
    let before = if others.is_empty() { String::new() } else { format!("; before: {others}") };
    let seen = format!("{}{before}; {} in all", describe(last), report.tally.totals.requests);
    let found = match blamed(last).filter(|_| age < RECENT) {
        None => good(STAGE, seen),
        Some(STAGE) => {
            failed(STAGE, seen, "correct what the guest asks: its answer's text says what is wrong")
        }
        Some(stage) => finding(STAGE, State::Note, format!("{seen}; see {}", stage.name())),
    };
    Finding { age: Some(age), ..found }
}

#[cfg(test)]
mod tests;
