//! Locks: wanted across connections, held on one (RFC 7047, section 4.1.8).

use serde_json::json;

use super::{Pending, Session, SessionEvent, State};

impl Session {
    /// Wants a lock, now and after every reconnection (RFC 7047, section 4.1.8), by force if `steal`.
    pub fn lock(&mut self, name: &str, steal: bool) {
        self.locks.entry(name.to_owned()).or_insert(false);
        if self.state != State::Disconnected {
            let method = if steal { "steal" } else { "lock" };
            self.send(method, &json!([name]), Pending::Lock(name.to_owned()));
        }
    }

    /// Gives a lock up.
    pub fn unlock(&mut self, name: &str) {
        if let Some(held) = self.locks.remove(name) {
            if held {
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
            self.send("lock", &json!([name]), Pending::Lock(name));
        }
    }

    /// Without a connection nothing is held.
    pub(super) fn lose_locks(&mut self) {
        for (name, held) in &mut self.locks {
            if std::mem::take(held) {
                self.events.push_back(SessionEvent::Lock { name: name.clone(), held: false });
            }
        }
    }

    pub(super) fn lock_changed(&mut self, name: String, now_held: bool) {
        if let Some(held) = self.locks.get_mut(&name)
            && *held != now_held
        {
            *held = now_held;
            self.events.push_back(SessionEvent::Lock { name, held: now_held });
        }
    }
}
