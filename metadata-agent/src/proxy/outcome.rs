//! Outcome of a request.
use std::{io, sync::Arc, time::Duration};

use super::{answer::Refusal, token};
use crate::directory::{RequestPolicy, SignedIdentity};

/// Outcome of a request.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) who: Option<Arc<SignedIdentity>>,
    /// Status that the guest was answered, if it was.
    pub(super) status: Option<u16>,
    /// Bytes of the body that the guest got.
    pub(super) bytes: u64,
    /// Until Nova's answer began.
    pub(super) nova: Option<Duration>,
    /// Reason for which the agent answered in Nova's place, if it did.
    pub(super) refusal: Option<Refusal>,
    /// Outcome by session tokens, where there are some.
    pub(super) token: Option<token::Outcome>,
    pub(super) end: Completion,
}

/// Completion of an answer, or the reason why it did not come to its end.
#[derive(Debug, Default)]
pub(super) enum Completion {
    /// The port or the agent went away, the connection lasted too long, or it gave way to others.
    #[default]
    CutOff,
    /// The guest went away, or did not take its answer.
    Left(io::Error),
    /// Nova ended its answer before the end.
    BrokenOff,
    Complete,
}

impl Outcome {
    /// Policy of whoever is known to ask.
    pub(super) fn policy(&self) -> Option<&RequestPolicy> {
        self.who.as_ref()?.policy.as_ref()
    }

    /// Tells whether the answer is the agent's own.
    pub(super) fn is_ours(&self) -> bool {
        self.refusal.is_some() || self.token == Some(token::Outcome::Issued)
    }

    /// Reason for which the guest did not get the whole answer that it asked for.
    pub(super) fn reason(&self) -> Option<String> {
        let refused = self.refusal.as_ref().and_then(Refusal::reason);
        refused.or_else(|| match &self.end {
            Completion::CutOff => {
                Some("cut off: its port or the agent went away, its connection lasted too long, or gave way to others".to_owned())
            }
            Completion::Left(error) => Some(format!("the guest left: {error}")),
            Completion::BrokenOff => Some("nova broke off its answer".to_owned()),
            Completion::Complete => None,
        })
    }
}
