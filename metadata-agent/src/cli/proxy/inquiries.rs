//! Answers to an operator's questions about ports, as the other process passes them on.
use std::{sync::Arc, time::Instant};

use metadata_ebpf::address::Tag;

use crate::{
    directory::{Directory, Port},
    link::{Inquiry, MOST_PORTS, MOST_TALLIES, PortNumber, PortReport, PortTally, ProbeReport, Told},
    proxy::{self, Proxy},
};

/// The answer to a question.
pub(super) async fn answer(inquiry: Inquiry, directory: Arc<Directory>, proxy: Arc<Proxy>) -> Told {
    let known = |number: &PortNumber| directory.port(Tag::new(number.generation, number.index, 0));
    let now = Instant::now();
    match inquiry {
        Inquiry::Ports(ports) => {
            let ports = ports.iter().take(MOST_PORTS);
            Told::Ports(ports.filter_map(|number| Some(report(*number, &*known(number)?, now))).collect())
        }
        Inquiry::Troubled(within) => {
            let reports =
                directory.ports().into_iter().filter(|(_, port)| !port.is_probe).map(|(index, port)| {
                    report(PortNumber { index, generation: port.generation }, &port, now)
                });
            Told::Ports(reports.filter(|report| is_troubled(report, within)).take(MOST_PORTS).collect())
        }
        Inquiry::Tallies { after } => {
            let mut ports = directory.ports();
            ports.retain(|(index, port)| !port.is_probe && after.is_none_or(|after| *index > after));
            ports.sort_by_key(|(index, _)| *index);
            Told::Tallies(ports.iter().take(MOST_TALLIES).map(|(index, port)| tally(*index, port)).collect())
        }
        Inquiry::Probe(number) => Told::Probe(match known(&number) {
            Some(port) => proxy.ask(port).await,
            None => ProbeReport {
                status: None,
                us: 0,
                refusal: Some("unknown".to_owned()),
                reason: Some("the process that guests talk to does not know the port".to_owned()),
            },
        }),
    }
}

fn tally(index: u32, port: &Port) -> PortTally {
    let [connections, ..] = proxy::held(&port.tap);
    let port_number = PortNumber { index, generation: port.generation };
    PortTally { port: port_number, connections, totals: port.tally.totals() }
}

fn report(number: PortNumber, port: &Port, now: Instant) -> PortReport {
    let [connections, requests, held] = proxy::held(&port.tap);
    PortReport { port: number, connections, requests, held, tally: port.tally.report(now) }
}

/// Whether its last request was refused, or a limit was met, that many milliseconds ago at most.
fn is_troubled(report: &PortReport, within: u64) -> bool {
    let tally = &report.tally;
    let is_refused = tally.recent.first().is_some_and(|(since, record)| {
        *since <= within
            && (record.reason.is_some() || record.status.is_none_or(|status| status >= 500 || status == 403))
    });
    is_refused || tally.limited.as_ref().is_some_and(|(_, since)| *since <= within)
}
