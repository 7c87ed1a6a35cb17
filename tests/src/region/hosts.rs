//! The local Open vSwitch of every host: databases of their own, hundreds of which one real server serves.
//!
//! A database is told apart by its name, and a client says which one it means. So a thousand hosts need no thousand
//! servers, and nothing takes the place of a server.

use std::{collections::BTreeMap, fs, process::Command, sync::Mutex, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ovsdb_client::{Config, Uuid};
use serde_json::{Value, json};

use super::{chassis_name, vif::Vif, writer::Writer};
use crate::{
    command::{Words as _, run},
    process::Daemon,
    sandbox::Sandbox,
    wait::until,
};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const START: Duration = Duration::from_secs(180);
/// Databases of one server: it looks after each whenever it wakes.
const PER_SERVER: usize = 100;

/// The servers, and what is plugged.
#[derive(Debug)]
pub struct Hosts {
    // Dropped in this order: clients before their servers.
    writers: Vec<Writer>,
    remotes: Vec<String>,
    list: Vec<Host>,
    _daemons: Vec<Daemon>,
}

#[derive(Debug)]
struct Host {
    bridge: Uuid,
    /// The rows of ports by the numbers of what is plugged there.
    ports: Mutex<BTreeMap<usize, Uuid>>,
}

impl Hosts {
    /// As many hosts, where what `plugged` gives for each is plugged.
    pub async fn start(sandbox: &Sandbox, count: usize, plugged: impl Fn(usize) -> Vec<Vif>) -> Result<Self> {
        let schema: Value = serde_json::from_str(&fs::read_to_string(SCHEMA)?)?;
        let mut hosts =
            Self { writers: Vec::new(), remotes: Vec::new(), list: Vec::new(), _daemons: Vec::new() };
        let numbers: Vec<usize> = (0..count).collect();
        for (server, numbers) in numbers.chunks(PER_SERVER).enumerate() {
            hosts.start_server(sandbox, server, numbers, &schema).await?;
            for host in numbers {
                hosts.fill(*host, plugged(*host)).await?;
            }
        }
        Ok(hosts)
    }

    async fn start_server(
        &mut self,
        sandbox: &Sandbox,
        server: usize,
        hosts: &[usize],
        schema: &Value,
    ) -> Result<()> {
        let name = format!("hosts{server}");
        let socket = sandbox.path(format!("{name}.sock"));
        let mut command = Command::new("ovsdb-server");
        for host in hosts {
            let mut schema = schema.clone();
            schema["name"] = json!(database(*host));
            let (schema_file, file) =
                (sandbox.path("schema"), sandbox.path(format!("{}.db", database(*host))));
            fs::write(&schema_file, schema.to_string())?;
            run(Command::new("ovsdb-tool").arg("create").arg(&file).arg(&schema_file))?;
            command.arg(file);
        }
        command.arg(format!("--remote=punix:{}", socket.display()));
        command.arg(format!("--unixctl={}", sandbox.path(format!("{name}.ctl")).display()));
        command.words("-vconsole:info -vsyslog:off -vfile:off").env("OVS_RUNDIR", sandbox.dir());
        let mut daemon = Daemon::spawn(&name, command, sandbox.log(&name))?;
        until(&format!("{name} listens"), START, || {
            daemon.check_running().map_or_else(
                |ended| Ok(Err(ended)),
                |()| Ok(std::os::unix::net::UnixStream::connect(&socket).map(|_| Ok(()))?),
            )
        })??;
        self._daemons.push(daemon);
        self.remotes.push(format!("unix:{}", socket.display()));
        let config = Config::new(self.remotes[server].parse()?, database(hosts[0]));
        self.writers.push(Writer::connect(config).await?);
        Ok(())
    }

    /// Configuration by which a host's agent reaches its database.
    pub fn config(&self, host: usize) -> Result<Config> {
        Ok(Config::new(self.remotes[host / PER_SERVER].parse()?, database(host)))
    }

    async fn fill(&mut self, host: usize, vifs: Vec<Vif>) -> Result<()> {
        let mut operations = Vec::new();
        for (index, vif) in vifs.iter().enumerate() {
            operations.extend(insert(*vif, index));
        }
        let ports: Vec<Value> = (0..vifs.len()).map(|index| json!(["named-uuid", port(index)])).collect();
        operations.push(json!({ "op": "insert", "table": "Bridge", "uuid-name": "bridge",
            "row": { "name": "br-int", "ports": ["set", ports] } }));
        operations.push(json!({ "op": "insert", "table": "Open_vSwitch", "row": {
            "external_ids": ["map", [["system-id", chassis_name(host)], ["ovn-bridge", "br-int"]]],
            "bridges": ["named-uuid", "bridge"] } }));
        let inserted = self.transact(host, operations).await?;
        // Each port is inserted behind its interface.
        let rows = inserted.iter().skip(1).step_by(2).take(vifs.len());
        let ports = vifs.iter().map(|vif| vif.number).zip(rows.copied()).collect();
        let bridge = *inserted.get(2 * vifs.len()).context("no bridge")?;
        self.list.push(Host { bridge, ports: Mutex::new(ports) });
        Ok(())
    }

    /// Writes the rows of os-vif and ovs-vswitchd for an instance's port that is plugged.
    pub async fn plug(&self, vif: Vif) -> Result<()> {
        let host = &self.list[vif.host];
        let mut operations = insert(vif, 0).to_vec();
        operations.push(self.change_bridge(host, "insert", json!(["named-uuid", port(0)])));
        let row = *self.transact(vif.host, operations).await?.get(1).context("no port")?;
        host.lock()?.insert(vif.number, row);
        Ok(())
    }

    pub async fn unplug(&self, vif: Vif) -> Result<()> {
        let host = &self.list[vif.host];
        let row = host.lock()?.remove(&vif.number).context("it is not plugged")?;
        let change = self.change_bridge(host, "delete", json!(["uuid", row.to_string()]));
        self.transact(vif.host, vec![change]).await?;
        Ok(())
    }

    fn change_bridge(&self, host: &Host, mutator: &str, port: Value) -> Value {
        json!({ "op": "mutate", "table": "Bridge", "where": [["_uuid", "==", ["uuid", host.bridge.to_string()]]],
            "mutations": [["ports", mutator, port]] })
    }

    /// Gives the identities of the rows that were inserted, in their order.
    async fn transact(&self, host: usize, operations: Vec<Value>) -> Result<Vec<Uuid>> {
        let mut params = vec![json!(database(host))];
        params.extend(operations);
        let results = self.writers[host / PER_SERVER].request("transact", params.into()).await?;
        let results = results.as_array().context("no results")?;
        ensure!(results.iter().all(|result| result.get("error").is_none()), "{results:?}");
        results.iter().filter_map(|result| result["uuid"][1].as_str()).map(|text| Ok(text.parse()?)).collect()
    }
}

impl Host {
    fn lock(&self) -> Result<std::sync::MutexGuard<'_, BTreeMap<usize, Uuid>>> {
        self.ports.lock().ok().context("another task panicked")
    }
}

fn database(host: usize) -> String {
    format!("host{host}")
}

fn port(index: usize) -> String {
    format!("port{index}")
}

/// An interface and its port.
fn insert(vif: Vif, index: usize) -> [Value; 2] {
    let interface = format!("interface{index}");
    let ids = json!([
        ["iface-id", vif.name()],
        ["iface-status", "active"],
        ["attached-mac", vif.mac()],
        ["vm-uuid", vif.instance()]
    ]);
    [
        json!({ "op": "insert", "table": "Interface", "uuid-name": interface,
            "row": { "name": vif.tap(), "ifindex": vif.ifindex(), "external_ids": ["map", ids] } }),
        json!({ "op": "insert", "table": "Port", "uuid-name": port(index),
            "row": { "name": vif.tap(), "interfaces": ["named-uuid", interface] } }),
    ]
}
