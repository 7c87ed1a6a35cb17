//! The clients that a chassis can have, as the server sees them: three ways to ask for a host's ports.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use ovsdb_client::{
    Clause, Client, Conditions, Config, Event, Function, Generation, Row as _, Splitter, Uuid,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// What the metadata agent asks for.
mod rows {
    use std::collections::{BTreeMap, BTreeSet};

    ovsdb_client::row! {
        pub(super) struct PortBinding in "Port_Binding" {
            logical_port: String,
            parent_port: Option<String>,
            tag: Option<i64>,
            kind: String = "type",
            mac: BTreeSet<String>,
            port_security: BTreeSet<String> as optional,
            external_ids: BTreeMap<String, String>,
        }
    }

    ovsdb_client::row! {
        pub(super) struct Chassis in "Chassis" {
            name: String,
        }
    }

    ovsdb_client::row! {
        pub(super) struct ChassisPrivate in "Chassis_Private" {
            name: String,
            external_ids: BTreeMap<String, String>,
        }
    }

    ovsdb_client::row! {
        pub(super) struct SbGlobal in "SB_Global" {
            nb_cfg: i64,
        }
    }
}

use rows::{Chassis, ChassisPrivate, PortBinding, SbGlobal};

/// How rows are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Those that name the chassis, whatever is plugged.
    Chassis,
    /// Those that have the names of the plugged ports.
    Names,
    /// All rows and columns of four tables, as neutron-ovn-metadata-agent does.
    Everything,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chassis => "by chassis (this agent)",
            Self::Names => "by name of each port",
            Self::Everything => "everything (neutron-ovn-metadata-agent)",
        }
    }
}

/// A client that is connected, until it is dropped.
pub(crate) struct Subscriber {
    kind: Kind,
    ports: BTreeSet<String>,
    changes: mpsc::Sender<(Conditions, oneshot::Sender<()>)>,
    task: JoinHandle<Result<()>>,
}

impl Subscriber {
    /// The client of the chassis `name`, once it has all that it asks for.
    pub(crate) async fn connect(kind: Kind, remote: &str, name: String, ports: &[String]) -> Result<Self> {
        let (changes, requests) = mpsc::channel(1);
        let (ready, is_ready) = oneshot::channel();
        let ports: BTreeSet<String> = ports.iter().cloned().collect();
        let task = if kind == Kind::Everything {
            let path = remote.strip_prefix("unix:").context("a Unix socket")?.to_owned();
            tokio::spawn(everything(path, name, ready))
        } else {
            let conditions = if kind == Kind::Names { by_names(&ports) } else { Conditions::None };
            let own = || Conditions::any_of([Clause::equal("name", name.as_str())]);
            let client = Client::builder(Config::new(remote.parse()?, "OVN_Southbound"))
                .monitor::<PortBinding>(conditions)
                .monitor::<Chassis>(own())
                .monitor_optional::<ChassisPrivate>(own())
                .monitor::<SbGlobal>(Conditions::All)
                .connect();
            tokio::spawn(conditional(client, kind, requests, ready))
        };
        is_ready.await.context("a client could not connect")?;
        Ok(Self { kind, ports, changes, task })
    }

    /// Does what the client does when a port is plugged or unplugged: by name, the server has to be asked.
    pub(crate) async fn plug(&mut self, port: &str, plugged: bool) -> Result<()> {
        if self.kind != Kind::Names {
            return Ok(());
        }
        if plugged {
            self.ports.insert(port.to_owned());
        } else {
            self.ports.remove(port);
        }
        let (done, is_done) = oneshot::channel();
        self.changes.send((by_names(&self.ports), done)).await?;
        is_done.await.context("a client is gone")
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn by_names(ports: &BTreeSet<String>) -> Conditions {
    let clauses = ports
        .iter()
        .flat_map(|port| ["logical_port", "parent_port"].map(|column| Clause::equal(column, port.as_str())));
    Conditions::any_of(clauses)
}

fn by_chassis(chassis: Uuid) -> Conditions {
    let columns = ["chassis", "requested_chassis", "additional_chassis", "requested_additional_chassis"];
    Conditions::any_of(columns.map(|column| Clause::new(column, Function::Includes, chassis)))
}

/// A client of this crate. By chassis it first needs the row of the chassis.
async fn conditional(
    mut client: Client,
    kind: Kind,
    mut requests: mpsc::Receiver<(Conditions, oneshot::Sender<()>)>,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let mut waiting: BTreeMap<Generation, oneshot::Sender<()>> = BTreeMap::new();
    let mut ready = Some(ready);
    loop {
        tokio::select! {
                    event = client.recv() => match event {
                        Event::Synced if kind == Kind::Chassis => {
                            let (chassis, _) = client.table::<Chassis>().iter().next().context(Chassis::TABLE)?;
                            let conditions = by_chassis(*chassis);
                            waiting.insert(client.set_condition::<PortBinding>(conditions)?, ready.take().context("twice")?);
                        }
                        Event::Synced => {
         let _gone = ready.take().context("twice")?.send(());
        }
                        Event::ConditionInForce(generation) => {
                            let later = waiting.split_off(&generation);
                            let in_force = std::mem::replace(&mut waiting, later);
                            for done in in_force.into_values().chain(waiting.remove(&generation)) {
                                // Who waited for it may be gone.
                                let _gone = done.send(());
                            }
                        }
                        Event::Disconnected { reason, .. } => bail!("{reason}"),
                        _ => {}
                    },
                    Some((conditions, done)) = requests.recv() => {
                        waiting.insert(client.set_condition::<PortBinding>(conditions)?, done);
                    }
                }
    }
}

/// The monitor of neutron-ovn-metadata-agent, whose rows are thrown away: this is about the server.
async fn everything(path: String, name: String, ready: oneshot::Sender<()>) -> Result<()> {
    let schema: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(super::region::SCHEMA)?)?;
    let mut stream = UnixStream::connect(path).await?;
    let mut tables = serde_json::Map::new();
    for table in ["Port_Binding", "Datapath_Binding", "Encap", "SB_Global", "Chassis", "Chassis_Private"] {
        let columns = schema["tables"][table]["columns"].as_object().context("no such table")?;
        let columns: Vec<&String> = columns.keys().collect();
        let condition =
            if table.starts_with("Chassis") { json!([["name", "==", name]]) } else { json!([true]) };
        tables.insert(table.to_owned(), json!([{ "columns": columns, "where": condition }]));
    }
    let nil = Uuid::nil().to_string();
    let request =
        json!({ "id": 0, "method": "monitor_cond_since", "params": ["OVN_Southbound", "data", tables, nil] });
    stream.write_all(request.to_string().as_bytes()).await?;
    let mut splitter = Splitter::new(1 << 30);
    let mut buffer = vec![0; 1 << 16];
    let mut ready = Some(ready);
    loop {
        let length = stream.read(&mut buffer).await?;
        ensure!(length > 0, "the server closed the connection");
        splitter.push(&buffer[..length])?;
        while let Some(message) = splitter.next_message() {
            if let Some(ready) = ready.take() {
                // The only answer.
                let _gone = ready.send(());
            } else if message.len() < 100 {
                let probe: serde_json::Value = serde_json::from_slice(&message)?;
                let answer = json!({ "id": probe["id"], "result": probe["params"], "error": null });
                stream.write_all(answer.to_string().as_bytes()).await?;
            }
        }
    }
}
