//! A region at work: its servers, the control planes of all its hosts, and what each host should serve.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_agent::{
    config::{self, Place, SourceOptions},
    health::Reachability,
    nova::Dialler,
};
use ovsdb_client::{Config, Uuid};
use tokio::{
    net::TcpListener,
    runtime,
    time::{sleep, timeout},
};

use super::{
    DATABASE, Region,
    agent::{Agent, Settings},
    bystander::Bystander,
    described,
    events::{AGENTS, Events},
    hosts::Hosts,
    inserted,
    neutron::Neutron,
    released, removed,
    servers::Servers,
    vif::Vif,
    writer::Writer,
};
use crate::sandbox::Sandbox;

/// Rows of different hosts that are written together.
const TOGETHER: usize = 100;
/// Time that a port may take to be served, or not to be any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval at which an agent that lacks rows is asked again.
const LOOK: Duration = Duration::from_millis(20);

/// Scale of a region, and settings of its servers.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub hosts: usize,
    /// Number of the hosts that have an agent here.
    pub agents: usize,
    /// Ports of each host.
    pub ports: usize,
    /// Time without a word of the leader after which another is elected.
    pub election_timer: Duration,
    pub monitor_all: bool,
    /// Time that all agents may take to hold what they should.
    pub patience: Duration,
}

/// A region with a Southbound of three servers. Agents are started by [`Self::boot`].
#[derive(Debug)]
pub struct Simulation {
    pub scale: Scale,
    pub events: Arc<Events>,
    pub bystander: Bystander,
    pub neutron: Neutron,
    agents: BTreeMap<usize, Agent>,
    /// Threads of their own, by which their processor time is told apart.
    threads: Threads,
    region: Region,
    writer: Writer,
    hosts: Hosts,
    settings: Template,
    /// Ports that are plugged on each host, by the index of their devices.
    plugged: Vec<BTreeMap<u32, Vif>>,
    /// Rows of ports that were added.
    rows: HashMap<usize, Uuid>,
    added: usize,
    nb_cfg: i64,
    pub servers: Servers,
    sandbox: Sandbox,
}

/// Runtime of the agents. A runtime that is dropped waits for its threads, which another one's thread must not.
#[derive(Debug)]
struct Threads(Option<runtime::Runtime>);

impl Threads {
    fn start() -> Result<Self> {
        let mut builder = runtime::Builder::new_multi_thread();
        Ok(Self(Some(builder.worker_threads(1).thread_name(AGENTS).enable_all().build()?)))
    }

    fn handle(&self) -> Result<runtime::Handle> {
        Ok(self.0.as_ref().context("it was stopped")?.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Template of all agents' settings.
#[derive(Debug)]
struct Template {
    southbound: Config,
    state: PathBuf,
    nova: Arc<Reachability>,
}

impl Simulation {
    /// Writes the region, and starts everything but agents.
    pub async fn start(scale: Scale) -> Result<Self> {
        let sandbox = Sandbox::create()?;
        let servers = Servers::standalone(&sandbox)?;
        let region = {
            let writer = Writer::connect(Config::new(servers.remotes().parse()?, DATABASE)).await?;
            Region::fill(&writer, scale.hosts, scale.ports).await?
        };
        let servers = servers.into_cluster(&sandbox, 3, scale.election_timer)?;
        let vifs = |host| (host * scale.ports..(host + 1) * scale.ports).map(|number| region.vif(number));
        let hosts = Hosts::start(&sandbox, scale.agents, |host| vifs(host).collect()).await?;
        let plugged =
            (0..scale.hosts).map(|host| vifs(host).map(|vif| (vif.ifindex(), vif)).collect()).collect();
        let southbound = || Ok::<_, anyhow::Error>(Config::new(servers.remotes().parse()?, DATABASE));
        let events = Events::subscribe();
        Ok(Self {
            bystander: Bystander::start(southbound()?, &region)?,
            neutron: Neutron::connect(southbound()?),
            writer: Writer::connect(southbound()?).await?,
            settings: template(&sandbox, &servers.remotes(), scale.monitor_all).await?,
            scale,
            events,
            agents: BTreeMap::new(),
            threads: Threads::start()?,
            region,
            hosts,
            plugged,
            rows: HashMap::new(),
            added: 0,
            nb_cfg: 0,
            servers,
            sandbox,
        })
    }

    /// Ends everything, and fails if the bystander has.
    pub fn stop(mut self) -> Result<()> {
        self.agents.clear();
        self.bystander.stop()
    }

    /// Copies the logs of all servers into a folder.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for log in fs::read_dir(self.sandbox.path("log"))? {
            let log = log?;
            fs::copy(log.path(), folder.join(log.file_name()))?;
        }
        Ok(())
    }

    /// Starts the agents of these hosts, all at once.
    pub fn boot(&mut self, hosts: impl Iterator<Item = usize>) -> Result<()> {
        let runtime = self.threads.handle()?;
        for host in hosts {
            let settings = Settings {
                ovs: self.hosts.config(host)?,
                southbound: self.settings.southbound.clone(),
                state: self.settings.state.join(host.to_string()),
                monitor_all: self.scale.monitor_all,
                nova: self.settings.nova.clone(),
            };
            self.agents.insert(host, Agent::start(&runtime, settings, &self.plugged[host]));
        }
        Ok(())
    }

    /// Ends the agents of these hosts, as a power cut does.
    pub fn cut(&mut self, hosts: impl Iterator<Item = usize>) {
        for host in hosts {
            self.agents.remove(&host);
        }
    }

    /// Waits until all agents, at the same time, serve exactly what is plugged on their hosts, as the Southbound has it now.
    pub async fn converge(&self) -> Result<()> {
        let until = Instant::now() + self.scale.patience;
        loop {
            for (host, agent) in &self.agents {
                let left = until.saturating_duration_since(Instant::now());
                if timeout(left, agent.await_all(&self.plugged[*host])).await.is_err() {
                    let wrong = self.wrong().map(|(host, error)| format!("host {host}: {error:#}"));
                    let wrong: Vec<String> = wrong.collect();
                    let some = wrong[..wrong.len().min(10)].join("\n");
                    bail!("{} agents did not converge, among them\n{some}", wrong.len());
                }
            }
            // What was right may have lost its server meanwhile.
            if self.wrong().next().is_none() {
                return Ok(());
            }
        }
    }

    fn wrong(&self) -> impl Iterator<Item = (usize, anyhow::Error)> {
        let check = |(host, agent): (&usize, &Agent)| Some((*host, agent.check(&self.plugged[*host]).err()?));
        self.agents.iter().filter_map(check)
    }

    /// Waits until every agent has exactly the rows of its host, or of the region if it is to have them all.
    pub async fn check_rows(&self) -> Result<()> {
        let names = |host: usize| self.plugged[host].values().map(|vif| vif.name());
        let all: BTreeSet<String> = (0..self.plugged.len()).flat_map(names).collect();
        let until = Instant::now() + self.scale.patience;
        for (host, agent) in &self.agents {
            let expected = if self.scale.monitor_all { all.clone() } else { names(*host).collect() };
            loop {
                let rows = agent.rows().await?;
                if rows == expected {
                    break;
                }
                let (surplus, lack) =
                    (rows.difference(&expected).count(), expected.difference(&rows).count());
                let late = Instant::now() > until;
                ensure!(!late, "host {host} has {surplus} rows too many, and lacks {lack}");
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Changes what Neutron says of one port of each of these hosts, for their agents to have something to learn.
    pub async fn describe(&mut self, hosts: impl Iterator<Item = usize>) -> Result<()> {
        let mut operations = Vec::new();
        for host in hosts {
            let Some(vif) = self.plugged[host].values_mut().next() else { continue };
            vif.revision = vif.revision.wrapping_add(1);
            let row = self.rows.get(&vif.number).unwrap_or_else(|| &self.region.rows[vif.number]);
            operations.push(described(*vif, *row));
        }
        for operations in operations.chunks(TOGETHER) {
            self.writer.insist(operations.to_vec()).await?;
        }
        Ok(())
    }

    /// Changes what Neutron says of a port, which its agent takes over, and takes it for unchanged.
    pub async fn misdescribe(&self, host: usize) -> Result<()> {
        let vif = self.plugged[host].values().next().context("nothing is plugged there")?;
        let changed = Vif { revision: vif.revision.wrapping_add(1), ..*vif };
        self.writer.write(vec![described(changed, self.region.rows[vif.number])]).await?;
        let agent = self.agents.get(&host).context("no agent")?;
        timeout(PATIENCE, agent.await_served(changed)).await.context("the agent does not take it over")?
    }

    /// Adds the row of a port that is plugged nowhere, and waits until its host's agent has it.
    pub async fn insert_stray(&mut self, host: usize) -> Result<()> {
        let vif = self.next_vif(host);
        self.writer.write(vec![self.region.wanted(vif)]).await?;
        let agent = self.agents.get(&host).context("no agent")?;
        let has = async {
            while !agent.rows().await?.contains(&vif.name()) {
                sleep(LOOK).await;
            }
            Ok(())
        };
        timeout(PATIENCE, has).await.context("the row does not come")?
    }

    /// Raises the number that all chassis answer, and waits until neutron-server has seen that they did.
    pub async fn raise(&mut self) -> Result<()> {
        self.nb_cfg += 1;
        self.writer.insist(vec![self.region.raised(self.nb_cfg)]).await?;
        self.neutron.await_answers(self.nb_cfg, self.agents.len()).await
    }

    /// The next of ports that are added, and who it is for.
    pub fn next_vif(&mut self, host: usize) -> Vif {
        self.added += 1;
        self.region.further_vif(self.added - 1, host)
    }

    /// An instance that comes and goes: how long its port took to be served once both databases said so. It is plugged for
    /// `life`.
    ///
    /// On a host without an agent, all others only see the rows come and go, and there is nothing to tell.
    pub async fn live(&self, vif: Vif, life: Duration) -> Result<Option<Duration>> {
        let row = inserted(self.writer.write(vec![self.region.wanted(vif)]).await?)?[0];
        let Some(agent) = self.agents.get(&vif.host) else {
            self.writer.write(vec![self.region.claimed(vif, row)]).await?;
            sleep(life).await;
            self.writer.write(vec![released(row)]).await?;
            self.writer.write(vec![removed(row)]).await?;
            return Ok(None);
        };
        agent.add_link(vif);
        self.hosts.plug(vif).await?;
        let plugged = Instant::now();
        timeout(PATIENCE, agent.await_served(vif))
            .await
            .with_context(|| format!("port {} is not served", vif.name()))??;
        let took = plugged.elapsed();
        self.writer.write(vec![self.region.claimed(vif, row)]).await?;
        sleep(life).await;
        self.hosts.unplug(vif).await?;
        agent.remove_link(vif);
        self.writer.write(vec![released(row)]).await?;
        self.writer.write(vec![removed(row)]).await?;
        timeout(PATIENCE, agent.await_gone(vif))
            .await
            .with_context(|| format!("port {} is still served", vif.name()))??;
        Ok(Some(took))
    }
}

/// Settings as the agent reads them from a file.
async fn template(sandbox: &Sandbox, southbound: &str, monitor_all: bool) -> Result<Template> {
    // Somebody who takes connections is enough to tell that Nova is there.
    let nova = TcpListener::bind("127.0.0.1:0").await?;
    let port = nova.local_addr()?.port();
    tokio::spawn(async move { while nova.accept().await.is_ok() {} });
    let file = sandbox.path("agent.ini");
    let text = format!(
        "[DEFAULT]\nnova_metadata_host = 127.0.0.1\nnova_metadata_port = {port}\nmetadata_proxy_shared_secret = secret\n\
         [ovn]\novn_sb_connection = {southbound}\n[metadata_ebpf]\nsouthbound_monitor_all = {monitor_all}\n"
    );
    fs::write(&file, text)?;
    let config = config::Config::read(&[Place::File(file)])?;
    let SourceOptions::Ovn { southbound, .. } = config.source else { bail!("another source than OVN") };
    let nova = Dialler::new(&config.nova)?;
    Ok(Template {
        southbound: *southbound,
        state: sandbox.path("state"),
        nova: Arc::new(Reachability::new(Arc::new(nova))),
    })
}
