//! Locks: wanted across connections, held on one (RFC 7047, section 4.1.8).

use serde_json::json;

use super::{Pending, Session, SessionEvent, State};
use crate::message::Payload;

/// A lock that is wanted.
#[derive(Debug, Default)]
pub(super) struct Lock {
    held: bool,
    /// The latest request for it, until it is answered. What the server says before is about an earlier one that was
    /// given up since.
    asked: Option<u64>,
}

impl Session {
    /// Wants a lock, now and after every reconnection, by force if `steal`.
    pub fn lock(&mut self, name: &str, steal: bool) {
        if let Some(lock) = self.locks.get(name) {
            if lock.held {
                return;
            }
            // A server takes no second request otherwise, whether it still knows of the first or the lock was stolen.
            self.unlock(name);
        }
        self.locks.insert(name.to_owned(), Lock::default());
        if self.state != State::Disconnected {
            self.ask_for_lock(name, if steal { "steal" } else { "lock" });
        }
    }

    /// Gives a lock up.
    pub fn unlock(&mut self, name: &str) {
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
            self.ask_for_lock(&name, "lock");
        }
    }

    fn ask_for_lock(&mut self, name: &str, method: &'static str) {
        let id = self.send(method, &json!([name]), Pending::Lock(name.to_owned()));
        if let Some(lock) = self.locks.get_mut(name) {
            lock.asked = Some(id);
        }
    }

    /// Without a connection nothing is held.
    pub(super) fn lose_locks(&mut self) {
        for (name, lock) in &mut self.locks {
            if std::mem::take(lock).held {
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
            self.lock_changed(name, result["locked"] == true);
        }
        Ok(())
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
