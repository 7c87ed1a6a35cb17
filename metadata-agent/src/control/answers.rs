//! Answers of the control plane to operators' questions, as far as they need nobody else.
use http::StatusCode;
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Control,
    frames::{self, Logged},
};
use crate::{
    admin::{AdminAnswer, FramesWanted, Question},
    health::Problem,
    metrics::{Metrics, Overview},
};

impl Control {
    pub(super) fn answer(&mut self, question: Question) -> AdminAnswer {
        match question {
            Question::Ready => {
                let pending = self.pending();
                if pending.is_empty() {
                    let notes = self
                        .guests
                        .notes()
                        .into_iter()
                        .chain(self.health.note())
                        .map(|note| format!("note: {note}\n"));
                    AdminAnswer::ok(format!("ready\n{}", notes.collect::<String>()))
                } else {
                    AdminAnswer::error(StatusCode::SERVICE_UNAVAILABLE, Problem::texts(&pending, "\n") + "\n")
                }
            }
            Question::Ports => AdminAnswer::json(&self.describe_ports()),
            Question::Counters => match self.reconciler.datapath().counters() {
                Ok(counters) => {
                    let object: serde_json::Map<_, _> = counters
                        .into_iter()
                        .map(|(counter, value)| (counter.name().to_owned(), json!(value)))
                        .collect();
                    AdminAnswer::json(&object.into())
                }
                Err(error) => AdminAnswer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            Question::Metrics => self.own_metrics(),
            // It is answered when the other process has said its part.
            Question::Explain { .. } | Question::Watch { .. } | Question::Top => {
                AdminAnswer::error(StatusCode::SERVICE_UNAVAILABLE, "not now\n")
            }
            Question::Leave => match self.reconciler.datapath_mut().leave() {
                Ok(()) => AdminAnswer::ok("leaving: new connections pass\n"),
                Err(error) => AdminAnswer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            Question::LogLevel(filter) => match self.log.set(&filter) {
                Ok(()) => {
                    self.guests.set_log(&filter);
                    AdminAnswer::ok(format!("logging {filter}\n"))
                }
                Err(error) => AdminAnswer::error(StatusCode::BAD_REQUEST, format!("{filter:?}: {error}\n")),
            },
            Question::LogDatapath(wanted) => self.log_datapath(wanted),
        }
    }

    /// The ports that are served and those that are not.
    fn describe_ports(&self) -> serde_json::Value {
        let unserved = self.unserved.iter().map(|(port, unserved)| {
            let tap = &unserved.interface;
            json!({ "port": port, "tap": tap, "state": "unserved", "reason": unserved.reason })
        });
        self.reconciler.describe().into_iter().chain(unserved).collect()
    }

    /// Answers with the numbers of both processes, without waiting for the other one.
    pub(super) fn answer_metrics(&self, answer: oneshot::Sender<AdminAnswer>) {
        let (own, guests) = (self.own_metrics(), self.guests.clone());
        tokio::spawn(async move {
            let text = match own.status {
                StatusCode::OK => Metrics::join(&own.text, &guests.numbers().await),
                _ => own.text,
            };
            // Whoever asked may be gone.
            let _ = answer.send(AdminAnswer { text, ..own });
        });
    }

    /// The numbers of this process.
    fn own_metrics(&self) -> AdminAnswer {
        let overview = Overview {
            ready: self.pending().is_empty(),
            unserved: self.unserved.len() + self.reconciler.unattached(),
            restarts: self.guests.restarts(),
            databases: self.source.databases(),
        };
        match self.metrics.text(&self.reconciler, overview) {
            Ok(text) => AdminAnswer::metrics(text),
            Err(error) => AdminAnswer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// Logs the frames of some ports or of all for a time, or none any more.
    fn log_datapath(&mut self, wanted: Option<FramesWanted>) -> AdminAnswer {
        let logged = match &wanted {
            None => None,
            Some(FramesWanted { of, seconds }) => {
                let ports = of.as_deref().map(|of| self.reconciler.find(of));
                if let (Some(of), Some(ports)) = (of, &ports)
                    && ports.is_empty()
                {
                    let text = format!(
                        "no port that is served is meant by {of:?}: `metadata-agent explain {of}` may say why\n"
                    );
                    return AdminAnswer::error(StatusCode::NOT_FOUND, text);
                }
                Some(Logged { ports, until: frames::end(std::time::Instant::now(), *seconds) })
            }
        };
        self.frames.set(logged);
        match self.record_frames() {
            Ok(()) => AdminAnswer::ok(match wanted {
                None => "frames are not logged\n".to_owned(),
                Some(FramesWanted { of, seconds }) => {
                    let of = of.map_or_else(|| "all ports and of none".to_owned(), |of| format!("{of:?}"));
                    format!("frames of {of} are logged for {seconds} s\n")
                }
            }),
            Err(error) => AdminAnswer::error(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}
