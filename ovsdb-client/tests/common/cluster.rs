//! A raft cluster of ovsdb-servers.
use std::{
    fs, thread,
    time::{Duration, Instant},
};

use super::{Server, TempDir, WAIT, free_port, run};

/// A raft cluster.
pub struct Cluster {
    pub servers: Vec<Server>,
}

impl Cluster {
    pub fn start(schema: &str, size: usize) -> Self {
        let raft: Vec<String> = (0..size).map(|_| format!("tcp:127.0.0.1:{}", free_port())).collect();
        let mut servers = Vec::new();
        for own in &raft {
            let directory = TempDir::new();
            fs::write(directory.path("schema"), schema).unwrap();
            if *own == raft[0] {
                run("ovsdb-tool", &["create-cluster", "db", "schema", own], &directory.0);
            } else {
                run("ovsdb-tool", &["join-cluster", "db", "Inventory", own, &raft[0]], &directory.0);
            }
            servers.push(Server::serve(directory, |port| vec![format!("--remote=ptcp:{port}:127.0.0.1")]));
            servers.last().unwrap().await_connected();
        }
        Self { servers }
    }

    pub fn remotes(&self) -> String {
        self.servers.iter().map(Server::tcp).collect::<Vec<_>>().join(",")
    }

    /// The index of the server at `remote`.
    pub fn index(&self, remote: &str) -> usize {
        self.servers.iter().position(|server| server.tcp() == remote || server.unix() == remote).unwrap()
    }

    /// The index of the leader among the servers that run.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + WAIT;
        loop {
            let leads = |server: &Server| {
                server.is_running()
                    && server.appctl(&["cluster/status", "Inventory"]).contains("Role: leader")
            };
            if let Some(leader) = self.servers.iter().position(leads) {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader");
            thread::sleep(Duration::from_millis(50));
        }
    }
}
