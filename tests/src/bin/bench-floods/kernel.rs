//! Places where the neighbour's segments can be lost: its limit, the processors' backlogs, the listener's queues, its tap.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::{Context as _, Result};
use metadata_tests::{guest::Guest, netns::Namespace};

/// Counts of each place.
#[derive(Debug, Default, Clone)]
pub(crate) struct Losses(BTreeMap<&'static str, u64>);

/// Statistics of the service's TCP that tell of a SYN which was not answered, or by a cookie.
const LISTENER: [&str; 4] = ["ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "TCPReqQFullDoCookies"];
const SERVICE_DEVICE: &str = "metadata0";

impl Losses {
    pub(crate) fn read(
        service: &Namespace,
        host: &Namespace,
        guest: &Guest,
        own: &BTreeMap<String, u64>,
    ) -> Result<Self> {
        let mut losses = BTreeMap::from([
            ("SYNs sent again", guest.netns.repeated_syns()?),
            ("dropped by its own limit", own.get("connections_limited").copied().unwrap_or(0)),
            ("backlog", backlog()?),
            ("its tap's queue", undelivered(host, &guest.port.tap)?),
            ("metadata0's queue", undelivered(host, SERVICE_DEVICE)?),
        ]);
        for name in LISTENER {
            losses.insert(name, service.tcp_extension(name)?);
        }
        Ok(Self(losses))
    }

    /// Adds what came between two readings.
    pub(crate) fn add(&mut self, before: &Self, after: &Self) {
        for (place, count) in &after.0 {
            *self.0.entry(place).or_default() += count - before.0.get(place).copied().unwrap_or(0);
        }
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost: Vec<_> = self
            .0
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(place, count)| format!("{place} {count}"))
            .collect();
        f.write_str(if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") }.as_str())
    }
}

/// Frames that the processors' queues had no room for, of all processors: the second of the hexadecimal columns.
fn backlog() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat")?;
    text.lines()
        .map(|line| {
            let dropped = line.split_whitespace().nth(1).context("softnet_stat is not as it was")?;
            Ok(u64::from_str_radix(dropped, 16)?)
        })
        .sum()
}

/// Frames towards a device that it did not take (`tx_dropped`).
fn undelivered(host: &Namespace, device: &str) -> Result<u64> {
    let text = host.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let dropped = line.and_then(|line| line.split_whitespace().nth(11));
    Ok(dropped.with_context(|| format!("no device {device}"))?.parse()?)
}
