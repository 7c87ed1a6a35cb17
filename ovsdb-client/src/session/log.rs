//! Index of the cluster's log: a server that is not as far would take the replica back in time.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::mailbox::Mailbox;
use super::{Hangup, Pending, SessionConfig};

/// Interval at which the index is read. It changes with every transaction of the cluster: to monitor it would bring a
/// message for each to clients that are interested in a few rows.
const INTERVAL: Duration = Duration::from_secs(60);

/// Time for which no server has to be of use, and some only because they are behind, until that is taken for what the
/// cluster has. An election takes seconds, ten or more where slow disks need a long timer, and a follower that comes
/// back has to catch up: to take it meanwhile is to go back in time. The number of attempts alone says little, as there
/// may be several servers behind one address.
const PATIENCE: Duration = Duration::from_secs(30);

/// Knowledge of the cluster's log.
#[derive(Debug, Default)]
pub(super) struct LogEnd {
    /// The cluster's id, and the greatest index that a server had.
    seen: Option<(Uuid, u64)>,
    /// Time to read the index again on this connection.
    due: Option<Instant>,
    useless: Option<Useless>,
}

/// The attempts in a row that led to no server of use, from the first one on that was behind.
#[derive(Debug)]
struct Useless {
    since: Instant,
    /// Number of those attempts that are over.
    count: usize,
}

impl LogEnd {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn ask(&mut self, config: &SessionConfig, mailbox: &mut Mailbox) {
        self.due = None;
        let select = json!({
            "op": "select", "table": "Database", "columns": ["cid", "index"],
            "where": [["name", "==", config.database]],
        });
        mailbox.ask("transact", &json!(["_Server", select]), Pending::LogEnd);
    }

    pub(super) fn check(
        &mut self,
        config: &SessionConfig,
        result: &[u8],
        now: Option<Instant>,
    ) -> Result<(), Hangup> {
        let result: serde_json::Value = serde_json::from_slice(result)?;
        let row = &result[0]["rows"][0];
        let cluster = row["cid"][1].as_str().and_then(|cid| cid.parse().ok());
        let (Some(cluster), Some(index)) = (cluster, row["index"].as_u64()) else { return Ok(()) };
        let Some(now) = now else { return Ok(()) };
        if let Some((known, seen)) = self.seen
            && known == cluster
            && index < seen
        {
            let useless = self.useless.get_or_insert(Useless { since: now, count: 0 });
            if useless.count < config.servers || now.duration_since(useless.since) < PATIENCE {
                return Err(Hangup::Behind { index, seen });
            }
            tracing::warn!(
                database = config.database,
                index,
                seen,
                "all servers that can be reached are behind: this one is taken as it is, as after the restoration of a \
                 backup"
            );
            self.useless = None;
        }
        self.seen = Some((cluster, index));
        self.due = Some(now + INTERVAL);
        Ok(())
    }

    /// An attempt is over. One that led to a server of use ends the round.
    pub(super) fn attempt_ended(&mut self, was_of_use: bool) {
        self.due = None;
        if was_of_use {
            self.useless = None;
        }
        if let Some(useless) = &mut self.useless {
            useless.count += 1;
        }
    }
}
