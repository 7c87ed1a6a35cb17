//! Questions, and the requests that ask them.
use http::{Method, StatusCode};

use super::AdminAnswer;

/// A question of an operator's to the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The problems in the way of serving guests.
    Ready,
    /// The ports.
    Ports,
    /// The counters.
    Counters,
    /// All numbers.
    Metrics,
    /// The reason for which guests get their answers or not.
    Explain {
        /// A tap, or the id of a port or an instance, or an address; nothing for all that is wrong.
        what: Option<String>,
        /// True if Nova is to be asked once in the port's name.
        probe: bool,
    },
    /// Set the log filter.
    LogLevel(String),
    /// Numbers of each port.
    Top,
    /// Requests and dropped frames as they happen. The control plane is not asked.
    Watch {
        /// Of a tap or a port; everything without.
        of: Option<String>,
    },
    /// Log frames, or none any more.
    LogDatapath(Option<FramesWanted>),
    /// End for good.
    Leave,
}

/// Frames that are to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramesWanted {
    /// A tap, or the id of a port or an instance, whose frames are logged; `None` for those of all.
    pub of: Option<String>,
    /// Seconds for which frames are logged.
    pub seconds: u64,
}

/// The question of a request, or what is wrong with it.
pub(super) fn question(method: &Method, path: &str, query: Option<&str>) -> Result<Question, AdminAnswer> {
    match (method, path, query) {
        (&Method::GET, "/ready", _) => Ok(Question::Ready),
        (&Method::GET, "/ports", _) => Ok(Question::Ports),
        (&Method::GET, "/counters", _) => Ok(Question::Counters),
        (&Method::GET, "/metrics", _) => Ok(Question::Metrics),
        (&Method::GET, "/top", _) => Ok(Question::Top),
        (&Method::GET, "/watch", _) => watch(query.unwrap_or_default()),
        (&Method::GET, "/explain", _) => explain(query.unwrap_or_default()),
        (&Method::PUT, "/log", _) => log(query.unwrap_or_default()),
        (&Method::PUT, "/leave", None) => Ok(Question::Leave),
        (_, "/leave", _) => {
            Err(AdminAnswer::error(StatusCode::METHOD_NOT_ALLOWED, "PUT /leave ends the agent\n"))
        }
        (_, "/log", _) => Err(AdminAnswer::error(StatusCode::METHOD_NOT_ALLOWED, LOG)),
        (_, "/ready" | "/ports" | "/counters" | "/metrics" | "/explain" | "/top" | "/watch", _) => {
            Err(AdminAnswer::error(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n"))
        }
        _ => Err(AdminAnswer::error(
            StatusCode::NOT_FOUND,
            "there are /ready, /ports, /counters, /metrics, /explain, /top, /watch, /log and /leave\n",
        )),
    }
}

const LOG: &str = "PUT /log?level=FILTER, or PUT /log?datapath=on with &port=WORD and &seconds=N if wanted, or \
                   PUT /log?datapath=off\n";
/// Seconds for which frames are logged where nobody says otherwise, and the most of them: what is forgotten ends.
const SECONDS: u64 = 60;
const MOST_SECONDS: u64 = 86_400;

fn log(query: &str) -> Result<Question, AdminAnswer> {
    let wrong = || AdminAnswer::error(StatusCode::BAD_REQUEST, LOG);
    let arguments: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    match arguments.as_slice() {
        [(name, filter)] if name == "level" && !filter.is_empty() => {
            Ok(Question::LogLevel(filter.clone().into_owned()))
        }
        [(name, value)] if name == "datapath" && value == "off" => Ok(Question::LogDatapath(None)),
        [(name, value), more @ ..] if name == "datapath" && value == "on" => {
            let mut wanted = FramesWanted { of: None, seconds: SECONDS };
            for (name, value) in more {
                match &**name {
                    "port" => wanted.of = Some(value.clone().into_owned()),
                    "seconds" => {
                        let seconds =
                            value.parse().ok().filter(|seconds| (1..=MOST_SECONDS).contains(seconds));
                        wanted.seconds = seconds.ok_or_else(|| {
                            AdminAnswer::error(
                                StatusCode::BAD_REQUEST,
                                format!("seconds are 1 to {MOST_SECONDS}\n"),
                            )
                        })?;
                    }
                    _ => return Err(wrong()),
                }
            }
            Ok(Question::LogDatapath(Some(wanted)))
        }
        _ => Err(wrong()),
    }
}

fn watch(query: &str) -> Result<Question, AdminAnswer> {
    let arguments: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    match arguments.as_slice() {
        [] => Ok(Question::Watch { of: None }),
        [(name, of)] if name == "port" && !of.is_empty() => {
            Ok(Question::Watch { of: Some(of.clone().into_owned()) })
        }
        _ => Err(AdminAnswer::error(StatusCode::BAD_REQUEST, "GET /watch, with port=WORD if wanted\n")),
    }
}

fn explain(query: &str) -> Result<Question, AdminAnswer> {
    let (mut what, mut probe) = (None, false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match (&*name, &*value) {
            ("what", value) if !value.is_empty() => what = Some(value.to_owned()),
            ("probe", "1") => probe = true,
            _ => {
                let text = "GET /explain, with what=WORD and probe=1 if wanted\n";
                return Err(AdminAnswer::error(StatusCode::BAD_REQUEST, text));
            }
        }
    }
    Ok(Question::Explain { what, probe })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let ask = |method: &str, path, query| question(&method.parse().unwrap(), path, query);
        assert_eq!(ask("GET", "/ports", None), Ok(Question::Ports));
        assert_eq!(
            ask("PUT", "/log", Some("level=debug,hyper=info")),
            Ok(Question::LogLevel("debug,hyper=info".into()))
        );
        let frames = |of: Option<&str>, seconds| {
            Question::LogDatapath(Some(FramesWanted { of: of.map(str::to_owned), seconds }))
        };
        assert_eq!(ask("PUT", "/log", Some("datapath=on")), Ok(frames(None, SECONDS)));
        assert_eq!(ask("PUT", "/log", Some("datapath=on&port=tap0&seconds=5")), Ok(frames(Some("tap0"), 5)));
        assert_eq!(ask("PUT", "/log", Some("datapath=off")), Ok(Question::LogDatapath(None)));
        for wrong in ["datapath=on&seconds=0", "datapath=on&seconds=x", "datapath=on&x=1", "", "level"] {
            let status = ask("PUT", "/log", Some(wrong)).map_err(|answer| answer.status);
            assert_eq!(status, Err(StatusCode::BAD_REQUEST), "{wrong}");
        }
        assert_eq!(ask("PUT", "/log", Some("datapath=1")).unwrap_err().status, StatusCode::BAD_REQUEST);
        let explained =
            |what: Option<&str>, probe| Question::Explain { what: what.map(str::to_owned), probe };
        assert_eq!(ask("GET", "/explain", None), Ok(explained(None, false)));
        assert_eq!(
            ask("GET", "/explain", Some("what=fd00%3A%3A5&probe=1")),
            Ok(explained(Some("fd00::5"), true))
        );
        assert_eq!(ask("GET", "/explain", Some("port=x")).unwrap_err().status, StatusCode::BAD_REQUEST);
        assert_eq!(ask("PUT", "/leave", None), Ok(Question::Leave));
        assert_eq!(ask("GET", "/leave", None).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask("POST", "/ports", None).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask("GET", "/", None).unwrap_err().status, StatusCode::NOT_FOUND);
    }
}
