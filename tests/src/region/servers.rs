//! The Southbound's servers: one of its own, or a raft cluster that begins with what one has.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{DATABASE, SCHEMA, meter};
use crate::{
    command::{Words as _, run},
    process::Daemon,
    sandbox::Sandbox,
    wait::until,
};

/// Time that a server may take to read its database, and a cluster to elect.
const START: Duration = Duration::from_secs(180);

/// Servers on loopback ports, which end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    list: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    name: String,
    file: PathBuf,
    control: PathBuf,
    log: PathBuf,
    address: SocketAddrV4,
    daemon: Option<Daemon>,
    /// The processor time of those of its processes that are gone.
    spent: Duration,
}

impl Servers {
    /// A server with an empty database of its own.
    pub fn standalone(sandbox: &Sandbox) -> Result<Self> {
        let server = Server::new(sandbox, "sb");
        run(Command::new("ovsdb-tool").arg("create").arg(&server.file).arg(SCHEMA))?;
        let mut servers = Self { list: vec![server] };
        servers.start()?;
        Ok(servers)
    }

    /// A cluster with the contents of the server that there is, which ends. It elects another leader when it has not heard
    /// from one for `election_timer`.
    pub fn into_cluster(mut self, sandbox: &Sandbox, size: usize, election_timer: Duration) -> Result<Self> {
        self.kill(0)?;
        let raft = |index: usize| format!("unix:{}", sandbox.path(format!("raft{index}")).display());
        let mut servers = Self { list: Vec::new() };
        for index in 0..size {
            let server = Server::new(sandbox, &format!("sb{index}"));
            let mut tool = Command::new("ovsdb-tool");
            if index == 0 {
                tool.arg(format!("--election-timer={}", election_timer.as_millis())).arg("create-cluster");
                tool.arg(&server.file).arg(&self.list[0].file).arg(raft(0));
            } else {
                tool.arg("join-cluster").arg(&server.file).arg(DATABASE).arg(raft(index)).arg(raft(0));
            }
            run(&mut tool)?;
            servers.list.push(server);
            servers.start()?;
        }
        Ok(servers)
    }

    /// Starts those that do not run, and waits until all serve.
    pub fn start(&mut self) -> Result<()> {
        for server in &mut self.list {
            if server.daemon.is_none() {
                server.spawn()?;
            }
        }
        self.list.iter_mut().try_for_each(Server::await_listening)?;
        for server in &self.list {
            let mut wait = Command::new("ovsdb-client");
            wait.arg(format!("--timeout={}", START.as_secs())).arg("wait").arg(server.remote());
            run(wait.words(format!("{DATABASE} connected")))?;
        }
        Ok(())
    }

    /// As a crash ends it.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let server = &mut self.list[index];
        if let Some(mut daemon) = server.daemon.take() {
            server.spent += meter::cpu(daemon.id())?;
            daemon.kill()?;
        }
        Ok(())
    }

    /// The index of the cluster's leader, once there is one.
    pub fn leader(&self) -> Result<usize> {
        until("the Southbound has a leader", START, || {
            let leads = |server: &Server| {
                server.daemon.is_some()
                    && server
                        .ask(&format!("cluster/status {DATABASE}"))
                        .is_ok_and(|s| s.contains("Role: leader"))
            };
            self.list.iter().position(leads).context("no leader")
        })
    }

    /// Remotes by which clients find them.
    pub fn remotes(&self) -> String {
        self.list.iter().map(Server::remote).collect::<Vec<_>>().join(",")
    }

    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The processor time that each has used, former processes included.
    pub fn cpu(&self) -> Result<Vec<Duration>> {
        let cpu = |server: &Server| Ok(server.spent + server.pid().map_or(Ok(Duration::ZERO), meter::cpu)?);
        self.list.iter().map(cpu).collect()
    }

    /// The memory of each, in bytes.
    pub fn memory(&self) -> Result<Vec<u64>> {
        self.list.iter().map(|server| server.pid().map_or(Ok(0), meter::memory)).collect()
    }

    /// Number of clients of each.
    pub fn connections(&self) -> Result<Vec<usize>> {
        self.list.iter().map(Server::connections).collect()
    }
}

impl Server {
    fn new(sandbox: &Sandbox, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            file: sandbox.path(format!("{name}.db")),
            control: sandbox.path(format!("{name}.ctl")),
            log: sandbox.log(name),
            address: own_address(),
            daemon: None,
            spent: Duration::ZERO,
        }
    }

    fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new("ovsdb-server");
        command.arg(&self.file).arg(format!("--remote=ptcp:{}:{}", self.address.port(), self.address.ip()));
        command.arg(format!("--unixctl={}", self.control.display()));
        command.words("-vconsole:info -vsyslog:off -vfile:off");
        // What it makes has a place of its own.
        command.env("OVS_RUNDIR", self.file.parent().context("a file without a folder")?);
        self.daemon = Some(Daemon::spawn(&self.name, command, self.log.clone())?);
        Ok(())
    }

    fn await_listening(&mut self) -> Result<()> {
        let (name, address) = (self.name.clone(), self.address);
        let daemon = self.daemon.as_mut().context("it was not started")?;
        until(&format!("{name} accepts connections"), START, || {
            // Waiting would not help if it ended.
            let connect = || TcpStream::connect(address).map(drop);
            daemon.check_running().map_or_else(|ended| Ok(Err(ended)), |()| Ok(connect().map(Ok)?))
        })?
    }

    fn remote(&self) -> String {
        format!("tcp:{}", self.address)
    }

    fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::id)
    }

    fn connections(&self) -> Result<usize> {
        if self.daemon.is_none() {
            return Ok(0);
        }
        let status = self.ask("memory/show")?;
        let sessions = status.split_whitespace().find_map(|word| word.strip_prefix("sessions:"));
        sessions.map_or(Ok(0), |number| Ok(number.parse()?))
    }

    /// Asks it over its control socket.
    fn ask(&self, words: &str) -> Result<String> {
        run(Command::new("ovs-appctl").words("--timeout=60 -t").arg(&self.control).words(words))
    }
}

/// An address that no other process has: one of loopback's, by the process id. A port of an address that others use may
/// be taken by an outgoing connection while its server is being restarted.
fn own_address() -> SocketAddrV4 {
    static NEXT: AtomicU16 = AtomicU16::new(6642);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 64 + high % 64, middle, low);
    SocketAddrV4::new(address, NEXT.fetch_add(1, Ordering::Relaxed))
}
