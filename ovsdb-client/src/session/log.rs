//! How far the log of a cluster was: a server that is not as far would take the replica back in time.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{Hangup, Pending, Session};

/// How often the index is read. It changes with every transaction of the cluster: to monitor it would bring a message for
/// each to clients that are interested in a few rows.
const INTERVAL: Duration = Duration::from_secs(60);

/// What is known of the log of the cluster.
#[derive(Debug, Default)]
pub(super) struct LogEnd {
    /// The cluster's id, and the greatest index that a server had.
    seen: Option<(Uuid, u64)>,
    /// When to read the index again on this connection.
    due: Option<Instant>,
    /// The attempts in a row that led to no server of use, from the first one on that was behind.
    useless: Option<usize>,
}

impl LogEnd {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Session {
    pub(super) fn ask_log_end(&mut self) {
        self.log_end.due = None;
        let select = json!({
            "op": "select", "table": "Database", "columns": ["cid", "index"],
            "where": [["name", "==", self.config.database]],
        });
        self.send("transact", &json!(["_Server", select]), Pending::LogEnd);
    }

    pub(super) fn check_log_end(&mut self, result: &[u8]) -> Result<(), Hangup> {
        let result: serde_json::Value = serde_json::from_slice(result)?;
        let row = &result[0]["rows"][0];
        let cluster = row["cid"][1].as_str().and_then(|cid| cid.parse().ok());
        let (Some(cluster), Some(index)) = (cluster, row["index"].as_u64()) else { return Ok(()) };
        match self.log_end.seen {
            Some((known, seen)) if known == cluster && index < seen => {
                self.log_end.useless.get_or_insert(0);
                Err(Hangup::Behind { index, seen })
            }
            _ => {
                self.log_end.seen = Some((cluster, index));
                self.log_end.due = self.last_received.map(|now| now + INTERVAL);
                Ok(())
            }
        }
    }

    /// An attempt is over. When no server of all is of use, and some are only because they are behind, then this is what
    /// the cluster has: it was restored from a backup.
    pub(super) fn count_attempt(&mut self) {
        self.log_end.due = None;
        if self.ready {
            self.log_end.useless = None;
        }
        let Some(useless) = &mut self.log_end.useless else { return };
        *useless += 1;
        if *useless >= self.config.servers {
            tracing::warn!(
                database = self.config.database,
                "no server has what was seen before, and all that can be reached are behind: the next one is taken as it \
                 is, as after the restoration of a backup"
            );
            self.log_end = LogEnd::default();
        }
    }
}
