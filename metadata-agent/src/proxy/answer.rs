//! The answers we give ourselves, chosen for what boot clients make of them.
//!
//! cloud-init ends its stage on 404, 429, 500 and resets, and tries again on 503 with a Retry-After of at least 1;
//! Ignition takes a 404 for "no configuration" and boots an unconfigured machine. So what we do not know is 503, never
//! 404, and a 404 that a guest sees always is Nova's.
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};

/// Body of every response to a guest.
pub(super) type Body = BoxBody<Bytes, hyper::Error>;

/// Why a request did not get an answer of Nova.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is known about who asks, even after waiting.
    Unknown(String),
    /// The sources of identity contradict each other.
    Conflict(String),
    /// The request cannot be passed on.
    BadRequest(&'static str),
    /// The body is larger than any metadata request's.
    TooLarge(usize),
    /// Nova cannot be reached, or broke off.
    Unreachable,
    /// Nova did not answer in time.
    Timeout,
}

impl Refusal {
    /// The status and what it says, one line, for the guest's console log.
    fn describe(&self) -> (StatusCode, String) {
        match self {
            Self::Unknown(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the metadata service does not know this port yet, try again".to_owned(),
            ),
            Self::Conflict(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the metadata service has contradictory information about this port, tell the operator"
                    .to_owned(),
            ),
            Self::BadRequest(what) => (StatusCode::BAD_REQUEST, (*what).to_owned()),
            Self::TooLarge(limit) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("request bodies of more than {limit} bytes are not accepted"),
            ),
            Self::Unreachable => {
                (StatusCode::BAD_GATEWAY, "the metadata service cannot reach nova, try again".to_owned())
            }
            Self::Timeout => {
                (StatusCode::GATEWAY_TIMEOUT, "nova did not answer in time, try again".to_owned())
            }
        }
    }

    /// What an operator wants to know beyond what the guest is told.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Unknown(reason) | Self::Conflict(reason) => Some(reason),
            _ => None,
        }
    }

    /// As a response.
    pub fn into_response(self) -> Response<Body> {
        let (status, text) = self.describe();
        let mut response = Response::new(whole(Bytes::from(format!("{text}\n"))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A body that is all there.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_ours_ends_a_boot() {
        for refusal in [
            Refusal::Unknown("x".into()),
            Refusal::Conflict("x".into()),
            Refusal::Unreachable,
            Refusal::Timeout,
        ] {
            let response = refusal.clone().into_response();
            assert!(
                response.status().is_server_error() && response.status() != StatusCode::INTERNAL_SERVER_ERROR
            );
            if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                assert_eq!(response.headers()[header::RETRY_AFTER], "1", "{refusal:?}");
            }
        }
    }
}
