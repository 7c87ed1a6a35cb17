//! The source of ports and identities: the databases of an OVN chassis, or a file.
use std::{sync::Arc, time::Duration};

use tracing::{error, info};

use crate::{
    config::{Config, SourceOptions},
    explain::{DatabaseSeen, Evidence},
    health::{Problem, Reachability},
    inventory::{DatabaseStatus, Desired, HostLinks, Ovn, StaticInventory, Unserved},
    reconcile::Reconciler,
};

/// Period of the look whether a static inventory has changed.
const FILE_CHECK: Duration = Duration::from_secs(2);

/// Source of ports and identities.
#[derive(Debug)]
pub(super) enum PortSource {
    Ovn(Box<Ovn>),
    Static(StaticInventory),
}

impl PortSource {
    pub(super) fn open(config: &Config, nova: Arc<Reachability>) -> anyhow::Result<Self> {
        Ok(match &config.source {
            SourceOptions::Ovn { ovs, southbound, down_time, monitor_all, network_devices } => {
                let (ovs, southbound) = (ovs.as_ref().clone(), southbound.as_ref().clone());
                Self::Ovn(Box::new(Ovn::connect(
                    ovs,
                    southbound,
                    *down_time,
                    &config.state_dir,
                    *monitor_all,
                    *network_devices,
                    nova,
                )))
            }
            SourceOptions::Static(path) => Self::Static(StaticInventory::read(path)?),
        })
    }

    /// Waits for a change. May be cancelled.
    pub(super) async fn changed(&mut self) {
        match self {
            Self::Ovn(ovn) => ovn.changed().await,
            Self::Static(inventory) => {
                while !inventory.is_outdated() {
                    tokio::time::sleep(FILE_CHECK).await;
                }
                reread(inventory);
            }
        }
    }

    /// Takes what an operator changed by hand.
    pub(super) fn reload(&mut self) {
        match self {
            Self::Static(inventory) => reread(inventory),
            Self::Ovn(_) => info!("nothing to reload: the databases tell of every change"),
        }
    }

    /// Ports that should be served; nothing as long as that cannot be said.
    pub(super) fn desired(
        &mut self,
        links: &HostLinks,
        reconciler: &Reconciler,
    ) -> Option<(Desired, Unserved)> {
        match self {
            Self::Ovn(ovn) => ovn.desired(links.table(), |key| reconciler.served(key)),
            Self::Static(inventory) => Some(inventory.desired(links.table())),
        }
    }

    pub(super) fn set_able(&mut self, problems: &[Problem]) {
        match self {
            Self::Ovn(ovn) => ovn.set_able(problems),
            Self::Static(_) => {}
        }
    }

    pub(super) fn stop(&mut self) {
        match self {
            Self::Ovn(ovn) => ovn.stop(),
            Self::Static(_) => {}
        }
    }

    /// The databases and what they took, for the metrics.
    pub(super) fn databases(&self) -> Vec<DatabaseStatus> {
        match self {
            Self::Ovn(ovn) => ovn.databases().to_vec(),
            Self::Static(_) => Vec::new(),
        }
    }

    /// Both databases, if there are some, for who explains.
    pub(super) fn databases_seen(&self) -> Option<[DatabaseSeen; 2]> {
        match self {
            Self::Ovn(ovn) => Some(ovn.databases_seen()),
            Self::Static(_) => None,
        }
    }

    /// Evidence of the databases for each port.
    pub(super) fn evidence(&self) -> Vec<Evidence> {
        match self {
            Self::Ovn(ovn) => ovn.evidence(),
            Self::Static(_) => Vec::new(),
        }
    }

    pub(super) fn pending(&self) -> Vec<Problem> {
        match self {
            Self::Ovn(ovn) => ovn.pending(),
            Self::Static(_) => Vec::new(),
        }
    }
}

fn reread(inventory: &mut StaticInventory) {
    match inventory.reread() {
        Ok(()) => info!("inventory read again"),
        Err(error) => error!(%error, "the inventory has an error, what was read before stays in force"),
    }
}
