//! The first contents of tables with conditions, asked for in the way that costs a server least.
//!
//! Of a table whose rows are to come with the answer to a monitor request, a server first copies every row, and then looks
//! which ones are wanted (ovsdb_monitor_get_initial() in Open vSwitch's ovsdb/monitor.c). The rows that a change of
//! conditions brings it finds in the table itself: for those of one host among 100,000 that takes 52 ms of its only
//! thread, and 175 ms the other way (3.1.0). So the monitor begins without the rows of such tables, conditions bring
//! them, and both messages together are the contents.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::monitor::{Contents, Monitor};
use super::{Context, DATA_MONITOR, Hangup, Pending, SessionConfig};
use crate::condition::Conditions;
use crate::message::Payload;
use crate::replica::Dialect;

/// The answer to a monitor request, until the rows that conditions bring are there.
#[derive(Debug)]
pub(super) struct Filling {
    contents: Payload,
    transaction: Uuid,
}

/// Tables of an update, by name.
type Tables<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

impl Monitor {
    /// The tables that are filled by conditions, and these.
    fn filled_tables<'a>(
        &'a self,
        config: &'a SessionConfig,
    ) -> impl Iterator<Item = (&'static str, &'a Conditions)> {
        let tables = config.tables.iter().zip(&self.resume.columns).zip(&self.resume.acknowledged);
        tables
            .filter(|((_, columns), conditions)| {
                columns.is_some() && matches!(conditions, Conditions::AnyOf(_))
            })
            .map(|((table, _), conditions)| (table.name, conditions))
    }

    /// Takes an answer that is not the difference to an earlier transaction. Tells whether it is complete; if not, what is
    /// missing has been asked for.
    pub(super) fn fill(
        &mut self,
        contents: Payload,
        transaction: Uuid,
        context: &mut Context<'_>,
    ) -> Option<Payload> {
        if self.filled_tables(context.config).next().is_none() {
            self.resume.transaction = transaction;
            return Some(contents);
        }
        if !self.resume.transaction.is_nil() {
            // The server has the conditions, and would not send the rows for having them once more.
            self.resume.transaction = Uuid::nil();
            context.mailbox.ask("monitor_cancel", &json!([DATA_MONITOR]), Pending::StartOver);
            return None;
        }
        let requests: serde_json::Map<_, _> = self
            .filled_tables(context.config)
            .map(|(name, conditions)| {
                (name.to_owned(), json!([{ "where": conditions.json(self.table_schema(name)) }]))
            })
            .collect();
        self.filling = Some(Filling { contents, transaction });
        self.tally.condition_changes.add(1);
        context.mailbox.ask(
            "monitor_cond_change",
            &json!([DATA_MONITOR, DATA_MONITOR, requests]),
            Pending::Fill,
        );
        None
    }

    /// The monitor that could not resume has ended: all that came of it is void.
    pub(super) fn start_over(
        &mut self,
        result: Result<Payload, String>,
        context: &mut Context<'_>,
    ) -> Result<(), Hangup> {
        result.map_err(|error| Hangup::Refused { method: "monitor_cancel", error })?;
        self.deferred.clear();
        self.resume.begin_anew();
        self.request(Dialect::MonitorCondSince, context);
        Ok(())
    }

    /// The rows that conditions bring were sent before this answer, in one update; no other one has rows of these tables.
    /// Gives the contents, and the transaction that they and all that was deferred lead to.
    pub(super) fn filled(
        &mut self,
        result: Result<Payload, String>,
        context: &mut Context<'_>,
    ) -> Result<Option<(Contents, Uuid)>, Hangup> {
        result.map_err(|error| Hangup::Refused { method: "monitor_cond_change", error })?;
        let Some(Filling { contents, transaction }) = self.filling.take() else { return Ok(None) };
        let last = self.deferred.last().and_then(|(_, _, transaction)| *transaction).unwrap_or(transaction);
        let names: Vec<&str> = self.filled_tables(context.config).map(|(name, _)| name).collect();
        let mut merged = None;
        for (index, (updates, ..)) in self.deferred.iter().enumerate() {
            let rows: Tables<'_> = serde_json::from_slice(updates.as_bytes())?;
            if rows.keys().any(|table| names.contains(&table.as_ref())) {
                let mut tables: Tables<'_> = serde_json::from_slice(contents.as_bytes())?;
                tables.extend(rows);
                let text = serde_json::to_vec(&tables)?;
                let length = text.len();
                merged = Some((index, Payload::new(text, 0..length)));
                break;
            }
        }
        let contents = match merged {
            Some((index, merged)) => {
                self.deferred.remove(index);
                merged
            }
            None => contents,
        };
        Ok(Some((self.arrived(contents, true, Dialect::MonitorCondSince, context), last)))
    }
}
