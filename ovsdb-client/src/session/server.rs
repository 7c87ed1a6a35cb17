//! State of a server that a session checks before it uses the server, and the reasons to leave one.

use serde_json::json;

use super::mailbox::Mailbox;
use super::{Hangup, Pending, SERVER_MONITOR, SessionConfig};

/// The columns of `_Server`'s `Database` that decide whether a server is of use (ovsdb-server(5)).
#[derive(Debug)]
struct Status {
    model: String,
    connected: bool,
    leader: bool,
}

/// Knowledge of the server.
#[derive(Debug, Default)]
pub(super) struct Server {
    status: Option<Status>,
}

impl Server {
    /// Asks for everything that has to be known, but for the schema.
    pub(super) fn ask(config: &SessionConfig, mailbox: &mut Mailbox) {
        let this_database = json!([["name", "==", config.database]]);
        mailbox.ask("set_db_change_aware", &json!([true]), Pending::ChangeAware);
        let columns = json!(["name", "model", "connected", "leader"]);
        mailbox.ask(
            "monitor_cond",
            &json!(["_Server", SERVER_MONITOR, { "Database": [{ "columns": columns, "where": this_database }] }]),
            Pending::Server,
        );
    }

    pub(super) fn disconnected(&mut self) {
        self.status = None;
    }

    /// Takes the first contents of `_Server`'s table `Database`, which have to have our database.
    pub(super) fn answered(&mut self, config: &SessionConfig, contents: &[u8]) -> Result<(), Hangup> {
        self.changed(config, &String::from_utf8_lossy(contents))?;
        if self.status.is_none() {
            let database = config.database.clone();
            return Err(Hangup::NoDatabase { database, error: "not in the list of its databases".into() });
        }
        Ok(())
    }

    /// Takes an update of `_Server`'s table `Database`, of which only the row of our database is monitored.
    pub(super) fn changed(&mut self, config: &SessionConfig, updates: &str) -> Result<(), Hangup> {
        let updates: serde_json::Value = serde_json::from_str(updates)?;
        for update in updates["Database"].as_object().into_iter().flat_map(|rows| rows.values()) {
            let Some((kind, row)) = update.as_object().and_then(|update| update.iter().next()) else {
                continue;
            };
            if kind == "delete" {
                return Err(Hangup::Canceled);
            }
            // Omitted columns of a new row have their default values.
            let status = self.status.get_or_insert_with(|| Status {
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
        match &self.status {
            Some(status) if !status.connected => Err(Hangup::CutOff { model: status.model.clone() }),
            Some(status) if config.leader_only && !status.leader => Err(Hangup::NotLeader),
            _ => Ok(()),
        }
    }
}
