//! The answers we give ourselves, chosen for what boot clients make of them.
//!
//! cloud-init tries again on 503 with a Retry-After of at least 1, and ends its stage on resets and on every other error
//! (404, 429, 500, 502, 504); Ignition takes a 404 for "no configuration" and boots an unconfigured machine. So what we
//! do not know is 503, never 404, and a 404 that a guest sees always is Nova's.
use std::time::Duration;

use http::StatusCode;
use http1::{Malformed, Version, write_connection, write_field};

use super::token;
use crate::{
    config::Limits,
    directory::{Identity, Limit},
};

/// Refusal: the reason for which a request did not get an answer of Nova.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing is known about who asks, even after waiting.
    Unknown(String),
    /// The sources of identity contradict each other.
    Conflict(String),
    /// Too much at once, or in too short a time.
    Limited { limit: Limit, wait: Duration },
    /// The request cannot be passed on.
    Malformed(Malformed),
    /// The head has more bytes than that.
    HeadTooLarge(usize),
    /// The body has more bytes than that.
    BodyTooLarge(usize),
    /// The rest of the request did not come in time.
    Slow,
    /// Nova cannot be reached.
    Unreachable,
    /// Nova broke off, or what it says is no HTTP.
    Broken,
    /// Nova did not answer in time.
    Timeout,
    /// It lacks a session token, or is none that may pass.
    Token(token::Refusal),
}

impl Refusal {
    /// For metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            Self::Conflict(_) => "conflict",
            Self::Limited { limit, .. } => limit.name(),
            Self::Malformed(_) => "malformed",
            Self::HeadTooLarge(_) => "head_too_large",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::Slow => "slow",
            Self::Unreachable => "nova_unreachable",
            Self::Broken => "nova_broken",
            Self::Timeout => "nova_timeout",
            Self::Token(refusal) => refusal.name(),
        }
    }

    /// The limit that was met, if one was.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self {
            Self::Limited { limit, .. } => Some(*limit),
            _ => None,
        }
    }

    /// Reason for the operator, beyond what the guest is told.
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Unknown(reason) | Self::Conflict(reason) => Some(reason.clone()),
            Self::Malformed(problem) => Some(problem.to_string()),
            other => Some(other.name().to_owned()),
        }
    }

    pub(super) fn status(&self, limits: &Limits) -> StatusCode {
        match self {
            Self::Unknown(_) | Self::Conflict(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Limited { .. } => {
                StatusCode::from_u16(limits.limit_status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::Malformed(Malformed::TooLarge) | Self::HeadTooLarge(_) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Malformed(Malformed::Version) => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Unreachable | Self::Broken => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Token(refusal) => match refusal {
                token::Refusal::Missing | token::Refusal::Invalid | token::Refusal::Expired => {
                    StatusCode::UNAUTHORIZED
                }
                token::Refusal::BadTimeToLive => StatusCode::BAD_REQUEST,
                token::Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
                token::Refusal::Forwarded => StatusCode::FORBIDDEN,
            },
        }
    }

    /// Explanation in words that end up in the guest's console log.
    fn text(&self) -> String {
        match self {
            Self::Unknown(_) => "the metadata service does not know this port yet, try again".to_owned(),
            Self::Conflict(_) => {
                "the metadata service has contradictory information about this port, tell the operator"
                    .to_owned()
            }
            Self::Limited { limit, .. } => format!("{}, try again later", describe(*limit)),
            Self::Malformed(problem) => format!("the request has {problem}"),
            Self::HeadTooLarge(limit) => format!("request heads of more than {limit} bytes are not accepted"),
            Self::BodyTooLarge(limit) => {
                format!("request bodies of more than {limit} bytes are not accepted")
            }
            Self::Slow => "the request did not arrive in time".to_owned(),
            Self::Unreachable => "the metadata service cannot reach nova, try again".to_owned(),
            Self::Broken => "nova broke off its answer, try again".to_owned(),
            Self::Timeout => "nova did not answer in time, try again".to_owned(),
            Self::Token(refusal) => refusal.text().to_owned(),
        }
    }

    /// Whole seconds after which to ask again; cloud-init takes a 0 for "never".
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Unknown(_) | Self::Conflict(_) => Some(1),
            Self::Limited { wait, .. } => Some(wait.as_millis().div_ceil(1000).max(1) as u64),
            _ => None,
        }
    }

    /// Writes the response.
    pub(super) fn write(&self, whom: Whom<'_>, form: Form, limits: &Limits, out: &mut Vec<u8>) {
        let status = self.status(limits);
        let body = format!("{} ({whom})\n", self.text());
        let reason = status.canonical_reason().unwrap_or_default();
        out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
        write_field(b"Server", b"metadata-agent", out);
        write_field(b"Content-Type", b"text/plain; charset=UTF-8", out);
        write_field(b"Content-Length", body.len().to_string().as_bytes(), out);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            write_field(b"Allow", b"PUT", out);
        }
        if let Some(seconds) = self.retry_after() {
            write_field(b"Retry-After", seconds.to_string().as_bytes(), out);
        }
        write_connection(form.version, form.keep_alive, out);
        out.extend_from_slice(b"\r\n");
        if form.has_body {
            out.extend_from_slice(body.as_bytes());
        }
    }
}

/// Explanation of a limit to the guest that meets it.
fn describe(limit: Limit) -> &'static str {
    match limit {
        Limit::Connections => "the metadata service has too many connections",
        Limit::Requests => "the metadata service has too many requests at once",
        Limit::UnfinishedBytes => "the metadata service has too many slow requests and answers",
        Limit::PortConnections => "too many connections",
        Limit::PortRequests => "too many requests at once",
        Limit::PortHeld => "too many requests wait for this port to become known",
        Limit::RequestRate => "too many requests in too short a time",
    }
}

/// Subject of a refusal: as much of it as is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whom<'a> {
    /// Neutron's port.
    pub(super) port: &'a str,
    pub(super) identity: Option<&'a Identity>,
}

impl std::fmt::Display for Whom<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "port {}", self.port)?;
        match self.identity {
            Some(Identity { instance, .. }) => write!(f, ", instance {instance}"),
            None => Ok(()),
        }
    }
}

/// Form of the response that the request allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    /// Not for HEAD.
    pub(super) has_body: bool,
}

impl Form {
    /// To something that is no request.
    pub(super) const LAST: Self = Self { version: Version::Http11, keep_alive: false, has_body: true };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(refusal: &Refusal, form: Form) -> String {
        let mut out = Vec::new();
        refusal.write(Whom { port: "p", identity: None }, form, &Limits::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_not_the_guests_fault_is_told_as_such() {
        for refusal in [
            Refusal::Unknown("x".into()),
            Refusal::Conflict("x".into()),
            Refusal::Limited { limit: Limit::RequestRate, wait: Duration::from_millis(1) },
            Refusal::Unreachable,
            Refusal::Broken,
            Refusal::Timeout,
        ] {
            let status = refusal.status(&Limits::default());
            assert!(status.is_server_error() && status != StatusCode::INTERNAL_SERVER_ERROR, "{refusal:?}");
            if status == StatusCode::SERVICE_UNAVAILABLE {
                assert!(write(&refusal, Form::LAST).contains("\r\nRetry-After: 1\r\n"), "{refusal:?}");
            }
        }
    }

    #[test]
    fn answers_say_what_and_for_whom() {
        let refusal = Refusal::Limited { limit: Limit::PortRequests, wait: Duration::from_millis(2500) };
        let body = "too many requests at once, try again later (port p)\n";
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\nServer: metadata-agent\r\n\
             Content-Type: text/plain; charset=UTF-8\r\nContent-Length: {}\r\nRetry-After: 3\r\n",
            body.len()
        );
        assert_eq!(write(&refusal, Form::LAST), format!("{head}Connection: close\r\n\r\n{body}"));
        let form = Form { version: Version::Http11, keep_alive: true, has_body: false };
        assert_eq!(write(&refusal, form), format!("{head}\r\n"));
    }
}
