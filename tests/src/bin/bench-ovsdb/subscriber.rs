//! The clients that a chassis can have, as the server sees them: four ways to ask for a host's ports.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_tests::region;
use ovsdb_client::{
    Clause, Client, Conditions, Config, Event, Function, Generation, Row as _, Splitter, Uuid,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Rows that the metadata agent asks for.
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

/// Kind of subscription.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Those that name the chassis, whatever is plugged.
    Chassis,
    /// Those that have the names of the plugged ports.
    Names,
    /// Rows that ovn-controller asks for: by chassis, by name, and all ports of the networks that the host has ports of
    /// (update_sb_monitors() in OVN's controller/ovn-controller.c), of which this is the table of ports only.
    Controller,
    /// All rows and columns of four tables, as neutron-ovn-metadata-agent does.
    Everything,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Chassis, Self::Names, Self::Controller, Self::Everything];

    /// True if such a client has a large part of the region.
    pub(crate) fn is_large(self) -> bool {
        matches!(self, Self::Controller | Self::Everything)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chassis => "by chassis (this agent)",
            Self::Names => "by name of each port",
            Self::Controller => "ovn-controller's conditions",
            Self::Everything => "everything (neutron-ovn-metadata-agent)",
        }
    }
}

/// A client that is connected, until it is dropped.
pub(crate) struct Subscriber {
    kind: Kind,
    ports: BTreeSet<String>,
    datapaths: BTreeSet<Uuid>,
    changes: mpsc::Sender<(Vec<Clause>, oneshot::Sender<()>)>,
    task: JoinHandle<Result<()>>,
}

impl Subscriber {
    /// The client of the chassis `name`, once it has all that it asks for. Its host has `ports` of `datapaths`.
    pub(crate) async fn connect(
        kind: Kind,
        remotes: &str,
        name: String,
        ports: &[String],
        datapaths: BTreeSet<Uuid>,
    ) -> Result<Self> {
        let (changes, requests) = mpsc::channel(1);
        let (ready, is_ready) = oneshot::channel();
        let ports: BTreeSet<String> = ports.iter().cloned().collect();
        let task = if kind == Kind::Everything {
            tokio::spawn(everything(remotes.to_owned(), name, ready))
        } else {
            let conditions = if kind == Kind::Names { by_names(&ports) } else { Vec::new() };
            let own = || Conditions::any_of([Clause::equal("name", name.as_str())]);
            let mut config = Config::new(remotes.parse()?, region::DATABASE);
            config.turn_lock = (kind == Kind::Chassis).then(|| "turn".to_owned());
            let client = Client::builder(config)
                .monitor::<PortBinding>(Conditions::any_of(conditions))
                .monitor::<Chassis>(own())
                .monitor_optional::<ChassisPrivate>(own())
                .monitor::<SbGlobal>(Conditions::All)
                .connect();
            let more = if kind == Kind::Controller { controllers(&ports, &datapaths) } else { Vec::new() };
            tokio::spawn(conditional(client, kind, more, requests, ready))
        };
        is_ready.await.context("a client could not connect")?;
        Ok(Self { kind, ports, datapaths, changes, task })
    }

    /// Does what the client does when a port is plugged or unplugged: by name, the server has to be asked.
    pub(crate) async fn plug(&mut self, port: &str, plugged: bool) -> Result<()> {
        if !matches!(self.kind, Kind::Names | Kind::Controller) {
            return Ok(());
        }
        if plugged {
            self.ports.insert(port.to_owned());
        } else {
            self.ports.remove(port);
        }
        let (done, is_done) = oneshot::channel();
        let clauses = match self.kind {
            Kind::Controller => controllers(&self.ports, &self.datapaths),
            _ => by_names(&self.ports),
        };
        self.changes.send((clauses, done)).await?;
        is_done.await.context("a client is gone")
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn by_names(ports: &BTreeSet<String>) -> Vec<Clause> {
    let clauses = ports
        .iter()
        .flat_map(|port| ["logical_port", "parent_port"].map(|column| Clause::equal(column, port.as_str())));
    clauses.collect()
}

fn by_chassis(chassis: Uuid) -> Vec<Clause> {
    let columns = ["chassis", "requested_chassis", "additional_chassis", "requested_additional_chassis"];
    columns.map(|column| Clause::new(column, Function::Includes, chassis)).to_vec()
}

/// ovn-controller's clauses, without those by chassis.
fn controllers(ports: &BTreeSet<String>, datapaths: &BTreeSet<Uuid>) -> Vec<Clause> {
    let kinds = ["patch", "chassisredirect", "external"].map(|kind| Clause::equal("type", kind));
    let datapaths = datapaths.iter().map(|datapath| Clause::equal("datapath", *datapath));
    kinds.into_iter().chain(datapaths).chain(by_names(ports)).collect()
}

/// A client of this crate. By chassis it first needs the row of the chassis; `more` goes with that.
async fn conditional(
    mut client: Client,
    kind: Kind,
    more: Vec<Clause>,
    mut requests: mpsc::Receiver<(Vec<Clause>, oneshot::Sender<()>)>,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let mut waiting: BTreeMap<Generation, oneshot::Sender<()>> = BTreeMap::new();
    let (mut ready, mut always) = (Some(ready), Vec::new());
    loop {
        tokio::select! {
            event = client.recv() => match event {
                Event::Synced if kind == Kind::Names => {
                    // Who waited for it may be gone.
                    let _gone = ready.take().context("twice")?.send(());
                }
                Event::Synced => {
                    let (chassis, _) = client.table::<Chassis>().iter().next().context(Chassis::TABLE)?;
                    always = by_chassis(*chassis);
                    let conditions = Conditions::any_of(always.iter().chain(&more).cloned());
                    let generation = client.set_condition::<PortBinding>(conditions)?;
                    waiting.insert(generation, ready.take().context("twice")?);
                }
                Event::ConditionInForce(generation) => {
                    let later = waiting.split_off(&generation);
                    let in_force = std::mem::replace(&mut waiting, later);
                    for done in in_force.into_values().chain(waiting.remove(&generation)) {
                        let _gone = done.send(());
                    }
                }
                Event::Disconnected { reason, .. } => bail!("{reason}"),
                _ => {}
            },
            Some((clauses, done)) = requests.recv() => {
                let conditions = Conditions::any_of(always.iter().cloned().chain(clauses));
                waiting.insert(client.set_condition::<PortBinding>(conditions)?, done);
            }
        }
    }
}

/// The monitor of neutron-ovn-metadata-agent, whose rows are thrown away: this is about the server.
async fn everything(remotes: String, name: String, ready: oneshot::Sender<()>) -> Result<()> {
    let schema: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(region::SCHEMA)?)?;
    let remote =
        remotes.split(',').next().and_then(|remote| remote.strip_prefix("tcp:")).context("no TCP remote")?;
    let mut stream = TcpStream::connect(remote).await?;
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
        json!({ "id": 0, "method": "monitor_cond_since", "params": [region::DATABASE, "data", tables, nil] });
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
