//! Session tokens (IMDSv2): what a request must bring before it goes to Nova, and the answer to one that asks for a token. Pure
//! functions, with the time passed in.
//!
//! AWS' documentation is the specification ("Use the Instance Metadata Service to access instance metadata"); a proxy's headers
//! and repeated ones are refused in more cases.
//!
//! ```text
//! seal     a token as bytes     path     what Nova may read in a target
//! ```
#[cfg(test)]
mod oracle;
mod path;
mod seal;
#[cfg(test)]
mod tests;

use std::time::Duration;

use http1::{Request, Version, write_connection, write_field};

use crate::directory::{RequestPolicy, TokenKeys, TokenPolicy};
use seal::Problem;
pub(super) use seal::seal;

/// Path at which tokens are given.
const PATH: &[u8] = b"/latest/api/token";
/// Header with a token.
const TOKEN: &str = "x-aws-ec2-metadata-token";
/// Header with a token's time to live, in the request for it and in the answer.
const TIME_TO_LIVE: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Seconds that a token may last: six hours.
const MOST_SECONDS: u64 = 21_600;
/// Headers that a proxy writes, and no client of its own accord (RFC 7239; RFC 9110, section 7.6.3).
const OF_PROXIES: [&str; 3] = ["x-forwarded-for", "forwarded", "via"];

/// Decision about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// It may go to Nova.
    Pass(Option<Outcome>),
    /// It gets a token.
    Issue(TimeToLive),
    /// It does not get what it asks for.
    Refuse(Refusal),
}

/// Time to live of a token, within the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeToLive(u64);

impl TimeToLive {
    /// End of a token that is made now, by the boot clock.
    pub(super) fn end(self, now: Duration) -> Duration {
        now.saturating_add(Duration::from_secs(self.0))
    }
}

/// Outcome of a request, as far as tokens are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// A token was given.
    Issued,
    /// A good one was sent.
    Accepted,
    /// None was sent, and none is needed for that path in any mode.
    Without,
    /// None was sent for a path that needs one where they are required, and here they are not.
    WithoutWhereOptional,
    /// The same where they will be required in a while.
    WithoutYet,
    /// It was refused.
    Refused(Refusal),
}

impl Outcome {
    /// For metrics and the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Accepted => "accepted",
            Self::Without => "without",
            Self::WithoutWhereOptional => "without_where_optional",
            Self::WithoutYet => "without_yet",
            Self::Refused(refusal) => refusal.name(),
        }
    }
}

/// Reason why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Refusal {
    /// A path needs a token, and none was sent.
    Missing,
    /// A token is none that was given to this port.
    Invalid,
    /// A token's time is over.
    Expired,
    /// A token is asked for without a time to live, or with one that is none.
    BadTimeToLive,
    /// Another method than PUT where tokens are given.
    Method,
    /// A proxy passed it on.
    Forwarded,
}

impl Refusal {
    /// For metrics and the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Invalid => "token_invalid",
            Self::Expired => "token_expired",
            Self::BadTimeToLive => "token_ttl",
            Self::Method => "token_method",
            Self::Forwarded => "forwarded",
        }
    }

    /// Explanation to the guest.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Missing => "this needs a session token (IMDSv2): PUT /latest/api/token gives one",
            Self::Invalid => {
                "the session token was not given to this port, get another one: PUT /latest/api/token"
            }
            Self::Expired => "the session token has expired, get another one: PUT /latest/api/token",
            Self::BadTimeToLive => {
                "a session token needs X-aws-ec2-metadata-token-ttl-seconds, from 1 to 21600"
            }
            Self::Method => "session tokens are given to PUT only",
            Self::Forwarded => {
                "requests that a proxy passed on (X-Forwarded-For, Forwarded, Via) are not served"
            }
        }
    }
}

/// Decides about a request under its port's policy.
pub(super) fn decide(request: &Request<'_>, policy: &RequestPolicy, now: Duration) -> Decision {
    if policy.refuse_forwarded && is_forwarded(request) {
        return Decision::Refuse(Refusal::Forwarded);
    }
    let Some(tokens) = &policy.tokens else { return Decision::Pass(None) };
    if is_for_token(&request.target) {
        return match asked(request) {
            Ok(time) => Decision::Issue(time),
            Err(refusal) => Decision::Refuse(refusal),
        };
    }
    match sent(request, &tokens.keys, now) {
        Some(Ok(())) => Decision::Pass(Some(Outcome::Accepted)),
        Some(Err(refusal)) => Decision::Refuse(refusal),
        None => without(&request.target, tokens, now),
    }
}

/// Tells whether a target is the one at which tokens are given. Another spelling is Nova's to answer, and gives none.
pub(super) fn is_for_token(target: &[u8]) -> bool {
    target.strip_prefix(PATH).is_some_and(|rest| matches!(rest.first(), None | Some(b'?')))
}

fn is_forwarded(request: &Request<'_>) -> bool {
    OF_PROXIES.iter().any(|name| request.fields.values(name).next().is_some())
}

/// Time to live of the token that is asked for.
fn asked(request: &Request<'_>) -> Result<TimeToLive, Refusal> {
    if request.method != b"PUT" {
        return Err(Refusal::Method);
    }
    // A PUT that comes through a proxy is somebody else's, for whom the proxy's machine is not to ask.
    if is_forwarded(request) {
        return Err(Refusal::Forwarded);
    }
    let mut values = request.fields.values(TIME_TO_LIVE);
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::BadTimeToLive) };
    // A number's parser takes a sign as well.
    let is_number = (1..=5).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let seconds = std::str::from_utf8(value).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
    seconds
        .filter(|seconds| (1..=MOST_SECONDS).contains(seconds))
        .map(TimeToLive)
        .ok_or(Refusal::BadTimeToLive)
}

/// Worth of the token that was sent, if one was.
fn sent(request: &Request<'_>, keys: &TokenKeys, now: Duration) -> Option<Result<(), Refusal>> {
    let mut values = request.fields.values(TOKEN);
    let token = values.next()?;
    if values.next().is_some() {
        return Some(Err(Refusal::Invalid));
    }
    Some(seal::open(token, keys, now).map_err(|problem| match problem {
        Problem::Invalid => Refusal::Invalid,
        Problem::Expired => Refusal::Expired,
    }))
}

/// Decision about a request without a token.
fn without(target: &[u8], tokens: &TokenPolicy, now: Duration) -> Decision {
    if !path::may_name(target, &tokens.required_for) {
        return Decision::Pass(Some(Outcome::Without));
    }
    if !tokens.required {
        return Decision::Pass(Some(Outcome::WithoutWhereOptional));
    }
    if now < tokens.required_from {
        return Decision::Pass(Some(Outcome::WithoutYet));
    }
    Decision::Refuse(Refusal::Missing)
}

/// Writes the response with a token.
pub(super) fn write(token: &str, time: TimeToLive, version: Version, keep_alive: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    write_field(b"Server", b"metadata-agent", out);
    write_field(b"Content-Type", b"text/plain", out);
    write_field(b"Content-Length", token.len().to_string().as_bytes(), out);
    write_field(b"X-Aws-Ec2-Metadata-Token-Ttl-Seconds", time.0.to_string().as_bytes(), out);
    write_connection(version, keep_alive, out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(token.as_bytes());
}
