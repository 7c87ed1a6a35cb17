//! Words and judgements that several stages have in common.
use std::time::Duration;

use super::{Finding, Stage, State};
use crate::directory::Record;

/// Time for which something that happened to a frame or a request counts as what happens.
pub(super) const RECENT: Duration = Duration::from_secs(60);
/// The same in milliseconds.
pub const RECENT_MS: u64 = 60_000;

pub(super) fn finding(stage: Stage, state: State, seen: impl Into<String>) -> Finding {
    Finding { stage, state, seen: seen.into(), age: None, remedy: None }
}

pub(super) fn good(stage: Stage, seen: impl Into<String>) -> Finding {
    finding(stage, State::Good, seen)
}

pub(super) fn unknown(stage: Stage, seen: impl Into<String>) -> Finding {
    finding(stage, State::Unknown, seen)
}

pub(super) fn note(stage: Stage, seen: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { remedy: Some(remedy.into()), ..finding(stage, State::Note, seen) }
}

pub(super) fn failed(stage: Stage, seen: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { remedy: Some(remedy.into()), ..finding(stage, State::Failed, seen) }
}

/// Stage that is to blame for what became of a request, if one is.
pub(super) fn blamed(record: &Record) -> Option<Stage> {
    match (&record.refusal, record.status) {
        (Some(refusal), _) => Some(match &**refusal {
            "nova_unreachable" | "nova_broken" | "nova_timeout" => Stage::Nova,
            "unknown" | "conflict" => Stage::Identity,
            "connections" | "requests" | "unfinished_bytes" | "port_connections" | "port_requests"
            | "port_held" | "request_rate" => Stage::Limits,
            _ => Stage::Requests,
        }),
        (None, Some(403 | 500..)) if record.by_nova => Some(Stage::Nova),
        (None, None) => Some(Stage::Requests),
        _ => None,
    }
}

pub(super) fn status(record: &Record) -> String {
    record.status.map_or_else(|| "none".to_owned(), |status| status.to_string())
}

pub(super) fn describe(record: &Record) -> String {
    let by = if record.by_nova { "Nova" } else { "the agent" };
    let method = record.method.as_deref().unwrap_or("no request");
    let path = record.path.as_deref().map(|path| format!(" of {path}")).unwrap_or_default();
    let answer = match record.status {
        Some(status) => format!("answered {status} by {by}"),
        None => "not answered".to_owned(),
    };
    let ms = record.us as f64 / 1e3;
    let reason = record.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("the last one, {method}{path}, was {answer} after {ms:.1} ms{reason}")
}

/// A time in the past, in words.
pub(super) fn ago(age: Duration) -> String {
    match age.as_secs() {
        0 => format!("{} ms ago", age.as_millis()),
        1..=119 => format!("{:.1} s ago", age.as_secs_f64()),
        seconds => format!("{} min ago", seconds / 60),
    }
}
