//! Mailbox of a session: requests and answers to the server, each request with what its answer is about, and events to
//! the program.

use std::collections::{HashMap, VecDeque};

use serde_json::value::RawValue;

use super::{Pending, SessionEvent, Transmit};
use crate::error::Error;
use crate::message;

/// The two ways out.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    next_id: u64,
    pending: HashMap<u64, Pending>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<SessionEvent>,
}

impl Mailbox {
    /// Makes a request; gives its id.
    pub(super) fn ask(&mut self, method: &str, params: &serde_json::Value, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let message = message::request(id, method, params);
        self.transmits.push_back(Transmit { message, is_answer: false });
        self.pending.insert(id, pending);
        id
    }

    /// Answers a request of the server's (RFC 7047, section 4.1.11: the answer to an echo is what came with it).
    pub(super) fn answer(&mut self, method: &str, id: &RawValue, params: Option<&RawValue>) {
        let message = match method {
            "echo" => message::reply(id, params),
            _ => message::unknown_method(id),
        };
        self.transmits.push_back(Transmit { message, is_answer: true });
    }

    /// Tells the program.
    pub(super) fn tell(&mut self, event: SessionEvent) {
        self.events.push_back(event);
    }

    /// Takes the subject of the answer with this id, once.
    pub(super) fn take(&mut self, id: u64) -> Option<Pending> {
        self.pending.remove(&id)
    }

    /// True if an answer is awaited that is about that.
    pub(super) fn awaits(&self, is_about: impl Fn(&Pending) -> bool) -> bool {
        self.pending.values().any(is_about)
    }

    /// Nothing is answered any more. The program's requests fail.
    pub(super) fn disconnected(&mut self) {
        self.transmits.clear();
        for (id, pending) in std::mem::take(&mut self.pending) {
            if let Pending::User(_) = pending {
                self.tell(SessionEvent::Reply { id, result: Err(Error::Interrupted) });
            }
        }
    }

    pub(super) fn next_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub(super) fn next_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }
}
