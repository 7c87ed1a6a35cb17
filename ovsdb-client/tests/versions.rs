//! Southbounds of older and newer versions of OVN than the one installed, and a client that lives through the upgrades.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is what they are for")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use common::*;
use ovsdb_client::{Batch, Client, Columns, Conditions, Event, Operation, Row, Uuid, Value};
use serde_json::json;

ovsdb_client::row! {
    struct PortBinding in "Port_Binding" {
        logical_port: String,
        datapath: Uuid,
        chassis: Option<Uuid>,
        up: Option<bool> as optional,
        additional_chassis: BTreeSet<Uuid> as optional,
        requested_additional_chassis: BTreeSet<Uuid> as optional,
        external_ids: BTreeMap<String, String>,
    }
}

ovsdb_client::row! {
    struct Datapath in "Datapath_Binding" {
        external_ids: BTreeMap<String, String>,
        kind: Option<String> = "type" as optional,
        nb_uuid: Option<Uuid> as optional,
    }
}

ovsdb_client::row! {
    struct SbGlobal in "SB_Global" {
        nb_cfg: i64,
    }
}

ovsdb_client::row! {
    struct ChassisPrivate in "Chassis_Private" {
        name: String,
        external_ids: BTreeMap<String, String>,
    }
}

ovsdb_client::row! {
    struct AdvertisedRoute in "Advertised_Route" {
        ip_prefix: String,
    }
}

ovsdb_client::row! {
    struct StrictPort in "Port_Binding" {
        up: Option<bool>,
    }
}

const INSTALLED: &str = "/usr/share/ovn/ovn-sb.ovsschema";

fn installed() -> serde_json::Value {
    let text = fs::read_to_string(INSTALLED)
        .unwrap_or_else(|error| panic!("{INSTALLED}: {error}: install the Debian package ovn-common"));
    serde_json::from_str(&text).unwrap()
}

/// The installed schema without what came after OVN 20.06: Chassis_Private with 20.09, Port_Binding.up with 21.03, several
/// chassis of a port with 22.06, and what these brought with them.
fn older() -> String {
    let mut schema = installed();
    schema["version"] = "2.8.0".into();
    let tables = schema["tables"].as_object_mut().unwrap();
    for table in ["Chassis_Private", "Chassis_Template_Var", "Static_MAC_Binding"] {
        tables.remove(table).unwrap();
    }
    let ports = tables["Port_Binding"]["columns"].as_object_mut().unwrap();
    let later = ["up", "additional_chassis", "additional_encap", "requested_chassis", "port_security"];
    for column in later.into_iter().chain(["requested_additional_chassis", "mirror_rules"]) {
        ports.remove(column).unwrap();
    }
    schema.to_string()
}

/// The installed schema with what came later: routes with OVN 25.03, two columns of Datapath_Binding with 25.09.
fn newer() -> String {
    let mut schema = installed();
    schema["version"] = "21.11.0".into();
    let tables = schema["tables"].as_object_mut().unwrap();
    let datapaths = tables["Datapath_Binding"]["columns"].as_object_mut().unwrap();
    datapaths.insert("type".into(), json!({ "type": { "key": "string", "min": 0, "max": 1 } }));
    datapaths.insert("nb_uuid".into(), json!({ "type": { "key": "uuid", "min": 0, "max": 1 } }));
    let datapath = json!({ "type": { "key": { "type": "uuid", "refTable": "Datapath_Binding" } } });
    let route =
        json!({ "isRoot": true, "columns": { "datapath": datapath, "ip_prefix": { "type": "string" } } });
    assert!(tables.insert("Advertised_Route".into(), route).is_none(), "the installed one is newer");
    schema.to_string()
}

fn southbound(server: &Server) -> ovsdb_client::Config {
    let mut config = config(&server.tcp());
    config.database = "OVN_Southbound".into();
    config
}

fn connect(server: &Server) -> Client {
    Client::builder(southbound(server))
        .monitor::<PortBinding>(Conditions::All)
        .monitor::<Datapath>(Conditions::All)
        .monitor::<SbGlobal>(Conditions::All)
        .monitor_optional::<ChassisPrivate>(Conditions::All)
        .monitor_optional::<AdvertisedRoute>(Conditions::All)
        .connect()
}

fn add(table: &str, row: &[(&str, Value)], name: Option<&str>) -> Operation {
    let row: Columns = row.iter().map(|(column, value)| ((*column).to_owned(), value.clone())).collect();
    Operation::Insert { table: table.into(), row, name: name.map(str::to_owned) }
}

fn set(table: &str, column: &str, value: impl Into<Value>) -> Operation {
    Operation::Update {
        table: table.into(),
        condition: vec![],
        row: Columns::from([(column.to_owned(), value.into())]),
    }
}

/// Converts the database of a running server, and gives what the client is told until it has it.
async fn convert(server: &Server, client: &mut Client, schema: &str) -> Vec<Batch> {
    fs::write(server.directory.path("converted"), schema).unwrap();
    run("ovsdb-client", &["convert", &server.unix(), "converted"], &server.directory.0);
    synced(client).await
}

fn only<R: Row>(client: &Client) -> R {
    let mut rows = client.table::<R>().iter();
    let row = rows.next().unwrap().1;
    assert!(rows.next().is_none());
    R::clone(row)
}

async fn transact(client: &mut Client, operations: Vec<Operation>) -> Batch {
    client.transact(operations).await.unwrap();
    batch(client).await
}

#[tokio::test]
async fn a_client_follows_upgrades_and_a_downgrade_by_differences() {
    let server = Server::start(&older());
    let mut client = connect(&server);
    assert!(synced(&mut client).await.is_empty());
    let datapath = || Value::named_uuid("d");
    let port = |name: &str, key: i64| {
        let row = [("logical_port", name.into()), ("tunnel_key", key.into()), ("datapath", datapath())];
        add("Port_Binding", &row, None)
    };
    let network =
        [("tunnel_key", 1.into()), ("external_ids", BTreeMap::from([("name", "neutron-1")]).into())];
    let operations = vec![
        add("SB_Global", &[("nb_cfg", 7.into())], None),
        add("Datapath_Binding", &network, Some("d")),
        port("lsp1", 1),
        port("lsp2", 2),
    ];
    assert_eq!(transact(&mut client, operations).await.len(), 4);
    assert!(client.table::<ChassisPrivate>().is_empty());
    assert!(client.table::<PortBinding>().iter().all(|(_, port)| port.up.is_none()));

    // To the installed version.
    let batches = convert(&server, &mut client, &installed().to_string()).await;
    assert!(batches.is_empty(), "nothing of what was known is different: {batches:?}");
    let chassis = add("Chassis_Private", &[("name", "host1".into())], None);
    let changes = transact(&mut client, vec![chassis, set("Port_Binding", "up", true)]).await;
    assert_eq!((changes.of::<PortBinding>().len(), changes.of::<ChassisPrivate>().len()), (2, 1));
    assert!(client.table::<PortBinding>().iter().all(|(_, port)| port.up == Some(true)));
    assert_eq!(only::<ChassisPrivate>(&client).name, "host1");

    // To a newer one.
    let batches = convert(&server, &mut client, &newer()).await;
    assert!(batches.is_empty(), "{batches:?}");
    let network = *client.table::<Datapath>().iter().next().unwrap().0;
    let route =
        add("Advertised_Route", &[("ip_prefix", "192.0.2.0/24".into()), ("datapath", network.into())], None);
    let changes = transact(
        &mut client,
        vec![
            route,
            set("Datapath_Binding", "type", "logical-switch"),
            set("Datapath_Binding", "nb_uuid", network),
        ],
    )
    .await;
    assert_eq!((changes.of::<Datapath>().len(), changes.of::<AdvertisedRoute>().len()), (1, 1));
    let datapath = only::<Datapath>(&client);
    assert_eq!((datapath.kind.as_deref(), datapath.nb_uuid), (Some("logical-switch"), Some(network)));
    assert_eq!(datapath.external_ids["name"], "neutron-1");
    assert_eq!(only::<AdvertisedRoute>(&client).ip_prefix, "192.0.2.0/24");

    // And all the way back, which loses what the old one does not have, and nothing else.
    let batches = convert(&server, &mut client, &older()).await;
    let [changes] = &batches[..] else { panic!("{batches:?}") };
    assert!(changes.of::<PortBinding>().iter().all(|change| change.new.is_some()), "{changes:?}");
    assert_eq!(
        changes.len(),
        5,
        "two ports and a datapath are changed, a chassis and a route gone: {changes:?}"
    );
    assert!(client.table::<ChassisPrivate>().is_empty() && client.table::<AdvertisedRoute>().is_empty());
    assert_eq!(client.table::<PortBinding>().len(), 2);
    assert!(client.table::<PortBinding>().iter().all(|(_, port)| port.up.is_none()));
    assert_eq!((only::<Datapath>(&client).kind, only::<SbGlobal>(&client).nb_cfg), (None, 7));
}

#[tokio::test]
async fn a_client_that_needs_what_a_version_lacks_says_what() {
    let server = Server::start(&older());
    let reason = async |client: &mut Client| match next(client).await {
        Event::Disconnected { reason, .. } => reason.to_string(),
        other => panic!("{other:?}"),
    };
    let builder = || Client::builder(southbound(&server));
    assert_eq!(
        reason(&mut builder().monitor::<StrictPort>(Conditions::All).connect()).await,
        "table Port_Binding of the server's database OVN_Southbound 2.8.0 has no column up"
    );
    let mut client = builder().monitor::<ChassisPrivate>(Conditions::All).connect();
    assert_eq!(
        reason(&mut client).await,
        "database OVN_Southbound 2.8.0 of the server has no table Chassis_Private"
    );
    // Until it is upgraded.
    convert(&server, &mut client, &installed().to_string()).await;
}
