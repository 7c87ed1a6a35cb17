//! Questions about ports that wait for the guest-facing process' answers, and what of an answer is believed: its shape and
//! length, and that it is about what was asked.
use std::{borrow::Cow, collections::BTreeMap};

use tokio::sync::oneshot;

use super::printable;
use crate::{
    directory::{RECENT, Record},
    link::{Inquiry, MOST_PORTS, MOST_SEEN, MOST_TALLIES, PortReport, ProbeReport, Seen, Told},
};

/// Longest name of a method, a path's class, a refusal or a limit.
const NAME: usize = 40;
/// Longest reason.
const REASON: usize = 300;

/// Questions that are not answered.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    last: u64,
    waiting: BTreeMap<u64, (Inquiry, oneshot::Sender<Told>)>,
}

impl Inquiries {
    /// The number under which a question is to be asked.
    pub(super) fn ask(&mut self, inquiry: Inquiry, answer: oneshot::Sender<Told>) -> u64 {
        // Whoever has waited for too long is gone.
        self.waiting.retain(|_, (_, answer)| !answer.is_closed());
        self.last += 1;
        self.waiting.insert(self.last, (inquiry, answer));
        self.last
    }

    /// Passes an answer on to whoever asked. One that nobody waits for is late, or made up.
    pub(super) fn answer(&mut self, id: u64, told: Told) {
        if let Some((inquiry, answer)) = self.waiting.remove(&id)
            && let Some(told) = checked(&inquiry, told)
        {
            let _ = answer.send(told);
        }
    }
}

/// An answer to that question, as far as it can be one.
fn checked(inquiry: &Inquiry, told: Told) -> Option<Told> {
    match (inquiry, told) {
        (Inquiry::Ports(asked), Told::Ports(mut ports)) => {
            ports.retain(|report| asked.contains(&report.port));
            Some(Told::Ports(cleaned(ports)))
        }
        (Inquiry::Troubled(_), Told::Ports(ports)) => Some(Told::Ports(cleaned(ports))),
        (Inquiry::Tallies { after }, Told::Tallies(mut tallies)) => {
            tallies.retain(|tally| after.is_none_or(|after| tally.port.index > after));
            tallies.truncate(MOST_TALLIES);
            Some(Told::Tallies(tallies))
        }
        (Inquiry::Probe(_), Told::Probe(report)) => Some(Told::Probe(ProbeReport {
            refusal: report.refusal.map(|name| printable(&name, NAME)),
            reason: report.reason.map(|reason| printable(&reason, REASON)),
            ..report
        })),
        _ => None,
    }
}

fn cleaned(ports: Vec<PortReport>) -> Vec<PortReport> {
    let clean = |mut report: PortReport| {
        let tally = &mut report.tally;
        tally.limited = tally.limited.take().map(|(name, since)| (name_of(name), since));
        tally.recent.truncate(RECENT);
        for (_, record) in &mut tally.recent {
            clean_record(record);
        }
        report
    };
    ports.into_iter().take(MOST_PORTS).map(clean).collect()
}

/// Requests that are watched, as far as they can be some.
pub(super) fn clean_seen(mut seen: Seen) -> Seen {
    seen.requests.truncate(MOST_SEEN);
    for request in &mut seen.requests {
        request.port = printable(&request.port, REASON);
        request.tap = printable(&request.tap, NAME);
        clean_record(&mut request.record);
    }
    seen
}

/// Makes the texts of a record such as can be shown.
fn clean_record(record: &mut Record) {
    record.method = record.method.take().map(name_of);
    record.path = record.path.take().map(name_of);
    record.refusal = record.refusal.take().map(name_of);
    record.reason = record.reason.take().map(|reason| printable(&reason, REASON));
}

fn name_of(name: Cow<'static, str>) -> Cow<'static, str> {
    printable(&name, NAME).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{directory::TallyReport, link::PortNumber};

    fn report(index: u32) -> PortReport {
        let hostile = "\u{1b}[2J".repeat(100);
        let record = Record {
            source: None,
            method: Some(hostile.clone().into()),
            path: Some(hostile.clone().into()),
            status: Some(200),
            by_nova: true,
            bytes: u64::MAX,
            us: 0,
            nova_us: None,
            refusal: Some(hostile.clone().into()),
            reason: Some(hostile.clone() + "\n"),
        };
        let tally = TallyReport {
            limited: Some((hostile.into(), 0)),
            recent: vec![(0, record); 100],
            ..TallyReport::default()
        };
        let port = PortNumber { index, generation: 1 };
        PortReport { port, connections: 0, requests: 0, held: 0, tally }
    }

    #[test]
    fn an_answer_is_bounded_and_about_what_was_asked() {
        let asked = Inquiry::Ports(vec![PortNumber { index: 7, generation: 1 }]);
        let told = Told::Ports((0..100).map(report).collect());
        let Some(Told::Ports(ports)) = checked(&asked, told) else { panic!("no answer") };
        assert_eq!(ports.len(), 1);
        assert_eq!((ports[0].port.index, ports[0].tally.recent.len()), (7, RECENT));
        let text = format!("{ports:?}");
        assert!(!text.contains("\\u{1b}") && !text.contains("\\n") && text.len() < 8192, "{text}");
        let told = Told::Ports((0..100).map(report).collect());
        let Some(Told::Ports(ports)) = checked(&Inquiry::Troubled(1), told) else { panic!("no answer") };
        assert_eq!(ports.len(), MOST_PORTS);
        let probe = Told::Probe(ProbeReport { status: None, us: 0, refusal: None, reason: None });
        assert_eq!(checked(&asked, probe), None);
    }

    #[test]
    fn who_waits_no_more_is_forgotten() {
        let mut inquiries = Inquiries::default();
        for _ in 0..10 {
            let (answer, _) = oneshot::channel();
            inquiries.ask(Inquiry::Troubled(0), answer);
        }
        assert_eq!(inquiries.waiting.len(), 1);
        inquiries.answer(77, Told::Ports(Vec::new()));
    }
}
