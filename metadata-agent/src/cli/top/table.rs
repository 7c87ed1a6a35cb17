//! Numbers of the ports at two moments: rates, order and filter. Pure.
use std::{cmp::Reverse, collections::HashMap, time::Instant};

use clap::ValueEnum;
use serde_json::Value;

use super::super::show::printable;

/// Column to sort the ports by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Column {
    /// Name of the tap.
    Tap,
    /// Open connections.
    Connections,
    /// Requests in a second.
    Rate,
    /// Requests.
    Requests,
    /// Requests that the agent refused.
    Refused,
    /// Bytes of answers.
    Bytes,
    /// Time in Nova.
    Nova,
    /// Frames that were dropped.
    Dropped,
}

impl Column {
    pub(super) const ALL: [Self; 8] = [
        Self::Tap,
        Self::Connections,
        Self::Rate,
        Self::Requests,
        Self::Refused,
        Self::Bytes,
        Self::Nova,
        Self::Dropped,
    ];

    /// The one to the right.
    pub(super) fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    /// The one to the left.
    pub(super) fn previous(self) -> Self {
        Self::ALL[(self as usize + Self::ALL.len() - 1) % Self::ALL.len()]
    }
}

/// Numbers of one port, or of all.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Row {
    pub(super) port: String,
    pub(super) tap: String,
    pub(super) instance: String,
    pub(super) connections: u64,
    /// Requests in a second, since the last look.
    pub(super) rate: f64,
    pub(super) requests: u64,
    pub(super) refused: u64,
    pub(super) bytes: u64,
    /// Microseconds in Nova.
    pub(super) nova_us: u64,
    pub(super) dropped: u64,
}

/// All that is shown.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) sort: Column,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
    pub(super) is_typing: bool,
    /// Lines that are scrolled over.
    pub(super) offset: usize,
    /// Troubles of the node, or the reason for which its numbers are those of before.
    pub(super) trouble: Vec<String>,
    pub(super) unserved: u64,
    rows: Vec<Row>,
    at: Option<Instant>,
}

impl Table {
    pub(super) fn new(sort: Column, filter: String) -> Self {
        Self {
            sort,
            is_reversed: false,
            filter,
            is_typing: false,
            offset: 0,
            trouble: Vec::new(),
            unserved: 0,
            rows: Vec::new(),
            at: None,
        }
    }

    /// Takes the agent's numbers.
    pub(super) fn take(&mut self, told: &Value, now: Instant) {
        let text = |value: &Value| printable(value.as_str().unwrap_or_default());
        let before: HashMap<&str, u64> =
            self.rows.iter().map(|row| (row.port.as_str(), row.requests)).collect();
        let seconds = self.at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        let row = |port: &Value| {
            let number = |field: &str| port[field].as_u64().unwrap_or_default();
            let id = text(&port["port"]);
            let requests = number("requests");
            // A new guest-facing process begins with nothing.
            let since = before.get(id.as_str()).map_or(0, |before| requests.saturating_sub(*before));
            Row {
                rate: seconds.filter(|seconds| *seconds > 0.0).map_or(0.0, |seconds| since as f64 / seconds),
                port: id,
                tap: text(&port["tap"]),
                instance: text(&port["instance"]),
                connections: number("connections"),
                requests,
                refused: number("refused"),
                bytes: number("bytes"),
                nova_us: number("nova_us"),
                dropped: number("dropped"),
            }
        };
        let rows = told["ports"].as_array().into_iter().flatten().map(row).collect();
        (self.rows, self.at) = (rows, Some(now));
        self.unserved = told["unserved"].as_u64().unwrap_or_default();
        self.trouble = told["missing"].as_array().into_iter().flatten().map(text).collect();
        if told["complete"] == false {
            self.trouble
                .push("the process that guests talk to does not answer: requests are not known".to_owned());
        }
    }

    /// Notes that there were no numbers.
    pub(super) fn lose(&mut self, why: String) {
        self.trouble = vec![why];
    }

    /// The ports that are not filtered out, in their order.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let has =
            |row: &&Row| [&row.tap, &row.port, &row.instance].iter().any(|text| text.contains(&self.filter));
        let mut rows: Vec<&Row> = self.rows.iter().filter(has).collect();
        rows.sort_by(|one, other| one.tap.cmp(&other.tap));
        let by = |value: fn(&Row) -> u64| move |row: &&Row| Reverse(value(row));
        match self.sort {
            Column::Tap => {}
            Column::Connections => rows.sort_by_key(by(|row| row.connections)),
            Column::Rate => rows.sort_by(|one, other| other.rate.total_cmp(&one.rate)),
            Column::Requests => rows.sort_by_key(by(|row| row.requests)),
            Column::Refused => rows.sort_by_key(by(|row| row.refused)),
            Column::Bytes => rows.sort_by_key(by(|row| row.bytes)),
            Column::Nova => rows.sort_by_key(by(|row| row.nova_us)),
            Column::Dropped => rows.sort_by_key(by(|row| row.dropped)),
        }
        if self.is_reversed {
            rows.reverse();
        }
        rows
    }

    /// Sums over all ports, whether they are shown or not.
    pub(super) fn total(&self) -> Row {
        self.rows.iter().fold(Row::default(), |sum, row| Row {
            connections: sum.connections.saturating_add(row.connections),
            rate: sum.rate + row.rate,
            requests: sum.requests.saturating_add(row.requests),
            refused: sum.refused.saturating_add(row.refused),
            bytes: sum.bytes.saturating_add(row.bytes),
            nova_us: sum.nova_us.saturating_add(row.nova_us),
            dropped: sum.dropped.saturating_add(row.dropped),
            ..sum
        })
    }

    /// Number of ports that are served.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn told(requests: [u64; 2]) -> Value {
        json!({ "missing": [], "unserved": 1, "complete": true, "ports": [
            { "port": "a", "tap": "tap0", "instance": "i\u{1b}0", "requests": requests[0], "bytes": 10 },
            { "port": "b", "tap": "tap1", "instance": null, "requests": requests[1], "bytes": 7 },
        ]})
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let (mut table, now) = (Table::new(Column::Requests, String::new()), Instant::now());
        table.take(&told([10, 3]), now);
        assert_eq!(table.total().rate, 0.0);
        table.take(&told([10, 23]), now + Duration::from_secs(4));
        let rows: Vec<_> = table.rows().iter().map(|row| (row.tap.as_str(), row.rate)).collect();
        assert_eq!(rows, [("tap1", 5.0), ("tap0", 0.0)]);
        // Another process counts from the beginning.
        table.take(&told([1, 0]), now + Duration::from_secs(8));
        assert_eq!(table.total().rate, 0.0);
        assert_eq!((table.total().requests, table.total().bytes, table.unserved), (1, 17, 1));
    }

    #[test]
    fn ports_are_sorted_and_filtered() {
        let mut table = Table::new(Column::Bytes, String::new());
        table.take(&told([1, 2]), Instant::now());
        let taps = |table: &Table| table.rows().iter().map(|row| row.tap.clone()).collect::<Vec<_>>();
        assert_eq!(taps(&table), ["tap0", "tap1"]);
        table.sort = Column::Requests;
        assert_eq!(taps(&table), ["tap1", "tap0"]);
        table.is_reversed = true;
        assert_eq!(taps(&table), ["tap0", "tap1"]);
        table.filter = "i0".to_owned();
        assert_eq!(taps(&table), ["tap0"], "by its instance, without what a terminal would obey");
        let round = (0..Column::ALL.len()).fold(Column::Nova, |column, _| column.next());
        assert_eq!((round, Column::Nova.next().previous()), (Column::Nova, Column::Nova));
    }
}
