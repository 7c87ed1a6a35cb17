//! Locks: wanted across connections, held on one (RFC 7047, section 4.1.8).

use std::collections::BTreeMap;

use serde_json::json;

use super::mailbox::Mailbox;
use super::{Pending, SessionEvent};
use crate::message::Payload;

/// A lock that is wanted.
#[derive(Debug)]
struct Lock {
    /// True if it is still to be taken by force. That is done once: clients that took it from each other on every
    /// connection would never leave it alone.
    steal: bool,
    held: bool,
    /// The latest request for it, until it is answered. What the server says before is about an earlier one that was
    /// given up since.
    asked: Option<u64>,
}

/// The locks that are wanted.
#[derive(Debug, Default)]
pub(super) struct Locks {
    wanted: BTreeMap<String, Lock>,
    is_connected: bool,
}

impl Locks {
    /// Wants a lock, now and after every reconnection, by force if `steal`. Force is used once: after a reconnection the
    /// lock is waited for, unless no server has answered to the force yet.
    pub(super) fn want(&mut self, name: &str, steal: bool, mailbox: &mut Mailbox) {
        if let Some(lock) = self.wanted.get(name) {
            if lock.held {
                return;
            }
            // A server takes no second request otherwise, whether it still knows of the first or the lock was stolen.
            self.give_up(name, mailbox);
        }
        let mut lock = Lock { steal, held: false, asked: None };
        if self.is_connected {
            lock.ask(name, mailbox);
        }
        self.wanted.insert(name.to_owned(), lock);
    }

    /// Gives a lock up.
    pub(super) fn give_up(&mut self, name: &str, mailbox: &mut Mailbox) {
        if let Some(lock) = self.wanted.remove(name) {
            if lock.held {
                mailbox.tell(SessionEvent::Lock { name: name.to_owned(), held: false });
            }
            if self.is_connected {
                mailbox.ask("unlock", &json!([name]), Pending::Unlock);
            }
        }
    }

    /// Asks a new server for everything that is wanted.
    pub(super) fn connected(&mut self, mailbox: &mut Mailbox) {
        self.is_connected = true;
        for (name, lock) in &mut self.wanted {
            lock.ask(name, mailbox);
        }
    }

    /// Without a connection nothing is held.
    pub(super) fn disconnected(&mut self, mailbox: &mut Mailbox) {
        self.is_connected = false;
        for (name, lock) in &mut self.wanted {
            lock.asked = None;
            if std::mem::take(&mut lock.held) {
                mailbox.tell(SessionEvent::Lock { name: name.clone(), held: false });
            }
        }
    }

    pub(super) fn answered(
        &mut self,
        id: u64,
        name: String,
        result: &Payload,
        mailbox: &mut Mailbox,
    ) -> Result<(), serde_json::Error> {
        let result: serde_json::Value = serde_json::from_slice(result.as_bytes())?;
        if let Some(lock) = self.wanted.get_mut(&name).filter(|lock| lock.asked == Some(id)) {
            lock.asked = None;
            lock.steal = false;
            self.changed(name, result["locked"] == true, mailbox);
        }
        Ok(())
    }

    /// Does without the lock: a server that is read-only gives none, and is of use otherwise.
    pub(super) fn refused(&mut self, id: u64, name: &str, error: &str) {
        if let Some(lock) = self.wanted.get_mut(name).filter(|lock| lock.asked == Some(id)) {
            lock.asked = None;
            tracing::warn!(
                lock = name,
                error,
                "the server refuses the lock; it is asked for again on the next connection"
            );
        }
    }

    pub(super) fn changed(&mut self, name: String, held: bool, mailbox: &mut Mailbox) {
        if let Some(lock) = self.wanted.get_mut(&name)
            && lock.asked.is_none()
            && lock.held != held
        {
            lock.held = held;
            mailbox.tell(SessionEvent::Lock { name, held });
        }
    }
}

impl Lock {
    fn ask(&mut self, name: &str, mailbox: &mut Mailbox) {
        let method = if self.steal { "steal" } else { "lock" };
        self.asked = Some(mailbox.ask(method, &json!([name]), Pending::Lock(name.to_owned())));
    }
}
