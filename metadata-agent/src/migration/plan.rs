//! Decides what is to be done so that a node changes hands: plain data from plain data.
use std::{collections::BTreeSet, fmt};

use super::incumbent::{Found, Provision};
use crate::inventory::Bound;

/// Ports of this host, as the running agent has them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ports {
    /// Networks of those that are served.
    pub networks: BTreeSet<String>,
    /// Those that are not: port and reason.
    pub unserved: Vec<(String, String)>,
}

/// Commands by which the other agent is stopped and started.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Commands {
    /// Stops it, and has it stay so.
    pub stop: Option<String>,
    /// Starts it.
    pub start: Option<String>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Takes the other agent's port of a network out of Open vSwitch, so that this one can bind its own.
    Release {
        /// The network.
        network: String,
        /// The other agent's.
        bound: Bound,
    },
    /// Waits until this agent serves these ports, for which it lacked their networks' metadata ports.
    AwaitOwn {
        /// The ports.
        ports: Vec<String>,
    },
    /// Stops the other agent.
    Stop {
        /// By that command.
        command: String,
    },
    /// Asks this agent once more that it is ready and serves: from here on nobody else does.
    Confirm {
        /// Networks whose things go.
        networks: BTreeSet<String>,
        /// Ports that it did not serve to begin with.
        unserved: BTreeSet<String>,
    },
    /// Removes what serves a network: haproxy, port, devices, namespace.
    Remove(Provision),
    /// Starts the other agent.
    Start {
        /// By that command.
        command: String,
    },
    /// Waits until the other agent serves these networks.
    AwaitOther {
        /// The networks.
        networks: BTreeSet<String>,
    },
    /// Has this agent leave for good.
    Leave,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { network, bound } => write!(
                f,
                "release the metadata port of network {network}: take port {} from bridge {}",
                bound.device, bound.bridge
            ),
            Self::AwaitOwn { ports } => write!(f, "wait until this agent serves port {}", ports.join(", ")),
            Self::Stop { command } => write!(f, "stop the other agent: {command}"),
            Self::Confirm { networks, .. } => {
                write!(f, "ask this agent once more that it serves network {}", list(networks))
            }
            Self::Remove(provision) => {
                let haproxies = provision.haproxies.iter().map(|process| format!("haproxy ({process}), "));
                write!(
                    f,
                    "remove what served network {}: {}port and device {}, namespace {}",
                    provision.network,
                    haproxies.collect::<String>(),
                    provision.device(),
                    provision.namespace()
                )
            }
            Self::Start { command } => write!(f, "start the other agent: {command}"),
            Self::AwaitOther { networks } => {
                write!(f, "wait until it serves network {}", list(networks))
            }
            Self::Leave => f.write_str("have this agent leave for good, and remove what it has on this host"),
        }
    }
}

pub(super) fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Plan of a migration: steps that are to be done, and those that are not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In their order.
    pub steps: Vec<Step>,
    /// Reasons not to begin.
    pub problems: Vec<String>,
    /// Reasons not to begin that the operator may overrule: guests may lose what the other agent does for them.
    pub doubts: Vec<String>,
    /// Things that are left as they are, and why.
    pub left: Vec<String>,
    /// Undoes a stop or a start.
    pub undo: Option<String>,
}

/// From the other agent to this one, which serves already.
pub fn forward(found: &Found, ports: &Ports, commands: &Commands) -> Plan {
    let mut plan = Plan::default();
    let bound: Vec<_> = found.provisions.values().filter_map(|provision| provision.bound.as_ref()).collect();
    let (mut waiting, mut blocked) = (BTreeSet::new(), Vec::new());
    for (port, reason) in &ports.unserved {
        // Metadata ports are no guest's, and are listed since an interface names them.
        if bound.iter().any(|bound| bound.logical_port == *port) {
            continue;
        }
        match bound.iter().find(|bound| reason.contains(bound.device.as_str())) {
            Some(bound) => {
                waiting.insert(bound.device.clone());
                blocked.push(port.clone());
            }
            None => plan.doubts.push(format!("port {port} is not served by this agent: {reason}")),
        }
    }
    let (ours, others): (Vec<_>, Vec<_>) = found.provisions.values().partition(|provision| {
        ports.networks.contains(&provision.network) || waiting.contains(&provision.device())
    });
    for provision in others {
        plan.left.push(format!(
            "{}: no port of network {} is served by this agent",
            provision.namespace(),
            provision.network
        ));
    }
    for provision in &ours {
        for (process, name) in &provision.strangers {
            plan.problems.push(format!(
                "process {process} ({name}) is in {}, and is no haproxy: end it if it is of no use",
                provision.namespace()
            ));
        }
    }
    // While the other agent is there: so nobody is without either of them.
    let released = ours.iter().filter(|provision| waiting.contains(&provision.device()));
    plan.steps.extend(released.filter_map(|provision| {
        let bound = provision.bound.clone()?;
        Some(Step::Release { network: provision.network.clone(), bound })
    }));
    let unserved = ports.unserved.iter().map(|(port, _)| port.clone());
    let unserved = unserved.filter(|port| !blocked.contains(port)).collect();
    if !blocked.is_empty() {
        plan.steps.push(Step::AwaitOwn { ports: blocked });
    }
    // Whoever names a command knows of an agent that may be out of sight.
    if found.serves() || (commands.stop.is_some() && !ours.is_empty()) {
        match stop(found, commands) {
            Ok((command, undo)) => {
                plan.steps.push(Step::Stop { command });
                plan.undo = Some(undo);
            }
            Err(problem) => plan.problems.push(problem),
        }
    } else if !ours.is_empty() {
        let namespaces: Vec<_> = ours.iter().map(|provision| provision.namespace()).collect();
        plan.doubts.push(format!(
            "the other agent is not seen to run, but what it made is here ({}): if it runs, do this in the host's process \
             namespace, or name what stops it for good with --stop, and what starts it with --start",
            namespaces.join(", ")
        ));
    }
    if !ours.is_empty() {
        let networks = ours.iter().map(|provision| provision.network.clone()).collect();
        plan.steps.push(Step::Confirm { networks, unserved });
    }
    plan.steps.extend(ours.into_iter().cloned().map(Step::Remove));
    plan
}

/// Ways to stop the other agent, and to start it again.
fn stop(found: &Found, commands: &Commands) -> Result<(String, String), String> {
    if let (Some(stop), Some(start)) = (&commands.stop, &commands.start) {
        return Ok((stop.clone(), start.clone()));
    }
    if found.agents.is_empty() {
        return Err(
            "somebody listens at the other agent's socket, metadata_proxy, and no process of it is seen: do this in the host's \
             process namespace, or name what stops it for good with --stop, and what starts it with --start"
                .to_owned(),
        );
    }
    let named = |agent: &super::Incumbent| format!("{} (process {})", agent.program, agent.process);
    let agents: Vec<_> = found.agents.iter().map(named).collect();
    let agents = agents.join(", ");
    if found.agents.iter().any(super::Incumbent::does_more) {
        return Err(format!(
            "{agents} may have other extensions than metadata: take `metadata` from its `[agent] extensions`, and name what has it \
             read that with --stop, and what undoes that with --start"
        ));
    }
    let units: BTreeSet<_> = found.agents.iter().map(|agent| agent.unit.as_deref()).collect();
    match units.into_iter().collect::<Option<Vec<_>>>() {
        Some(units) => {
            let units = units.join(" ");
            Ok((format!("systemctl disable --now {units}"), format!("systemctl enable --now {units}")))
        }
        None => Err(format!(
            "{agents} is no service of systemd's: name what stops it for good with --stop, and what starts it with --start"
        )),
    }
}

/// From this agent to the other one.
pub fn back(found: &Found, ports: &Ports, commands: &Commands, has_unit: bool) -> Plan {
    let mut plan = Plan::default();
    if !found.serves() {
        const UNIT: &str = "neutron-ovn-metadata-agent.service";
        match (&commands.start, &commands.stop) {
            (Some(start), Some(stop)) => {
                plan.steps.push(Step::Start { command: start.clone() });
                plan.undo = Some(stop.clone());
            }
            _ if has_unit => {
                plan.steps.push(Step::Start { command: format!("systemctl enable --now {UNIT}") });
                plan.undo = Some(format!("systemctl disable --now {UNIT}"));
            }
            _ => plan.problems.push(format!(
                "the other agent does not run, and there is no {UNIT}: name what starts it with --start, and what stops it for \
                 good with --stop"
            )),
        }
    }
    if !ports.networks.is_empty() {
        plan.steps.push(Step::AwaitOther { networks: ports.networks.clone() });
    }
    plan.steps.push(Step::Leave);
    plan
}

#[cfg(test)]
mod tests {
    use super::{super::Incumbent, *};

    const RED: &str = "0c6a1b2e-5f7d-4c1a-9c55-0d7c1b2e3f4a";
    const BLUE: &str = "1d6a1b2e-5f7d-4c1a-9c55-0d7c1b2e3f4a";

    fn provision(network: &str) -> Provision {
        Provision {
            network: network.into(),
            haproxies: vec![7],
            strangers: Vec::new(),
            listens: true,
            bound: Some(Bound::of_test(&format!("tap{}0", &network[..10]))),
        }
    }

    fn found(program: &'static str, unit: Option<&str>) -> Found {
        Found {
            agents: vec![Incumbent { process: 5, program, unit: unit.map(str::to_owned) }],
            has_socket: true,
            provisions: [RED, BLUE].map(|network| (network.to_owned(), provision(network))).into(),
        }
    }

    fn ports(unserved: &[(&str, &str)]) -> Ports {
        let unserved = unserved.iter().map(|(port, reason)| ((*port).to_owned(), (*reason).to_owned()));
        Ports { networks: [RED.to_owned()].into(), unserved: unserved.collect() }
    }

    #[test]
    fn the_other_agent_stops_before_its_things_go_and_only_those_of_networks_that_are_served_do() {
        let found = found("neutron-ovn-metadata-agent", Some("neutron-ovn-metadata-agent.service"));
        let plan = forward(&found, &ports(&[]), &Commands::default());
        let stop = "systemctl disable --now neutron-ovn-metadata-agent.service".to_owned();
        let confirm = Step::Confirm { networks: [RED.to_owned()].into(), unserved: BTreeSet::new() };
        assert_eq!(plan.steps, [Step::Stop { command: stop }, confirm, Step::Remove(provision(RED))]);
        assert_eq!((plan.problems.len(), plan.doubts.len()), (0, 0));
        assert!(plan.left[0].contains(BLUE), "{:?}", plan.left);
        assert_eq!(plan.undo.as_deref(), Some("systemctl enable --now neutron-ovn-metadata-agent.service"));
    }

    #[test]
    fn who_is_not_served_by_us_keeps_the_other_agent_unless_its_port_is_all_that_keeps_us_from_it() {
        let found = found("neutron-ovn-metadata-agent", Some("x.service"));
        let blocked = "another agent's interface, tap1d6a1b2e-50, is bound to its network's metadata port";
        let metadata_port = ("metadata", "its row has not come yet");
        let plan = forward(&found, &ports(&[("p", blocked), metadata_port]), &Commands::default());
        let kinds: Vec<_> = plan.steps.iter().map(|step| step.to_string()[..7].to_owned()).collect();
        assert_eq!(kinds, ["release", "wait un", "stop th", "ask thi", "remove ", "remove "]);
        assert_eq!((plan.problems.len(), plan.left.len()), (0, 0));
        let plan = forward(&found, &ports(&[("p", "no device_id")]), &Commands::default());
        assert_eq!(plan.doubts, ["port p is not served by this agent: no device_id"]);
    }

    #[test]
    fn what_cannot_be_stopped_by_us_is_told() {
        let problem = |program, unit| {
            let plan = forward(&found(program, unit), &ports(&[]), &Commands::default());
            plan.problems.concat()
        };
        assert!(problem("neutron-ovn-agent", Some("x.service")).contains("[agent] extensions"));
        assert!(problem("neutron-ovn-metadata-agent", None).contains("--stop"));
        let commands = Commands { stop: Some("stop it".into()), start: Some("start it".into()) };
        let plan = forward(&found("neutron-ovn-agent", None), &ports(&[]), &commands);
        assert!(plan.problems.is_empty() && plan.steps[0] == Step::Stop { command: "stop it".into() });
        // Without the extension it serves nothing, unless its socket has another name.
        let idle = Found { has_socket: false, ..found("neutron-ovn-agent", None) };
        let plan = forward(&idle, &ports(&[]), &Commands::default());
        assert!(matches!(plan.steps[..], [Step::Confirm { .. }, Step::Remove(_)]), "{:?}", plan.steps);
        assert!(plan.doubts[0].contains("not seen to run"), "{:?}", plan.doubts);
    }

    #[test]
    fn an_agent_that_is_out_of_sight_is_not_taken_for_none() {
        let unseen = |has_socket| Found {
            agents: Vec::new(),
            has_socket,
            ..found("neutron-ovn-metadata-agent", None)
        };
        let plan = forward(&unseen(true), &ports(&[]), &Commands::default());
        assert!(plan.problems[0].contains("in the host's process namespace"), "{:?}", plan.problems);
        let plan = forward(&unseen(false), &ports(&[]), &Commands::default());
        assert!(plan.doubts[0].contains(&format!("(ovnmeta-{RED})")), "{:?}", plan.doubts);
        let commands = Commands { stop: Some("stop it".into()), start: Some("start it".into()) };
        for has_socket in [true, false] {
            let plan = forward(&unseen(has_socket), &ports(&[]), &commands);
            assert_eq!((plan.problems.len(), plan.doubts.len()), (0, 0));
            assert_eq!(plan.steps[0], Step::Stop { command: "stop it".into() });
        }
        // Nothing of it is to be removed.
        let nothing = Found::default();
        assert_eq!(forward(&nothing, &ports(&[]), &commands), Plan::default());
    }

    #[test]
    fn strangers_are_not_killed() {
        let mut found = found("neutron-ovn-metadata-agent", Some("x.service"));
        found.provisions.get_mut(RED).unwrap().strangers.push((9, "dnsmasq".into()));
        let problems = forward(&found, &ports(&[]), &Commands::default()).problems;
        assert!(problems[0].contains("process 9 (dnsmasq)"), "{problems:?}");
    }

    #[test]
    fn we_leave_when_the_other_one_serves() {
        let networks: BTreeSet<_> = [RED.to_owned()].into();
        let plan = back(&Found::default(), &ports(&[]), &Commands::default(), true);
        let start = "systemctl enable --now neutron-ovn-metadata-agent.service".to_owned();
        assert_eq!(plan.steps, [Step::Start { command: start }, Step::AwaitOther { networks }, Step::Leave]);
        assert_eq!(back(&Found::default(), &ports(&[]), &Commands::default(), false).problems.len(), 1);
    }
}
