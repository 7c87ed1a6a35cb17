//! Admission of a request by its port's policy: session tokens, and the hop limit of answers.
use std::io;

use http1::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::{
        answer::{Form, Refusal},
        closing::GuestSocket,
        outcome::Outcome,
        token::{self, Decision, TimeToLive},
    },
    Connection, End,
};
use crate::{
    boot_clock,
    directory::{RequestPolicy, SignedIdentity},
};

impl<S: AsyncRead + AsyncWrite + GuestSocket + Unpin> Connection<'_, S> {
    /// Decides about a request by its port's policy; the time to live of the token that it asks for, if it does.
    pub(super) fn admit_by_policy(
        &mut self,
        request: &Request<'_>,
        policy: &RequestPolicy,
        outcome: &mut Outcome,
    ) -> io::Result<Result<Option<TimeToLive>, Refusal>> {
        self.limit_answers(Some(policy))?;
        match token::decide(request, policy, boot_clock::now()) {
            Decision::Pass(token) => {
                outcome.token = token;
                Ok(Ok(None))
            }
            Decision::Issue(time) => Ok(Ok(Some(time))),
            Decision::Refuse(refusal) => {
                outcome.token = Some(token::Outcome::Refused(refusal));
                Ok(Err(Refusal::Token(refusal)))
            }
        }
    }

    /// Answers with a token.
    pub(super) async fn issue(
        &mut self,
        time: TimeToLive,
        who: &SignedIdentity,
        form: Form,
        outcome: &mut Outcome,
    ) -> io::Result<Option<End>> {
        let tokens = who.policy.as_ref().and_then(|policy| policy.tokens.as_ref());
        let tokens = tokens.ok_or_else(|| io::Error::other("a token was promised by no policy"))?;
        if let Some(hops) = tokens.hop_limit {
            self.limit_hops(hops)?;
        }
        let token = token::seal(&tokens.keys, time.end(boot_clock::now()));
        let token = token.map_err(|_| io::Error::other("the cryptographic library makes no token"))?;
        let mut out = Vec::with_capacity(256);
        token::write(&token, time, form.version, form.keep_alive, &mut out);
        outcome.token = Some(token::Outcome::Issued);
        outcome.status = Some(200);
        outcome.bytes = token.len() as u64;
        let end = if self.received.is_empty() { End::Closed } else { End::Unread };
        self.finish(&out, form, end).await
    }

    /// Limits the routers that answers may pass, if the policy of whoever is known to ask does.
    pub(super) fn limit_answers(&mut self, policy: Option<&RequestPolicy>) -> io::Result<()> {
        policy.and_then(|policy| policy.hop_limit).map_or(Ok(()), |hops| self.limit_hops(hops))
    }

    /// Limits the routers that segments of this connection may pass from now on. What is sent again has the limit of then, so it
    /// is never raised again.
    fn limit_hops(&mut self, hops: u8) -> io::Result<()> {
        if self.hop_limit.is_none_or(|limit| hops < limit) {
            self.stream.limit_hops(self.caller.is_v4, hops)?;
            self.hop_limit = Some(hops);
        }
        Ok(())
    }
}
