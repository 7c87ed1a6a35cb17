//! Conditions of a monitor: sent one request at a time, in turn with other clients, and in force once they are answered.

use serde_json::json;

use super::super::{Context, DATA_MONITOR, Pending, SessionEvent};
use super::{Monitor, State};
use crate::condition::Conditions;
use crate::replica::Dialect;

impl Monitor {
    /// Sets the conditions of all tables, which are of `generation`.
    pub(in crate::session) fn set_conditions(
        &mut self,
        generation: u64,
        conditions: Vec<Conditions>,
        context: &mut Context<'_>,
    ) {
        self.resume.generation = generation;
        self.resume.wanted = conditions;
        self.send_conditions(context);
    }

    /// Tells of a clause that the server's schema does not allow.
    pub(super) fn tell_left_out(
        &self,
        table: &'static str,
        conditions: &Conditions,
        context: &mut Context<'_>,
    ) {
        if let Err((column, problem)) = conditions.check(self.table_schema(table)) {
            context.mailbox.tell(SessionEvent::ClauseLeftOut { table, column, problem });
        }
    }

    /// Sends the conditions that the server does not know yet. One request at a time, each with the latest ones: what
    /// changes in between is never sent.
    pub(super) fn send_conditions(&mut self, context: &mut Context<'_>) {
        let State::Monitoring(dialect) = self.state else { return };
        if self.resume.in_flight.is_some()
            || self.resume.generation == self.resume.in_force
            || self.resume.refused == Some(self.resume.generation)
        {
            return;
        }
        let mut requests = serde_json::Map::new();
        let mut changed = Vec::new();
        for (index, table) in context.config.tables.iter().enumerate() {
            let (wanted, acknowledged) = (&self.resume.wanted[index], &self.resume.acknowledged[index]);
            if self.resume.columns[index].is_some()
                && (wanted != acknowledged || self.resume.refused.is_some())
            {
                changed.push((table.name, wanted));
                requests.insert(
                    table.name.to_owned(),
                    json!([{ "where": wanted.json(self.table_schema(table.name)) }]),
                );
            }
        }
        let is_work = !requests.is_empty() && dialect != Dialect::Monitor;
        if is_work && !self.turn.take(context) {
            return;
        }
        for (table, wanted) in changed {
            self.tell_left_out(table, wanted, context);
        }
        self.resume.in_flight = Some((self.resume.generation, self.resume.wanted.clone()));
        if is_work {
            let params = json!([DATA_MONITOR, DATA_MONITOR, requests]);
            self.tally.condition_changes.add(1);
            context.mailbox.ask("monitor_cond_change", &params, Pending::ConditionChange);
        } else {
            self.conditions_answered(context);
        }
    }

    /// The rows that a change brings or takes were sent before the answer (ovsdb-server(7), section 4.1.13).
    pub(in crate::session) fn conditions_answered(&mut self, context: &mut Context<'_>) {
        self.turn.end(context);
        if let Some((generation, conditions)) = self.resume.in_flight.take() {
            self.resume.acknowledged = conditions;
            self.resume.refused = None;
            if self.resume.in_force != generation {
                self.resume.in_force = generation;
                context.mailbox.tell(SessionEvent::ConditionInForce(generation));
            }
        }
        self.send_conditions(context);
    }

    /// A connection is not the worse for conditions that it does not take. The next ones are sent for all tables.
    pub(in crate::session) fn conditions_refused(&mut self, error: String, context: &mut Context<'_>) {
        self.turn.end(context);
        if let Some((generation, _)) = self.resume.in_flight.take() {
            self.resume.refused = Some(generation);
            context.mailbox.tell(SessionEvent::ConditionRefused { generation, error });
        }
        self.send_conditions(context);
    }
}
