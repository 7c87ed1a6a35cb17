//! The Southbound's servers: one that is reached by TCP, or a raft cluster of three that speaks TLS only.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    daemons::{spawn_database, unix},
    pki::{Credentials, Pki},
};
use crate::{
    command::{Words as _, run},
    netns::Namespace,
    process::Daemon,
    sandbox::Sandbox,
    wait::until,
};

pub(super) const SCHEMA: &str = "/usr/share/ovn/ovn-sb.ovsschema";
const DATABASE: &str = "OVN_Southbound";
const ELECTION: Duration = Duration::from_secs(90);

/// Kind of the Southbound: one server, or a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Southbound {
    Standalone,
    /// Three servers, with TLS among them and to their clients on the chassis.
    Cluster,
}

#[derive(Debug)]
pub(super) struct Servers {
    list: Vec<Server>,
    tls: Option<Tls>,
}

#[derive(Debug)]
struct Server {
    name: String,
    /// Those of a cluster have one for each other too, the next one.
    port: u16,
    daemon: Option<Daemon>,
}

#[derive(Debug)]
struct Tls {
    pki: Pki,
    servers: Credentials,
    /// Files of the agent's own, for tests to replace.
    agent: Credentials,
}

impl Servers {
    pub(super) fn start(sandbox: &Sandbox, host: &Namespace, kind: Southbound) -> Result<Self> {
        let mut servers = match kind {
            Southbound::Standalone => {
                run(Command::new("ovsdb-tool").arg("create").arg(sandbox.path("sb.db")).arg(SCHEMA))?;
                Self { list: vec![Server { name: "sb".to_owned(), port: 6642, daemon: None }], tls: None }
            }
            Southbound::Cluster => {
                let server = |number: u16| {
                    let name = format!("sb{number}");
                    Server { name, port: 6632 + 10 * number, daemon: None }
                };
                Self { list: (1..=3).map(server).collect(), tls: Some(Tls::create(sandbox)?) }
            }
        };
        if kind == Southbound::Cluster {
            for index in 0..servers.list.len() {
                servers.create_member(sandbox, index)?;
            }
        }
        servers.resume(sandbox, host)?;
        Ok(servers)
    }

    /// Writes the database with which a member begins.
    fn create_member(&self, sandbox: &Sandbox, index: usize) -> Result<()> {
        let raft = |server: &Server| format!("ssl:127.0.0.1:{}", server.port + 1);
        let file = sandbox.path(format!("{}.db", self.list[index].name));
        let mut tool = Command::new("ovsdb-tool");
        if index == 0 {
            tool.arg("create-cluster").arg(file).arg(SCHEMA).arg(raft(&self.list[0]));
        } else {
            tool.arg("join-cluster").arg(file).arg(DATABASE).arg(raft(&self.list[index]));
            tool.arg(raft(&self.list[0]));
        }
        run(&mut tool)?;
        Ok(())
    }

    /// Starts those that do not run, and waits until they serve.
    pub(super) fn resume(&mut self, sandbox: &Sandbox, host: &Namespace) -> Result<()> {
        let credentials = self.tls.as_ref().map(|tls| &tls.servers);
        for server in self.list.iter_mut().filter(|server| server.daemon.is_none()) {
            let Server { name, port, .. } = server;
            let arguments = match credentials {
                None => vec![format!("--remote=ptcp:{port}:127.0.0.1")],
                Some(Credentials { private_key, certificate, ca_certificates }) => vec![
                    format!("--remote=pssl:{port}:127.0.0.1"),
                    format!("--private-key={}", private_key.display()),
                    format!("--certificate={}", certificate.display()),
                    format!("--ca-cert={}", ca_certificates.display()),
                ],
            };
            let (file, socket) = (format!("{name}.db"), format!("{name}.sock"));
            server.daemon = Some(spawn_database(sandbox, host, name, &file, &socket, &arguments)?);
        }
        for server in &self.list {
            let mut wait = Command::new("ovsdb-client");
            wait.words("--timeout=30 wait").arg(unix(sandbox, &format!("{}.sock", server.name)));
            run(wait.words(format!("{DATABASE} connected")))?;
        }
        Ok(())
    }

    /// SIGKILL, for all of them.
    pub(super) fn kill(&mut self) -> Result<()> {
        (0..self.list.len()).try_for_each(|index| self.kill_one(index))
    }

    pub(super) fn kill_one(&mut self, index: usize) -> Result<()> {
        if let Some(mut daemon) = self.list[index].daemon.take() {
            daemon.kill()?;
        }
        Ok(())
    }

    pub(super) fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        self.list[index].daemon.as_ref().context("that server does not run")?.signal(signal)
    }

    /// The index of the cluster's leader, once there is one.
    pub(super) fn leader(&self, sandbox: &Sandbox) -> Result<usize> {
        until("the Southbound has a leader", ELECTION, || {
            let leads = |server: &Server| {
                let mut appctl = Command::new("ovs-appctl");
                appctl.words("--timeout=5 -t").arg(sandbox.path(format!("{}.ctl", server.name)));
                let status = run(appctl.words(format!("cluster/status {DATABASE}")));
                status.is_ok_and(|status| status.contains("Role: leader"))
            };
            let mut running = self.list.iter().enumerate().filter(|(_, server)| server.daemon.is_some());
            let leader = running.find(|(_, server)| leads(server));
            leader.map(|(index, _)| index).context("no leader")
        })
    }

    /// Remotes by which clients on the chassis find each server.
    pub(super) fn remotes(&self) -> Vec<String> {
        let method = if self.tls.is_some() { "ssl" } else { "tcp" };
        self.list.iter().map(|server| format!("{method}:127.0.0.1:{}", server.port)).collect()
    }

    /// The same for those who cannot be in the chassis' namespace.
    pub(super) fn sockets(&self, sandbox: &Sandbox) -> String {
        let sockets = self.list.iter().map(|server| unix(sandbox, &format!("{}.sock", server.name)));
        sockets.collect::<Vec<_>>().join(",")
    }

    pub(super) fn pki(&self) -> Result<&Pki> {
        Ok(&self.tls()?.pki)
    }

    /// The files that the agent is configured with.
    pub(super) fn agent_credentials(&self) -> Result<&Credentials> {
        Ok(&self.tls()?.agent)
    }

    fn tls(&self) -> Result<&Tls> {
        self.tls.as_ref().context("this Southbound has no certificates")
    }

    /// The agent's options in Neutron's words.
    pub(super) fn agent_options(&self) -> Vec<String> {
        let mut options = vec![format!("ovn_sb_connection = {}", self.remotes().join(","))];
        if let Some(Tls { agent, .. }) = &self.tls {
            options.push(format!("ovn_sb_private_key = {}", agent.private_key.display()));
            options.push(format!("ovn_sb_certificate = {}", agent.certificate.display()));
            options.push(format!("ovn_sb_ca_cert = {}", agent.ca_certificates.display()));
        }
        options
    }
}

impl Tls {
    fn create(sandbox: &Sandbox) -> Result<Self> {
        let pki = Pki::create(sandbox.path("pki"))?;
        let servers = pki.issue("sb", "switch")?;
        let issued = pki.issue("client", "controller")?;
        ensure!(issued.private_key.exists() && issued.certificate.exists(), "ovs-pki made no files");
        let agent = Credentials {
            private_key: sandbox.path("agent-privkey.pem"),
            certificate: sandbox.path("agent-cert.pem"),
            ca_certificates: sandbox.path("agent-cacert.pem"),
        };
        for file in [&agent.private_key, &agent.certificate, &agent.ca_certificates] {
            fs::write(file, "")?;
        }
        agent.replace(&issued)?;
        Ok(Self { pki, servers, agent })
    }
}
