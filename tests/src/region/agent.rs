//! The agent of a host, all of it that has no kernel: its sources, what they are asked for, and what follows from them.
//!
//! The kernel's state is what should be, at once; devices are there as soon as they are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_agent::{
    health::Reachability,
    inventory::{Desired, LinkTable, Ovn, Who},
};
use metadata_ebpf::map::PortKey;
use ovsdb_client::Config;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::vif::Vif;

/// Neutron's default (`agent_down_time`).
const DOWN_TIME: Duration = Duration::from_secs(75);

/// Settings of an agent.
#[derive(Debug)]
pub struct Settings {
    pub ovs: Config,
    pub southbound: Config,
    /// Folder in which it remembers identities.
    pub state: PathBuf,
    pub monitor_all: bool,
    pub nova: Arc<Reachability>,
}

/// An agent that runs, until it is dropped.
#[derive(Debug)]
pub struct Agent {
    links: watch::Sender<LinkTable>,
    serves: watch::Receiver<Serves>,
    questions: mpsc::Sender<oneshot::Sender<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

/// Ports that it serves.
#[derive(Debug, Clone, Default)]
pub struct Serves {
    ports: Arc<Desired>,
    unserved: usize,
    missing: usize,
}

impl Agent {
    /// Starts it on the runtime that is for agents, on a host where `plugged` is.
    pub fn start(runtime: &Handle, settings: Settings, plugged: &BTreeMap<u32, Vif>) -> Self {
        let links: LinkTable = plugged.iter().map(|(ifindex, vif)| (*ifindex, vif.tap())).collect();
        let (links, devices) = watch::channel(links);
        let (publish, serves) = watch::channel(Serves::default());
        let (questions, asked) = mpsc::channel(1);
        let task = runtime.spawn(run(settings, devices, publish, asked));
        Self { links, serves, questions, task }
    }

    /// A device appears.
    pub fn add_link(&self, vif: Vif) {
        self.links.send_modify(|links| drop(links.insert(vif.ifindex(), vif.tap())));
    }

    /// A device is gone.
    pub fn remove_link(&self, vif: Vif) {
        self.links.send_modify(|links| drop(links.remove(&vif.ifindex())));
    }

    /// Waits until it serves a port as that should be served.
    pub async fn await_served(&self, vif: Vif) -> Result<()> {
        let serves = |serves: &Serves| serves.check_one(vif).is_ok();
        self.serves.clone().wait_for(serves).await.map(drop).context("the agent ended")
    }

    pub async fn await_gone(&self, vif: Vif) -> Result<()> {
        let gone = |serves: &Serves| !serves.ports.keys().any(|key| key.ifindex == vif.ifindex());
        self.serves.clone().wait_for(gone).await.map(drop).context("the agent ended")
    }

    /// Waits until it serves exactly these.
    pub async fn await_all(&self, plugged: &BTreeMap<u32, Vif>) -> Result<()> {
        let serves = |serves: &Serves| serves.check(plugged).is_ok();
        self.serves.clone().wait_for(serves).await.map(drop).context("the agent ended")
    }

    /// Fails unless it serves exactly these.
    pub fn check(&self, plugged: &BTreeMap<u32, Vif>) -> Result<()> {
        self.serves.borrow().check(plugged)
    }

    /// The ports whose rows of the Southbound it has.
    pub async fn rows(&self) -> Result<BTreeSet<String>> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(answer).await.ok().context("the agent ended")?;
        answered.await.context("the agent ended")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Serves {
    fn check(&self, plugged: &BTreeMap<u32, Vif>) -> Result<()> {
        ensure!(self.missing == 0, "a database is missing");
        for vif in plugged.values() {
            self.check_one(*vif)?;
        }
        ensure!(
            self.ports.len() == plugged.len(),
            "it serves {} ports, not {}",
            self.ports.len(),
            plugged.len()
        );
        ensure!(self.unserved == 0, "{} ports are not served", self.unserved);
        Ok(())
    }

    fn check_one(&self, vif: Vif) -> Result<()> {
        let port = self.ports.get(&PortKey::tap(vif.ifindex(), 0));
        let port = port.with_context(|| format!("port {} is not served", vif.name()))?;
        let Who::Known(identity) = &port.who else {
            anyhow::bail!("nobody knows who is behind port {}: {:?}", vif.name(), port.who);
        };
        let addresses = [vif.address(), vif.second_address()];
        let is_right = port.port == vif.name()
            && port.device.name == vif.tap()
            && port.own == addresses
            && identity.port == vif.name()
            && identity.instance == vif.instance()
            && identity.project == vif.project()
            && identity.network == vif.network()
            && identity.fixed_ips == addresses;
        ensure!(is_right, "port {} is served as {port:?}", vif.name());
        Ok(())
    }
}

/// Loop of `metadata_agent::control` over its source, without what that does to the kernel.
async fn run(
    settings: Settings,
    mut devices: watch::Receiver<LinkTable>,
    publish: watch::Sender<Serves>,
    mut questions: mpsc::Receiver<oneshot::Sender<BTreeSet<String>>>,
) {
    let Settings { ovs, southbound, state, monitor_all, nova } = settings;
    let mut source = Ovn::connect(ovs, southbound, DOWN_TIME, &state, monitor_all, true, nova);
    loop {
        tokio::select! {
            () = source.changed() => {}
            Ok(()) = devices.changed() => {}
            Some(answer) = questions.recv() => {
                // Who asked may have stopped waiting.
                let _ = answer.send(source.logical_ports().map(str::to_owned).collect());
                continue;
            }
        }
        source.set_able(&[]);
        let links = devices.borrow_and_update().clone();
        let served = publish.borrow().ports.clone();
        let served = |key| served.get(&key).map(|port| port.port.as_str());
        let Some((ports, unserved)) = source.desired(&links, served) else { continue };
        let missing = source.pending().len();
        publish.send_replace(Serves { ports: Arc::new(ports), unserved: unserved.len(), missing });
    }
}
