//! Answers to an operator's questions about ports, as the other process passes them on.
use std::{sync::Arc, time::Instant};

use metadata_ebpf::address::Tag;

use crate::{
    directory::{Directory, Port},
    link::{Inquiry, MOST_PORTS, MOST_TALLIES, PortNumber, PortReport, PortTally, ProbeReport, Told},
    packets::LONGEST,
    proxy::{self, Proxy},
};

/// Bytes of an answer around its reports.
const AROUND: usize = 1024;

/// The answer to a question.
pub(super) async fn answer(inquiry: Inquiry, directory: Arc<Directory>, proxy: Arc<Proxy>) -> Told {
    let known = |number: &PortNumber| directory.port(Tag::new(number.generation, number.index, 0));
    let now = Instant::now();
    match inquiry {
        Inquiry::Ports(ports) => {
            let ports = ports.iter().take(MOST_PORTS);
            fitting(ports.filter_map(|number| Some(report(*number, &*known(number)?, now))).collect())
        }
        Inquiry::Troubled(within) => {
            let ports = directory.ports().into_iter().filter(|(_, port)| !port.is_probe);
            let mut troubled: Vec<_> = ports
                .map(|(index, port)| report(PortNumber { index, generation: port.generation }, &port, now))
                .filter_map(|report| Some((troubled_since(&report, within)?, report)))
                .collect();
            troubled.sort_by_key(|(since, _)| *since);
            fitting(troubled.into_iter().map(|(_, report)| report).collect())
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

/// As many of the reports as one answer has room for. An answer that is too long would not be sent at all.
fn fitting(mut reports: Vec<PortReport>) -> Told {
    let all = reports.len();
    reports.truncate(MOST_PORTS);
    let mut bytes = 0;
    let fitting = reports.iter().take_while(|report| {
        bytes += serde_json::to_vec(report).map_or(LONGEST, |text| text.len() + 1);
        bytes < LONGEST - AROUND
    });
    let fitting = fitting.count();
    reports.truncate(fitting);
    Told::Ports { left_off: u32::try_from(all - fitting).unwrap_or(u32::MAX), reports }
}

/// Milliseconds since its last request was refused or a limit was met, if those are not more than so many.
fn troubled_since(report: &PortReport, within: u64) -> Option<u64> {
    let tally = &report.tally;
    let refused = tally.recent.first().filter(|(_, record)| {
        record.reason.is_some() || record.status.is_none_or(|status| status >= 500 || status == 403)
    });
    let times =
        refused.map(|(since, _)| *since).into_iter().chain(tally.limited.as_ref().map(|(_, since)| *since));
    times.min().filter(|since| *since <= within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{LONGEST_REASON, RECENT, Record, TallyReport};

    /// A port whose records are as long as a tenant can make them.
    fn long(index: u32) -> PortReport {
        let record = Record {
            source: None,
            method: Some("OPTIONS".into()),
            path: Some("meta_data.json".into()),
            status: Some(503),
            by_nova: false,
            bytes: u64::MAX,
            us: u64::MAX,
            nova_us: Some(u64::MAX),
            refusal: Some("conflict".into()),
            reason: Some("\u{1}".repeat(LONGEST_REASON)),
        };
        let tally = TallyReport { recent: vec![(u64::MAX, record); RECENT], ..TallyReport::default() };
        let port = PortNumber { index, generation: 1 };
        PortReport { port, connections: 0, requests: 0, held: 0, tally }
    }

    #[test]
    fn an_answer_fits_into_a_packet_and_says_how_many_do_not() {
        let told = fitting((0..100).map(long).collect());
        let Told::Ports { reports, left_off } = &told else { panic!("no reports") };
        assert!(reports.len() > 5 && reports.len() < MOST_PORTS, "{}", reports.len());
        assert_eq!(reports.len() + *left_off as usize, 100);
        assert!(serde_json::to_vec(&told).unwrap().len() < LONGEST);
        let told = fitting(vec![PortReport { tally: TallyReport::default(), ..long(1) }; 3]);
        assert!(matches!(told, Told::Ports { reports, left_off: 0 } if reports.len() == 3));
    }

    #[test]
    fn the_last_trouble_counts_if_it_is_not_too_long_ago() {
        let mut report = long(1);
        report.tally.recent[0].0 = 500;
        assert_eq!(troubled_since(&report, 1000), Some(500));
        assert_eq!(troubled_since(&report, 400), None);
        report.tally.limited = Some(("port_requests".into(), 300));
        assert_eq!(troubled_since(&report, 400), Some(300));
        report.tally.recent[0].1.reason = None;
        report.tally.recent[0].1.status = Some(404);
        report.tally.limited = None;
        assert_eq!(troubled_since(&report, 1000), None);
    }
}
