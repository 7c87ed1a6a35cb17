//! Tally of one port's requests in the guest-facing process: how many there were and what became of the last ones.
use std::{
    borrow::Cow,
    collections::VecDeque,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::usage::Limit;

/// Number of the last requests that are kept of each port.
pub const RECENT: usize = 8;

/// Longest reason that is kept of a request, in characters. A tenant may have chosen what is in it.
pub const LONGEST_REASON: usize = 200;

/// One request and what became of it, without anything that could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Address that the guest asked from, if it was still known.
    pub source: Option<IpAddr>,
    /// Method, `other` for one that is made up, and nothing if what came was no request.
    pub method: Option<Cow<'static, str>>,
    /// Class of the path.
    pub path: Option<Cow<'static, str>>,
    /// Status that the guest was answered.
    pub status: Option<u16>,
    /// True if the answer was Nova's.
    pub by_nova: bool,
    /// Bytes of the body that the guest got.
    pub bytes: u64,
    /// Time of all of it, in microseconds.
    pub us: u64,
    /// Time until Nova's answer began, in microseconds.
    pub nova_us: Option<u64>,
    /// Name of the refusal, as in the metric of refusals.
    pub refusal: Option<Cow<'static, str>>,
    /// Reason for which the guest did not get the whole answer that it asked for.
    pub reason: Option<String>,
}

/// Sums over a port's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Those of them that the agent refused.
    pub refused: u64,
    /// Bytes of bodies that the guest got.
    pub bytes: u64,
    /// Time until Nova's answers began, in microseconds.
    pub nova_us: u64,
    /// Requests and connections beyond a limit.
    pub limited: u64,
}

/// The tally of one assignment of a port.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    totals: Totals,
    limited: Option<(Instant, Limit)>,
    recent: VecDeque<(Instant, Record)>,
}

/// Report of a tally at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TallyReport {
    /// Sums since this process knows the port.
    pub totals: Totals,
    /// Name of the limit that was met last, and milliseconds since then.
    pub limited: Option<(Cow<'static, str>, u64)>,
    /// The last requests, the last one first, each with the milliseconds since it ended.
    pub recent: Vec<(u64, Record)>,
}

impl Tally {
    /// Notes a request that has ended.
    pub(crate) fn note(&self, record: Record, limit: Option<Limit>, now: Instant) {
        let mut entries = self.entries();
        let totals = &mut entries.totals;
        totals.requests += 1;
        totals.refused += u64::from(record.refusal.is_some());
        totals.bytes += record.bytes;
        totals.nova_us += record.nova_us.unwrap_or_default();
        if let Some(limit) = limit {
            totals.limited += 1;
            entries.limited = Some((now, limit));
        }
        if entries.recent.len() == RECENT {
            entries.recent.pop_front();
        }
        entries.recent.push_back((now, record));
    }

    /// Notes a connection that met a limit.
    pub(crate) fn note_limited(&self, limit: Limit, now: Instant) {
        let mut entries = self.entries();
        entries.totals.limited += 1;
        entries.limited = Some((now, limit));
    }

    /// The sums.
    pub fn totals(&self) -> Totals {
        self.entries().totals
    }

    /// All of it.
    pub fn report(&self, now: Instant) -> TallyReport {
        let ms = |since: Instant| milliseconds(now.saturating_duration_since(since));
        let entries = self.entries();
        TallyReport {
            totals: entries.totals,
            limited: entries.limited.map(|(since, limit)| (limit.name().into(), ms(since))),
            recent: entries.recent.iter().rev().map(|(since, record)| (ms(*since), record.clone())).collect(),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: u16, refusal: Option<&'static str>) -> Record {
        Record {
            source: None,
            method: Some("GET".into()),
            path: Some("/".into()),
            status: Some(status),
            by_nova: refusal.is_none(),
            bytes: 10,
            us: 100,
            nova_us: refusal.is_none().then_some(50),
            refusal: refusal.map(Into::into),
            reason: None,
        }
    }

    #[test]
    fn sums_are_of_all_and_records_of_the_last() {
        let (tally, now) = (Tally::default(), Instant::now());
        for status in 200..220 {
            tally.note(record(status, None), None, now);
        }
        tally.note(record(503, Some("request_rate")), Some(Limit::RequestRate), now);
        tally.note_limited(Limit::PortConnections, now);
        let report = tally.report(now + Duration::from_secs(2));
        let totals = Totals { requests: 21, refused: 1, bytes: 210, nova_us: 1000, limited: 2 };
        assert_eq!(report.totals, totals);
        assert_eq!(report.limited, Some(("port_connections".into(), 2000)));
        let statuses: Vec<_> = report.recent.iter().map(|(_, record)| record.status.unwrap()).collect();
        assert_eq!(statuses, [503, 219, 218, 217, 216, 215, 214, 213]);
    }
}
