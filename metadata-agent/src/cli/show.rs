//! `show`: what a running agent says of itself, as tables for people and as it is for programs.
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::agent_place::AgentPlace;
use crate::admin;

/// Timeout of a running agent's answer: it does nothing that lasts.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// Subject, and where the agent is.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Subject to show.
    subject: Subject,
    /// As the agent says it, for programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: AgentPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Readiness to serve guests, and the reasons if there is none.
    Ready,
    /// The ports and who is behind each.
    Ports,
    /// Counters of the datapath.
    Counters,
    /// Everything that is counted, in Prometheus' text format.
    Metrics,
}

impl Show {
    /// Asks the agent, and prints what it says.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let run_dir = self.place.run_dir()?;
        let target = match self.subject {
            Subject::Ready => "/ready",
            Subject::Ports => "/ports",
            Subject::Counters => "/counters",
            Subject::Metrics => "/metrics",
        };
        let path = run_dir.join(admin::SOCKET);
        let socket = connect(&run_dir)
            .with_context(|| format!("no agent answers at {}: is it running?", path.display()))?;
        let answer = ask(socket, "GET", target);
        let (is_ok, body) = answer.with_context(|| {
            format!("the agent at {} is there and does not answer: is it stopped, or stuck?", path.display())
        })?;
        let text = match self.subject {
            _ if self.json || !is_ok => body,
            Subject::Ports => ports(&serde_json::from_str(&body)?),
            Subject::Counters => counters(&serde_json::from_str(&body)?),
            Subject::Ready | Subject::Metrics => body,
        };
        print(&text)?;
        if !is_ok {
            bail!("not ready");
        }
        Ok(())
    }
}

/// Text that a tenant may have chosen, such as can be shown on a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

/// Prints for someone who may have had enough.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Asks a running agent; tells whether the answer is a good one.
pub(super) fn ask(socket: UnixStream, method: &str, target: &str) -> anyhow::Result<(bool, String)> {
    ask_within(socket, method, target, ANSWER)
}

/// The same for an answer that takes its time.
pub(super) fn ask_within(
    mut socket: UnixStream,
    method: &str,
    target: &str,
    within: Duration,
) -> anyhow::Result<(bool, String)> {
    socket.set_read_timeout(Some(within))?;
    socket.set_write_timeout(Some(ANSWER))?;
    write!(socket, "{method} {target} HTTP/1.0\r\n\r\n")?;
    let mut response = String::new();
    socket.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("the agent broke off")?;
    Ok((head.split(' ').nth(1) == Some("200"), body.to_owned()))
}

/// The socket of the agent of that run directory.
pub(super) fn connect(run_dir: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(run_dir.join(admin::SOCKET))
}

/// A line for each port, those first that something is wrong with.
fn ports(ports: &Value) -> String {
    let text = |port: &Value, field: &str| port[field].as_str().unwrap_or_default().to_owned();
    let mut rows: Vec<_> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let (state, reason) = (text(port, "state"), text(port, "reason"));
            let is_well = state == "known" && reason.is_empty();
            let vlan = port["vlan"].as_u64().filter(|vlan| *vlan > 0);
            let tap = text(port, "tap") + &vlan.map(|vlan| format!(" VLAN {vlan}")).unwrap_or_default();
            let addresses = port["fixed_ips"].as_array().into_iter().flatten();
            let addresses: Vec<_> = addresses.filter_map(Value::as_str).collect();
            let row = [tap, text(port, "port"), text(port, "instance"), addresses.join(" "), state, reason];
            (is_well, row)
        })
        .collect();
    rows.sort();
    let served = rows.iter().filter(|(is_well, _)| *is_well).count();
    let total = rows.len();
    let rows = rows.into_iter().map(|(_, row)| row).collect();
    let table = table(["TAP", "PORT", "INSTANCE", "ADDRESSES", "STATE", "REASON"], rows);
    format!("{table}{served} of {total} ports are served as somebody\n")
}

/// Those that are not 0.
fn counters(counters: &Value) -> String {
    let all = counters.as_object().into_iter().flatten();
    let counted = all.filter(|(_, value)| value.as_u64() != Some(0));
    table(["COUNTER", "FRAMES"], counted.map(|(name, value)| [name.clone(), value.to_string()]).collect())
}

/// Columns as wide as what is in them; the last has no end.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let rows: Vec<_> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_comes_first_and_columns_fit() {
        let text = ports(&json!([
            { "tap": "tap1", "port": "p1", "vlan": 0, "state": "known", "reason": "", "instance": "i1", "fixed_ips": ["10.0.0.5", "fd00::5"] },
            { "tap": "tap22", "port": "p2", "vlan": 101, "state": "unknown", "reason": "the row is not there", "instance": null, "fixed_ips": [] },
            { "tap": "tap3", "port": "p3", "state": "unserved", "reason": "no row" },
        ]));
        let expected = "\
TAP             PORT  INSTANCE  ADDRESSES         STATE     REASON
tap22 VLAN 101  p2                                unknown   the row is not there
tap3            p3                                unserved  no row
tap1            p1    i1        10.0.0.5 fd00::5  known
1 of 3 ports are served as somebody
";
        assert_eq!(text, expected);
    }

    #[test]
    fn only_what_was_counted_is_shown() {
        assert_eq!(counters(&json!({ "redirected": 7, "passed": 0 })), "COUNTER     FRAMES\nredirected  7\n");
    }
}
