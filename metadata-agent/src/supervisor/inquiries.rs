//! Questions about ports that wait for the guest-facing process' answers, and what of an answer is believed: its shape and
//! length, and that it is about what was asked.
use std::{borrow::Cow, collections::BTreeMap};

use metadata_ebpf::address::MAX_PORTS;
use tokio::sync::oneshot;

use super::printable;
use crate::{
    directory::{LONGEST_REASON, RECENT, Record},
    link::{Inquiry, MOST_PORTS, MOST_SEEN, MOST_TALLIES, PortReport, ProbeReport, Seen, Told},
};

/// Longest name of a method, a path's class, a refusal or a limit.
const NAME: usize = 40;

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
        (Inquiry::Ports(asked), Told::Ports { mut reports, left_off }) => {
            reports.retain(|report| asked.contains(&report.port));
            Some(Told::Ports { reports: cleaned(reports), left_off })
        }
        (Inquiry::Troubled(_), Told::Ports { reports, left_off }) => {
            Some(Told::Ports { reports: cleaned(reports), left_off: left_off.min(MAX_PORTS) })
        }
        (Inquiry::Tallies { after }, Told::Tallies(mut tallies)) => {
            // Indexes that there are, or it could be asked for more without end.
            let next = after.map_or(0, |after| after.saturating_add(1));
            tallies.retain(|tally| (next..MAX_PORTS).contains(&tally.port.index));
            tallies.truncate(MOST_TALLIES);
            Some(Told::Tallies(tallies))
        }
        (Inquiry::Probe(_), Told::Probe(report)) => Some(Told::Probe(ProbeReport {
            refusal: report.refusal.map(|name| printable(&name, NAME)),
            reason: report.reason.map(|reason| printable(&reason, LONGEST_REASON)),
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
        request.port = printable(&request.port, LONGEST_REASON);
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
    record.reason = record.reason.take().map(|reason| printable(&reason, LONGEST_REASON));
}

fn name_of(name: Cow<'static, str>) -> Cow<'static, str> {
    printable(&name, NAME).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::{TallyReport, Totals},
        link::{PortNumber, PortTally},
    };

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
        let told = || Told::Ports { reports: (0..100).map(report).collect(), left_off: u32::MAX };
        let Some(Told::Ports { reports: ports, .. }) = checked(&asked, told()) else { panic!("no answer") };
        assert_eq!(ports.len(), 1);
        assert_eq!((ports[0].port.index, ports[0].tally.recent.len()), (7, RECENT));
        let text = format!("{ports:?}");
        assert!(!text.contains("\\u{1b}") && !text.contains("\\n") && text.len() < 8192, "{text}");
        let answer = checked(&Inquiry::Troubled(1), told());
        let Some(Told::Ports { reports, left_off }) = answer else { panic!("no answer") };
        assert_eq!((reports.len(), left_off), (MOST_PORTS, MAX_PORTS));
        let made_up = [6, 7, MAX_PORTS - 1, MAX_PORTS, u32::MAX].map(|index| PortTally {
            port: PortNumber { index, generation: 1 },
            connections: 0,
            totals: Totals::default(),
        });
        let answer = checked(&Inquiry::Tallies { after: Some(6) }, Told::Tallies(made_up.to_vec()));
        let Some(Told::Tallies(tallies)) = answer else { panic!("no answer") };
        let indexes: Vec<_> = tallies.iter().map(|tally| tally.port.index).collect();
        assert_eq!(indexes, [7, MAX_PORTS - 1]);
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
        inquiries.answer(77, Told::Ports { reports: Vec::new(), left_off: 0 });
    }
}
