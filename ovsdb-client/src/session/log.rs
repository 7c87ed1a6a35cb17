//! How far the log of a cluster was: a server that is not as far would take the replica back in time.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{Hangup, Pending, Session};

/// How often the index is read. It changes with every transaction of the cluster: to monitor it would bring a message for
/// each to clients that are interested in a few rows.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long no server has to be of use, and some only because they are behind, until that is taken for what the cluster
/// has. An election takes seconds, ten or more where slow disks need a long timer, and a follower that comes back has to
/// catch up: to take it meanwhile is to go back in time. The number of attempts alone says little, as there may be
/// several servers behind one address.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of the log of the cluster.
#[derive(Debug, Default)]
pub(super) struct LogEnd {
    /// The cluster's id, and the greatest index that a server had.
    seen: Option<(Uuid, u64)>,
    /// When to read the index again on this connection.
    due: Option<Instant>,
    useless: Option<Useless>,
}

/// The attempts in a row that led to no server of use, from the first one on that was behind.
#[derive(Debug)]
struct Useless {
    since: Instant,
    /// How many of them are over.
    count: usize,
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
        let Some(now) = self.last_received else { return Ok(()) };
        if let Some((known, seen)) = self.log_end.seen
            && known == cluster
            && index < seen
        {
            let useless = self.log_end.useless.get_or_insert(Useless { since: now, count: 0 });
            if useless.count < self.config.servers || now.duration_since(useless.since) < PATIENCE {
                return Err(Hangup::Behind { index, seen });
            }
            tracing::warn!(
                database = self.config.database,
                index,
                seen,
                "all servers that can be reached are behind: this one is taken as it is, as after the restoration of a \
                 backup"
            );
            self.log_end.useless = None;
        }
        self.log_end.seen = Some((cluster, index));
        self.log_end.due = Some(now + INTERVAL);
        Ok(())
    }

    /// An attempt is over. One that led to a server of use ends the round.
    pub(super) fn count_attempt(&mut self) {
        self.log_end.due = None;
        if self.ready {
            self.log_end.useless = None;
        }
        if let Some(useless) = &mut self.log_end.useless {
            useless.count += 1;
        }
    }
}
