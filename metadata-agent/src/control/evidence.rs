//! Facts for explanations, gathered from all parts of the agent, and the answer that is made of them.
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use futures_util::future::join_all;
use metadata_ebpf::map::Mac;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::debug;

use super::Control;
use crate::{
    admin::AdminAnswer,
    explain::{self, Evidence, Explanation, InterfaceSeen, NodeFacts, PortFacts, Stage},
    health::DataPlane,
    inventory::Who,
    link::{Inquiry, MOST_PORTS, PortNumber, PortReport, ProbeReport, Told},
};

/// Timeout of what the guest-facing process says of ports.
pub(super) const TELLING: Duration = Duration::from_secs(2);
/// Timeout of a request to Nova in a port's name.
const PROBING: Duration = Duration::from_secs(45);
/// Most ports that are explained at a time.
const MOST: usize = MOST_PORTS;

/// Subject that an operator wants to have explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// A tap, or the id of a port or an instance, or an address; nothing for all that is wrong.
    pub what: Option<String>,
    /// True if Nova is to be asked once in the port's name.
    pub probe: bool,
}

/// A port's facts, and its assignment if it is served.
type Gathered = (PortFacts, Option<PortNumber>);

impl Control {
    /// Explains, without waiting for the guest-facing process or for Nova.
    pub(super) fn explain(&mut self, subject: Subject, answer: oneshot::Sender<AdminAnswer>) {
        let (node, guests) = (self.node_facts(), self.guests.clone());
        let (ports, left_off) = match &subject.what {
            Some(what) => self.port_facts(what),
            None => (Vec::new(), 0),
        };
        let all = subject.what.is_none().then(|| self.all_facts());
        tokio::spawn(async move {
            let text = match all {
                Some(all) => explain_all(&node, all, &*guests).await,
                None => explain_some(&node, ports, left_off, subject.probe, &*guests).await,
            };
            // Whoever asked may be gone.
            let _ = answer.send(AdminAnswer::json(&text));
        });
    }

    fn node_facts(&self) -> NodeFacts {
        let of_agent = self.health.problems().into_iter().chain(self.guests.problem());
        // That of one port is told for that port.
        let problems = of_agent.filter(|problem| problem.subject != "programs").map(|problem| problem.text);
        NodeFacts {
            databases: self.source.databases_seen(),
            problems: problems.collect(),
            notes: self.guests.notes().into_iter().chain(self.health.note()).collect(),
            has_ipv6: self.service.has_ipv6(),
            nova: self.nova.problem().map(|problem| problem.text),
        }
    }

    /// The facts about the ports that a word may mean, and how many more there are.
    fn port_facts(&mut self, what: &str) -> (Vec<Gathered>, usize) {
        let address = what.parse::<IpAddr>().ok();
        let mut evidence = self.evidence();
        evidence.retain(|one| means(one, what, address));
        let ports: BTreeSet<String> = evidence.iter().map(|one| one.port.clone()).collect();
        let served = self.reconciler.seen(|port, device, who| {
            let is_of = match who {
                Who::Known(identity) => {
                    identity.instance == what
                        || address.is_some_and(|address| identity.fixed_ips.contains(&address))
                }
                Who::Pending(_) | Who::Conflict(_) => false,
            };
            port == what || device == what || is_of || ports.contains(port)
        });
        let mut gathered = self.gather(evidence, served);
        if gathered.is_empty() {
            let link = self.links.table().iter().find(|(_, name)| *name == what).map(|(index, _)| *index);
            // An id of Neutron's has dashes, and a device's name is shorter than that.
            let is_id = uuid::Uuid::try_parse(what).is_ok();
            let evidence =
                Evidence { port: if is_id { what.to_owned() } else { String::new() }, ..Evidence::default() };
            gathered
                .push((PortFacts { asked: what.to_owned(), evidence, link, ..PortFacts::default() }, None));
        }
        let left_off = gathered.len().saturating_sub(MOST);
        gathered.truncate(MOST);
        (gathered, left_off)
    }

    /// The facts about all ports.
    fn all_facts(&mut self) -> Vec<Gathered> {
        let evidence = self.evidence();
        let served = self.reconciler.seen(|_, _, _| true);
        self.gather(evidence, served)
    }

    /// Evidence of the sources for each port. A static inventory says what cannot be served, and no more.
    fn evidence(&self) -> Vec<Evidence> {
        let mut evidence = self.source.evidence();
        let known: BTreeSet<String> = evidence.iter().map(|one| one.port.clone()).collect();
        let others = self.unserved.iter().filter(|(port, _)| !known.contains(*port));
        evidence.extend(others.map(|(port, unserved)| {
            let name = unserved.interface.clone();
            let interface = InterfaceSeen { name, kind: String::new(), ifindex: None, instance: None };
            Evidence { port: port.clone(), interface: Some(interface), binding: None }
        }));
        evidence
    }

    fn gather(
        &self,
        evidence: Vec<Evidence>,
        served: Vec<(String, PortNumber, explain::ServedSeen)>,
    ) -> Vec<Gathered> {
        let mut rest: std::collections::BTreeMap<String, Evidence> =
            evidence.into_iter().map(|one| (one.port.clone(), one)).collect();
        let links = self.links.table();
        let index = |name: &str| links.iter().find(|(_, other)| *other == name).map(|(index, _)| *index);
        let mut gathered = Vec::new();
        for (port, number, seen) in served {
            let evidence = rest.remove(&port).unwrap_or_else(|| Evidence { port, ..Evidence::default() });
            let facts =
                PortFacts { evidence, link: Some(seen.ifindex), served: Some(seen), ..PortFacts::default() };
            gathered.push((facts, Some(number)));
        }
        for (port, evidence) in rest {
            let link = evidence.interface.as_ref().and_then(|interface| index(&interface.name));
            let unserved = self.unserved.get(&port).map(|unserved| unserved.reason.clone());
            gathered.push((PortFacts { evidence, link, unserved, ..PortFacts::default() }, None));
        }
        gathered
    }
}

/// True if a port may be meant by a word.
fn means(evidence: &Evidence, what: &str, address: Option<IpAddr>) -> bool {
    let interface = evidence.interface.as_ref();
    let binding = evidence.binding.as_ref();
    let mac = what.parse::<Mac>().ok();
    let has_address = |cidrs: &str| {
        let addresses =
            cidrs.split_whitespace().filter_map(|cidr| cidr.split('/').next()?.parse::<IpAddr>().ok());
        addresses.into_iter().any(|one| Some(one) == address)
    };
    evidence.port == what
        || interface
            .is_some_and(|interface| interface.name == what || interface.instance.as_deref() == Some(what))
        || binding.is_some_and(|row| {
            row.device_id.as_deref() == Some(what)
                || has_address(&row.cidrs)
                || mac.is_some_and(|mac| row.macs.contains(&mac))
        })
}

async fn explain_some(
    node: &NodeFacts,
    ports: Vec<Gathered>,
    left_off: usize,
    probe: bool,
    guests: &dyn DataPlane,
) -> Value {
    let numbers: Vec<PortNumber> = ports.iter().filter_map(|(_, number)| *number).collect();
    let (reports, _) = reports(Inquiry::Ports(numbers), guests).await;
    // Side by side: whoever asked does not wait for one after another that Nova does not answer.
    let explained = ports.into_iter().map(async |(mut facts, number)| {
        facts.report = reports.iter().find(|report| Some(report.port) == number).cloned();
        if let (true, Some(number)) = (probe, number) {
            facts.probe = Some(ask_nova(number, guests).await);
        }
        explain::explain(node, Some(&facts))
    });
    told(&join_all(explained).await, left_off)
}

/// The node, and every port that something is wrong with which is not the node's.
async fn explain_all(node: &NodeFacts, ports: Vec<Gathered>, guests: &dyn DataPlane) -> Value {
    let (reports, unreported) = reports(Inquiry::Troubled(explain::RECENT_MS), guests).await;
    let of_node = explain::explain(node, None);
    let known: Vec<Stage> = of_node
        .findings
        .iter()
        .filter(|finding| finding.state == explain::State::Failed)
        .map(|finding| finding.stage)
        .collect();
    let mut explanations = vec![of_node];
    for (mut facts, number) in ports {
        // What has a row here and is not plugged is nothing that is wrong.
        if number.is_none() && facts.unserved.is_none() {
            continue;
        }
        facts.report = reports.iter().find(|report| Some(report.port) == number).cloned();
        let mut explanation = explain::explain(node, Some(&facts));
        explanation
            .findings
            .retain(|finding| finding.stage != Stage::Agent && !known.contains(&finding.stage));
        if explanation.failure().is_some() {
            explanations.push(explanation);
        }
    }
    let left_off = explanations.len().saturating_sub(MOST) + unreported as usize;
    explanations.truncate(MOST);
    told(&explanations, left_off)
}

fn told(explanations: &[Explanation], left_off: usize) -> Value {
    let first = explanations.iter().filter_map(Explanation::failure).min_by_key(|failure| failure.stage);
    let status = first.map_or(0, |failure| failure.stage.status());
    let explained: Vec<Value> = explanations.iter().map(Explanation::to_json).collect();
    json!({ "status": status, "explained": explained, "left_off": left_off })
}

/// Reports of ports, and the number of those for which there was no room.
async fn reports(inquiry: Inquiry, guests: &dyn DataPlane) -> (Vec<PortReport>, u32) {
    match guests.inquire(inquiry, TELLING).await {
        Some(Told::Ports { reports, left_off }) => (reports, left_off),
        _ => {
            debug!("the guest-facing process says nothing of its ports");
            (Vec::new(), 0)
        }
    }
}

async fn ask_nova(number: PortNumber, guests: &dyn DataPlane) -> Result<ProbeReport, String> {
    match guests.inquire(Inquiry::Probe(number), PROBING).await {
        Some(Told::Probe(report)) => Ok(report),
        _ => Err(format!("the process that guests talk to said nothing within {} s", PROBING.as_secs())),
    }
}
