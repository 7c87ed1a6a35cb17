//! What a session finds out about a server before it uses it, and what makes it leave one.

use serde_json::json;

use super::{Hangup, Pending, SERVER_MONITOR, Session, State};

/// The columns of `_Server`'s `Database` that decide whether a server is of use (ovsdb-server(5)).
#[derive(Debug)]
pub(super) struct ServerStatus {
    model: String,
    connected: bool,
    leader: bool,
}

impl Session {
    /// Asks for everything that has to be known.
    pub(super) fn greet(&mut self) {
        let database = self.config.database.clone();
        let this_database = json!([["name", "==", database]]);
        self.send("set_db_change_aware", &json!([true]), Pending::ChangeAware);
        let columns = json!(["name", "model", "connected", "leader"]);
        self.send(
            "monitor_cond",
            &json!(["_Server", SERVER_MONITOR, { "Database": [{ "columns": columns, "where": this_database }] }]),
            Pending::Server,
        );
        self.ask_log_end();
        self.send("get_schema", &json!([database]), Pending::Schema);
    }

    /// Begins to monitor, or to pause, once everything about the server is known.
    pub(super) fn greeted(&mut self) -> Result<(), Hangup> {
        let waiting =
            self.pending.values().any(|p| matches!(p, Pending::Server | Pending::LogEnd | Pending::Schema));
        if waiting || self.state != State::Greeting {
            return Ok(());
        }
        if self.paused {
            self.be_paused();
            return Ok(());
        }
        self.queue()
    }

    /// Takes an update of `_Server`'s table `Database`, of which only the row of our database is monitored.
    pub(super) fn server_changed(&mut self, updates: &str) -> Result<(), Hangup> {
        let updates: serde_json::Value = serde_json::from_str(updates)?;
        for update in updates["Database"].as_object().into_iter().flat_map(|rows| rows.values()) {
            let Some((kind, row)) = update.as_object().and_then(|update| update.iter().next()) else {
                continue;
            };
            if kind == "delete" {
                return Err(Hangup::Canceled);
            }
            // Omitted columns of a new row have their default values.
            let status = self.server.get_or_insert_with(|| ServerStatus {
                model: String::new(),
                connected: false,
                leader: false,
            });
            if let Some(model) = row["model"].as_str() {
                model.clone_into(&mut status.model);
            }
            status.connected = row["connected"].as_bool().unwrap_or(status.connected);
            status.leader = row["leader"].as_bool().unwrap_or(status.leader);
        }
        match &self.server {
            Some(server) if !server.connected => Err(Hangup::CutOff { model: server.model.clone() }),
            Some(server) if self.config.leader_only && !server.leader => Err(Hangup::NotLeader),
            _ => Ok(()),
        }
    }
}
