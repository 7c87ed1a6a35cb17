//! Heartbeat: the writes to this chassis' row that `liveness.rs` decides on, one agent of a server after another.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ovsdb_client::{Handle, Operation, Uuid};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use super::Ovn;
use crate::{
    health::Reachability,
    inventory::{
        liveness::{Step, is_hidden},
        rows::{ChassisPrivate, SbGlobal},
    },
};

/// Timeout of a write to the Southbound, and of a check that Nova is there.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);
/// Lock of a server, by which the agents that are connected to it write one after another. A follower has the leader
/// decide on each write, and the leader refuses all that did not know of the last one, to be tried again: with hundreds
/// of writes under way a cluster does nothing else (raft_handle_execute_command_request() in Open vSwitch's
/// ovsdb/raft.c).
const HEARTBEAT_LOCK: &str = "metadata_agent_heartbeat";
/// Time without the lock after which an agent writes all the same.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(20);

impl Ovn {
    /// Writes this chassis' row if it is time to; returns when to ask again. Neither writing nor failing to is waited
    /// for: the row itself tells what came of it.
    pub(super) fn heartbeat(&mut self) -> Option<Instant> {
        if !self.able || self.ovs.down.is_some() || self.southbound.down.is_some() {
            return None;
        }
        let chassis = self.chassis.as_ref()?;
        let table = self.southbound.client.table::<ChassisPrivate>();
        let (uuid, row) = table.iter().find(|(_, row)| row.name == chassis.name)?;
        let nb_cfg = self.southbound.client.table::<SbGlobal>().iter().next()?.1.nb_cfg;
        if is_hidden(&row.external_ids) != self.told_hidden {
            self.told_hidden = !self.told_hidden;
            if self.told_hidden {
                warn!(
                    chassis = row.name,
                    "Neutron (2025.2 and later) lists this chassis' neutron-ovn-agent and not this agent, by the key \
                     neutron:ovn-neutron-agent-id of the row in Chassis_Private; if that agent is gone for good, remove \
                     the key"
                );
            }
        }
        match self.liveness.step(Instant::now(), chassis, &row.external_ids, nb_cfg) {
            Step::Rest => None,
            Step::Wait(at) => Some(at),
            // It is repeated if nothing comes of the one that is under way.
            Step::Write(_) if self.beat.as_ref().is_some_and(|beat| !beat.is_finished()) => self.heartbeat(),
            Step::Write(keys) => {
                // Another one than the last write's: what came too late for that is nothing to this one.
                self.locked = Arc::default();
                let (handle, locked) = (self.southbound.client.handle(), self.locked.clone());
                let (operation, nova) = (set_keys(*uuid, keys), self.nova.clone());
                self.beat = Some(tokio::spawn(async move {
                    match beat(&handle, &locked, &nova, operation).await {
                        Ok(()) => debug!(nb_cfg, "told Neutron that the agent is alive"),
                        Err(error) => warn!(error, "Neutron is not told that the agent is alive"),
                    }
                }));
                self.heartbeat()
            }
        }
    }
}

/// Writes when it is this agent's turn; why that failed, if so.
async fn beat(
    handle: &Handle,
    locked: &Notify,
    nova: &Reachability,
    operation: Operation,
) -> Result<(), String> {
    // An agent that cannot reach Nova is up, but of no use to anybody.
    timeout(HEARTBEAT_TIMEOUT, nova.check())
        .await
        .unwrap_or_else(|_| Err("nova does not answer in time".into()))?;
    handle.lock(HEARTBEAT_LOCK).await.map_err(|error| error.to_string())?;
    // Whoever holds it for ever keeps nobody from writing.
    let _late = timeout(HEARTBEAT_PATIENCE, locked.notified()).await;
    let written = timeout(HEARTBEAT_TIMEOUT, handle.transact(vec![operation])).await;
    let unlocked = handle.unlock(HEARTBEAT_LOCK).await;
    match written {
        Ok(Ok(_)) => unlocked.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// Sets keys of a chassis' external_ids and leaves the others: an insertion does not change a key that is there.
fn set_keys(chassis: Uuid, keys: BTreeMap<String, String>) -> Operation {
    let keys_alone = keys.keys().cloned().collect::<Vec<_>>();
    let ids = ChassisPrivate::external_ids;
    Operation::mutate_row(chassis, [ids.delete_keys(keys_alone), ids.insert(keys)])
}
