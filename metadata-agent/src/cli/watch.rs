//! `watch`: requests and dropped frames as they happen.
use std::io::{BufRead as _, BufReader, Write as _};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::{
    agent_place::AgentPlace,
    show::{self, printable},
};
use crate::admin;

/// Filter of the requests, and where the agent is.
#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Of one tap or port only.
    #[arg(long, value_name = "WHAT")]
    port: Option<String>,
    /// Requests with this status only: 404, or 5xx.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only what was refused, cut off or dropped for a reason with these words, or that outcome.
    #[arg(long, value_name = "WORDS")]
    reason: Option<String>,
    /// A line of JSON for each, for programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: AgentPlace,
}

impl Watch {
    /// Prints what happens until the agent ends, or whoever reads has had enough.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let run_dir = self.place.run_dir()?;
        let path = run_dir.join(admin::SOCKET);
        let mut socket = show::connect(&run_dir)
            .with_context(|| format!("no agent answers at {}: is it running?", path.display()))?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(port) = &self.port {
            query.append_pair("port", port);
        }
        write!(socket, "GET /watch?{} HTTP/1.0\r\n\r\n", query.finish())?;
        let mut lines = BufReader::new(socket).lines();
        let head = lines.next().context("the agent broke off")??;
        let is_ok = head.split(' ').nth(1) == Some("200");
        for line in lines.by_ref() {
            if line?.is_empty() {
                break;
            }
        }
        if !is_ok {
            let why: Vec<String> = lines.collect::<Result<_, _>>()?;
            bail!("the agent says: {}", why.join(" "));
        }
        let mut out = std::io::stdout();
        for line in lines {
            let line = line?;
            let event: Value = serde_json::from_str(&line).context("the agent tells what is no event")?;
            if !self.is_wanted(&event) {
                continue;
            }
            let text = if self.json { line } else { text(&event) };
            match writeln!(out, "{text}").and_then(|()| out.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
        ensure!(self.json, "the agent has ended, or another one has taken over: watch again");
        Ok(())
    }

    /// Events that are lost are told to everybody.
    fn is_wanted(&self, event: &Value) -> bool {
        if event["kind"] == "lost" {
            return true;
        }
        let has_status = |wanted: &str| {
            let status = event["status"].as_u64().map(|status| status.to_string()).unwrap_or_default();
            match wanted.strip_suffix("xx") {
                Some(class) => status.len() == 3 && status.starts_with(class),
                None => status == wanted,
            }
        };
        let has_reason = |wanted: &str| {
            let texts =
                ["refusal", "reason", "outcome"].map(|field| event[field].as_str().unwrap_or_default());
            texts.iter().any(|text| text.contains(wanted))
        };
        self.status.as_deref().is_none_or(has_status) && self.reason.as_deref().is_none_or(has_reason)
    }
}

/// An event for people.
fn text(event: &Value) -> String {
    let word = |field: &str| event[field].as_str().map(printable);
    let or_dash = |field: &str| word(field).unwrap_or_else(|| "-".to_owned());
    let time = time_of_day(event["time"].as_f64().unwrap_or_default());
    match event["kind"].as_str() {
        Some("request") => {
            let status =
                event["status"].as_u64().map_or_else(|| "---".to_owned(), |status| status.to_string());
            let nova = event["nova_ms"].as_f64().map(|ms| format!(", nova {ms:.1} ms")).unwrap_or_default();
            let reason = word("reason").map(|reason| format!(": {reason}")).unwrap_or_default();
            format!(
                "{time} {} {} {} {} {status} by {} {} B in {:.1} ms{nova}{reason}",
                or_dash("tap"),
                or_dash("source"),
                or_dash("method"),
                or_dash("path"),
                or_dash("by"),
                event["bytes"],
                event["ms"].as_f64().unwrap_or_default(),
            )
        }
        Some("drop") => {
            let left_out = event["left_out"].as_u64().filter(|left_out| *left_out > 0);
            let left_out = left_out.map(|left_out| format!(" ({left_out} frames were left out before)"));
            format!(
                "{time} {} dropped, {}: {}{}",
                or_dash("tap"),
                or_dash("outcome"),
                or_dash("frame"),
                left_out.unwrap_or_default()
            )
        }
        _ => format!("... {} events were lost: this reader is too slow", event["events"]),
    }
}

/// Hours, minutes and seconds of a time since 1970 (UTC).
fn time_of_day(seconds: f64) -> String {
    let ms = (seconds * 1e3) as u64;
    let (s, ms) = (ms / 1000 % 86_400, ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watch(status: Option<&str>, reason: Option<&str>) -> Watch {
        Watch {
            port: None,
            status: status.map(str::to_owned),
            reason: reason.map(str::to_owned),
            json: false,
            place: AgentPlace::default(),
        }
    }

    #[test]
    fn events_are_told_in_a_line_and_filtered() {
        let request = json!({
            "kind": "request", "time": 3723.5, "tap": "tap0", "port": "p", "source": "10.0.0.5", "method": "GET",
            "path": "meta-data", "status": 502, "by": "agent", "bytes": 70, "ms": 12.34, "nova_ms": 2.0,
            "refusal": "nova_unreachable", "reason": "nova\u{1b}[2J_unreachable",
        });
        assert_eq!(
            text(&request),
            "01:02:03.500 tap0 10.0.0.5 GET meta-data 502 by agent 70 B in 12.3 ms, nova 2.0 ms: nova[2J_unreachable"
        );
        let drop = json!({
            "kind": "drop", "time": 0.0, "tap": "tap0", "outcome": "fragment", "frame": "10.0.0.5 > x", "left_out": 3,
        });
        assert_eq!(
            text(&drop),
            "00:00:00.000 tap0 dropped, fragment: 10.0.0.5 > x (3 frames were left out before)"
        );
        let lost = json!({ "kind": "lost", "events": 7 });
        for (watch, expected) in [
            (watch(None, None), [true, true, true]),
            (watch(Some("5xx"), None), [true, false, true]),
            (watch(Some("404"), None), [false, false, true]),
            (watch(None, Some("nova_")), [true, false, true]),
            (watch(None, Some("fragment")), [false, true, true]),
        ] {
            assert_eq!([&request, &drop, &lost].map(|event| watch.is_wanted(event)), expected, "{watch:?}");
        }
    }
}
