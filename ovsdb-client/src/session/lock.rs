//! Locks: wanted across connections, held on one (RFC 7047, section 4.1.8).

use serde_json::json;

use super::{Pending, Session, SessionEvent, State};
use crate::message::Payload;

/// A lock that is wanted.
#[derive(Debug)]
pub(super) struct Lock {
    /// Whether it is still to be taken by force. That is done once: clients that took it from each other on every
    /// connection would never leave it alone.
    steal: bool,
    held: bool,
    /// The latest request for it, until it is answered. What the server says before is about an earlier one that was
    /// given up since.
    asked: Option<u64>,
}

impl Session {
    /// Wants a lock, now and after every reconnection, by force if `steal`. Force is used once: after a reconnection the
    /// lock is waited for, unless no server has answered to the force yet.
    pub(crate) fn lock(&mut self, name: &str, steal: bool) {
        if let Some(lock) = self.locks.get(name) {
            if lock.held {
                return;
            }
            // A server takes no second request otherwise, whether it still knows of the first or the lock was stolen.
            self.unlock(name);
        }
        self.locks.insert(name.to_owned(), Lock { steal, held: false, asked: None });
        if self.state != State::Disconnected {
            self.ask_for_lock(name);
        }
    }

    /// Gives a lock up.
    pub(crate) fn unlock(&mut self, name: &str) {
        if let Some(lock) = self.locks.remove(name) {
            if lock.held {
                self.events.push_back(SessionEvent::Lock { name: name.to_owned(), held: false });
            }
            if self.state != State::Disconnected {
                self.send("unlock", &json!([name]), Pending::Unlock);
            }
        }
    }

    /// Asks a new server for everything that is wanted.
    pub(super) fn want_locks(&mut self) {
        for name in self.locks.keys().cloned().collect::<Vec<_>>() {
            self.ask_for_lock(&name);
        }
    }

    fn ask_for_lock(&mut self, name: &str) {
        let method = if self.locks.get(name).is_some_and(|lock| lock.steal) { "steal" } else { "lock" };
        let id = self.send(method, &json!([name]), Pending::Lock(name.to_owned()));
        if let Some(lock) = self.locks.get_mut(name) {
            lock.asked = Some(id);
        }
    }

    /// Without a connection nothing is held.
    pub(super) fn lose_locks(&mut self) {
        for (name, lock) in &mut self.locks {
            lock.asked = None;
            if std::mem::take(&mut lock.held) {
                self.events.push_back(SessionEvent::Lock { name: name.clone(), held: false });
            }
        }
    }

    pub(super) fn lock_answered(
        &mut self,
        id: u64,
        name: String,
        result: &Payload,
    ) -> Result<(), serde_json::Error> {
        let result: serde_json::Value = serde_json::from_slice(result.as_bytes())?;
        if let Some(lock) = self.locks.get_mut(&name).filter(|lock| lock.asked == Some(id)) {
            lock.asked = None;
            lock.steal = false;
            self.lock_changed(name, result["locked"] == true);
        }
        Ok(())
    }

    /// Does without the lock: a server that is read-only gives none, and is of use otherwise.
    pub(super) fn lock_refused(&mut self, id: u64, name: &str, error: &str) {
        if let Some(lock) = self.locks.get_mut(name).filter(|lock| lock.asked == Some(id)) {
            lock.asked = None;
            tracing::warn!(
                lock = name,
                error,
                "the server refuses the lock; it is asked for again on the next connection"
            );
        }
    }

    pub(super) fn lock_changed(&mut self, name: String, held: bool) {
        if let Some(lock) = self.locks.get_mut(&name)
            && lock.asked.is_none()
            && lock.held != held
        {
            lock.held = held;
            self.events.push_back(SessionEvent::Lock { name, held });
        }
    }
}
