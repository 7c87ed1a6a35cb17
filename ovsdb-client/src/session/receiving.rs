//! Messages of the server's: each is given to the part of the session that it is for.

use std::time::Instant;

use super::{
    Context, DATA_MONITOR, Hangup, Pending, SERVER_MONITOR, Session, SessionEvent, TurnConfig, context,
    monitor,
};
use crate::error::{Error, describe};
use crate::message::{Envelope, Payload};

impl Session {
    /// Takes a complete message. After an error the connection has to be closed.
    pub(crate) fn receive(&mut self, now: Instant, message: Vec<u8>) -> Result<(), Hangup> {
        self.activity(now);
        let envelope: Envelope<'_> = serde_json::from_slice(&message)?;
        let Some(method) = &envelope.method else {
            let Some(id) = envelope.id.and_then(|id| id.get().parse().ok()) else { return Ok(()) };
            let Some(pending) = self.mailbox.take(id) else { return Ok(()) };
            let result = match (envelope.error, envelope.result) {
                (Some(error), _) => Err(describe(error.get())),
                (None, Some(result)) => Ok(Payload::range_of(&message, result)),
                (None, None) => Ok(0..0),
            };
            let result = result.map(|range| Payload::new(message, range));
            return self.answered(id, pending, result);
        };
        if let Some(id) = envelope.id {
            self.mailbox.answer(method, id, envelope.params);
            return Ok(());
        }
        let Some(params) = envelope.params else { return Ok(()) };
        match method.as_ref() {
            "update" | "update2" | "update3" => {
                let update = monitor::Notification::read(method, params.get())?;
                if update.monitor == SERVER_MONITOR {
                    return self.server.changed(&self.config, update.updates.get());
                }
                if update.monitor != DATA_MONITOR {
                    return Ok(());
                }
                let range = Payload::range_of(&message, update.updates);
                let (dialect, transaction) = (update.dialect, update.transaction);
                let updates = Payload::new(message, range);
                self.monitor.updated(updates, dialect, transaction, context!(self))
            }
            "monitor_canceled" => {
                let (monitor,): (serde_json::Value,) = serde_json::from_str(params.get())?;
                if monitor == DATA_MONITOR { Err(Hangup::Canceled) } else { Ok(()) }
            }
            // RFC 7047, sections 4.1.9 and 4.1.10.
            "locked" | "stolen" => {
                let (name,): (String,) = serde_json::from_str(params.get())?;
                if TurnConfig::is_of(&self.config, &name) {
                    return if method == "locked" { self.turn_came() } else { Ok(()) };
                }
                self.locks.changed(name, method == "locked", &mut self.mailbox);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn answered(&mut self, id: u64, pending: Pending, result: Result<Payload, String>) -> Result<(), Hangup> {
        let last_received = self.silence.last_received();
        if pending.is_step()
            && let (Some(now), false) = (last_received, self.ready)
        {
            self.greeting.restart(now);
        }
        match (pending, result) {
            // Servers before Open vSwitch 2.9 know neither change awareness nor the database _Server.
            (Pending::Probe | Pending::ChangeAware | Pending::Unlock, _) => Ok(()),
            (Pending::Server, Ok(contents)) => {
                self.server.answered(&self.config, contents.as_bytes())?;
                self.greeted()
            }
            (Pending::LogEnd, Ok(result)) => {
                self.log_end.check(&self.config, result.as_bytes(), last_received)?;
                self.greeted()
            }
            (Pending::Server | Pending::LogEnd, Err(_)) => self.greeted(),
            (Pending::Schema, Ok(schema)) => {
                self.monitor.set_schema(serde_json::from_slice(schema.as_bytes())?);
                self.greeted()
            }
            (Pending::Schema, Err(error)) => {
                Err(Hangup::NoDatabase { database: self.config.database.clone(), error })
            }
            (Pending::Monitor(dialect), result) => {
                match self.monitor.answered(dialect, result, context!(self))? {
                    Some(contents) => self.publish(contents),
                    None => Ok(()),
                }
            }
            (Pending::Fill, result) => {
                let Some((contents, last)) = self.monitor.filled(result, context!(self))? else {
                    return Ok(());
                };
                self.publish(contents)?;
                // What came before those rows is told after them.
                self.monitor.resume.transaction = last;
                Ok(())
            }
            (Pending::StartOver, result) => self.monitor.start_over(result, context!(self)),
            // What is not locked yet is told of later.
            (Pending::Turn, Ok(result)) => {
                let result: serde_json::Value = serde_json::from_slice(result.as_bytes())?;
                if result["locked"] == true { self.turn_came() } else { Ok(()) }
            }
            (Pending::Turn, Err(error)) => {
                tracing::debug!(error, "the server gives no turns");
                self.turn_came()
            }
            (Pending::ConditionChange, Ok(_)) => {
                self.monitor.conditions_answered(context!(self));
                Ok(())
            }
            (Pending::ConditionChange, Err(error)) => {
                self.monitor.conditions_refused(error, context!(self));
                Ok(())
            }
            (Pending::Cancel, result) => self.monitor.cancel_answered(result, context!(self)),
            (Pending::Lock(name), Ok(result)) => {
                Ok(self.locks.answered(id, name, &result, &mut self.mailbox)?)
            }
            (Pending::Lock(name), Err(error)) => {
                self.locks.refused(id, &name, &error);
                Ok(())
            }
            (Pending::User(method), result) => {
                let result = result.map_err(|error| Error::Refused { method, error });
                self.mailbox.tell(SessionEvent::Reply { id, result });
                Ok(())
            }
        }
    }
}
