//! `explain`: why guests get their answers or do not, stage by stage.
use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::{
    agent_place::AgentPlace,
    show::{self, ANSWER, ask_within, print, printable},
};
use crate::{admin, datapath::has_pins, explain::Stage};

/// Timeout of an answer for which Nova is asked: what the agent waits for, and some more.
const PROBING: Duration = Duration::from_secs(60);

/// Exit status where no agent answers.
const NO_AGENT: u8 = 9;

/// Subject, and where the agent is.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// A tap, or the id of a port or an instance, or a fixed or MAC address. Without it, all that is wrong.
    what: Option<String>,
    /// Send one request to Nova in the port's name, and tell what came of it.
    #[arg(long, requires = "what")]
    probe: bool,
    /// As the agent says it, for programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: AgentPlace,
}

impl Explain {
    /// Asks the agent, prints what it says, and returns the status of the first stage that fails.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let run_dir = self.place.run_dir()?;
        let path = run_dir.join(admin::SOCKET);
        let Ok(socket) = show::connect(&run_dir) else {
            eprintln!(
                "agent  failed  no agent answers at {}\n       start it (`systemctl start metadata-agent`), or name its run \
                 directory by --run-dir; in a container, that has to be shared with the host",
                path.display()
            );
            return Ok(ExitCode::from(NO_AGENT));
        };
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(what) = &self.what {
            query.append_pair("what", what);
        }
        if self.probe {
            query.append_pair("probe", "1");
        }
        let within = if self.probe { PROBING } else { ANSWER };
        let answer = ask_within(socket, "GET", &format!("/explain?{}", query.finish()), within);
        let (is_ok, body) = answer.with_context(|| {
            format!("the agent at {} is there and does not answer: is it stopped, or stuck?", path.display())
        })?;
        anyhow::ensure!(is_ok, "the agent says: {}", body.trim_end());
        let mut told: Value = serde_json::from_str(&body)?;
        if !has_pins(&run_dir) {
            note_unshared(&mut told, &run_dir);
        }
        print(&if self.json { format!("{told:#}\n") } else { text(&told) })?;
        let status = told["status"].as_u64().and_then(|status| u8::try_from(status).ok());
        Ok(ExitCode::from(status.context("the agent gives no status")?))
    }
}

/// An agent pins what it loads; where that is not seen from here, its mounts are its own.
fn note_unshared(told: &mut Value, run_dir: &Path) {
    let note = json!({
        "stage": Stage::Agent.name(),
        "state": "note",
        "seen": format!("its pins below {} are not seen from here: its mounts are not shared with the host", run_dir.display()),
        "age_ms": null,
        "remedy": "share the run directory and /run/netns with the host (mount propagation `shared`): else the next agent \
                   finds no pins, and guests' connections end with this one",
    });
    for one in told["explained"].as_array_mut().into_iter().flatten() {
        if let Some(stages) = one["stages"].as_array_mut() {
            stages.insert(0, note.clone());
        }
    }
}

/// Everything that is told, for people.
fn text(told: &Value) -> String {
    let explained = told["explained"].as_array().map_or(&[][..], Vec::as_slice);
    let mut out: String = explained.iter().map(explanation).collect();
    match told["left_off"].as_u64() {
        Some(left_off @ 1..) => out += &format!("and {left_off} more\n"),
        _ if explained.is_empty() => out += "nothing is wrong\n",
        _ => {}
    }
    out
}

fn explanation(one: &Value) -> String {
    // Neutron lets a tenant choose some of what is in there.
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let mut out = text(&one["subject"]) + "\n";
    for stage in one["stages"].as_array().into_iter().flatten() {
        let age = stage["age_ms"].as_u64().map(|ms| format!(" [{:.1} s ago]", ms as f64 / 1e3));
        let (name, state, seen) = (text(&stage["stage"]), text(&stage["state"]), text(&stage["seen"]));
        out += &format!("  {name:<12}{state:<9}{seen}{}\n", age.unwrap_or_default());
    }
    let stages = one["stages"].as_array().into_iter().flatten();
    let failed = stages.clone().find(|stage| stage["state"] == "failed");
    match failed {
        Some(stage) => {
            out += &format!("  => {}: {}\n", text(&stage["stage"]), text(&stage["remedy"]));
        }
        None => out += "  => nothing is wrong\n",
    }
    for stage in stages.filter(|stage| stage["state"] == "note" && stage["remedy"].is_string()) {
        out += &format!("  note: {}: {}\n", text(&stage["stage"]), text(&stage["remedy"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_stage_that_fails_is_named_with_its_remedy() {
        let told = json!({ "status": 11, "left_off": 2, "explained": [{
            "subject": "port p on tap0",
            "stages": [
                { "stage": "agent", "state": "note", "seen": "IPv6 is off", "age_ms": null, "remedy": "load it" },
                { "stage": "device", "state": "failed", "seen": "no \u{1b}device", "age_ms": 1500, "remedy": "plug it" },
                { "stage": "nova", "state": "failed", "seen": "away", "age_ms": null, "remedy": "start it" },
            ],
        }]});
        let expected = "\
port p on tap0
  agent       note     IPv6 is off
  device      failed   no device [1.5 s ago]
  nova        failed   away
  => device: plug it
  note: agent: load it
and 2 more
";
        assert_eq!(text(&told), expected);
        assert_eq!(text(&json!({ "status": 0, "left_off": 0, "explained": [] })), "nothing is wrong\n");
    }
}
