//! Numbers of each port, and the node's, for an operator who looks at all of them at once.
use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::{sync::oneshot, time::timeout};

use super::{Control, evidence::TELLING};
use crate::{
    admin::AdminAnswer,
    health::DataPlane,
    link::{Inquiry, MOST_TALLIES, PortNumber, PortTally, Told},
    reconcile::PortLine,
};

impl Control {
    /// Answers with the numbers of all ports, without waiting for the guest-facing process.
    pub(super) fn answer_top(&self, answer: oneshot::Sender<AdminAnswer>) {
        let lines = self.reconciler.lines();
        let (pending, unserved) = (self.pending(), self.unserved.len() + self.reconciler.unattached());
        let missing: Vec<String> = pending.into_iter().map(|problem| problem.text).collect();
        let (guests, restarts) = (self.guests.clone(), self.guests.restarts());
        tokio::spawn(async move {
            let tallies = timeout(2 * TELLING, tallies(&*guests)).await.ok().flatten();
            let is_complete = tallies.is_some();
            let tallies = tallies.unwrap_or_default();
            let ports: Vec<Value> = lines.iter().map(|line| port(line, &tallies)).collect();
            // Whoever asked may be gone.
            let _ = answer.send(AdminAnswer::json(&json!({
                "missing": missing,
                "unserved": unserved,
                "restarts": restarts,
                "complete": is_complete,
                "ports": ports,
            })));
        });
    }
}

fn port(line: &PortLine, tallies: &HashMap<PortNumber, PortTally>) -> Value {
    let tally = tallies.get(&line.number);
    let (connections, totals) =
        tally.map_or_else(Default::default, |tally| (tally.connections, tally.totals));
    json!({
        "port": line.port,
        "tap": line.tap,
        "instance": line.instance,
        "connections": connections,
        "requests": totals.requests,
        "refused": totals.refused,
        "limited": totals.limited,
        "bytes": totals.bytes,
        "nova_us": totals.nova_us,
        "dropped": line.dropped,
    })
}

/// Sums of all ports that the guest-facing process knows; nothing if it does not answer.
async fn tallies(guests: &dyn DataPlane) -> Option<HashMap<PortNumber, PortTally>> {
    let (mut all, mut after) = (HashMap::new(), None);
    loop {
        let Some(Told::Tallies(tallies)) = guests.inquire(Inquiry::Tallies { after }, TELLING).await else {
            return None;
        };
        let is_last = tallies.len() < MOST_TALLIES;
        // It is a guest's word: without one that is higher this would not end. The highest is bounded where that is checked.
        let last = tallies.iter().map(|tally| tally.port.index).max();
        all.extend(tallies.into_iter().map(|tally| (tally.port, tally)));
        if is_last || last <= after {
            return Some(all);
        }
        after = last;
    }
}
