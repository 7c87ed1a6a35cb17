//! A chassis whose databases hold what a test writes: the rows of any version of OVN, and of states that pass too soon.
//!
//! Nothing but the databases runs: no northd that would take such rows away, no switch, no ovn-controller.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::daemons::{OVS_SCHEMA, OVS_SOCKET, client, spawn_database, unix};
use crate::{
    cloud::Chassis,
    command::{Words as _, require, run},
    guest::Guest,
    netns::Namespace,
    ovn::southbound::SCHEMA,
    port::{Network, Port, uuid},
    process::Daemon,
    sandbox::Sandbox,
    stage::{Path, Stage},
};

const SB_SOCKET: &str = "sb.sock";
const PROGRAMS: [&str; 4] = ["ovs-vsctl", "ovsdb-client", "ovsdb-server", "ovsdb-tool"];

/// The Southbound's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// The one that is installed.
    Installed,
    /// Without what came after OVN 20.03: the table Chassis_Private, and most of the columns that name a chassis.
    Ovn2003,
}

#[derive(Debug)]
pub struct ByHand {
    // Dropped in this order: servers before the folder that they are in.
    _ovs: Daemon,
    _southbound: Daemon,
    stage: Stage,
    /// The rows of this chassis and of another one.
    own: String,
    other: String,
    schema: Schema,
}

/// A chassis as rows name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    Own,
    Other,
}

impl ByHand {
    pub fn start(schema: Schema) -> Result<Self> {
        require(&PROGRAMS)?;
        let stage = Stage::start()?;
        let sandbox = stage.sandbox();
        let text = match schema {
            Schema::Installed => fs::read_to_string(SCHEMA)?,
            Schema::Ovn2003 => of_ovn_20_03(&fs::read_to_string(SCHEMA)?)?,
        };
        fs::write(sandbox.path("sb.ovsschema"), text)?;
        let sb_schema = sandbox.path("sb.ovsschema");
        for (file, schema) in [("sb.db", sb_schema.as_path()), ("conf.db", OVS_SCHEMA.as_ref())] {
            run(Command::new("ovsdb-tool").arg("create").arg(sandbox.path(file)).arg(schema))?;
        }
        let southbound = spawn_database(sandbox, stage.host(), "sb", "sb.db", SB_SOCKET, &[])?;
        let ovs = spawn_database(sandbox, stage.host(), "ovsdb", "conf.db", OVS_SOCKET, &[])?;
        let system_id = uuid()?;
        run(client("ovs-vsctl", sandbox, OVS_SOCKET)
            .words("--no-wait init -- add-br br-int -- set Open_vSwitch . external_ids:ovn-bridge=br-int")
            .words(format!("external_ids:system-id={system_id}")))?;
        let chassis = |name: &str| {
            json!({"op": "insert", "table": "Chassis", "uuid-name": format!("c{}", &name[..4]), "row": {
                "name": name, "hostname": name, "encaps": ["named-uuid", format!("e{}", &name[..4])]}})
        };
        let encap = |name: &str, address: &str| {
            json!({"op": "insert", "table": "Encap", "uuid-name": format!("e{}", &name[..4]), "row": {
                "type": "geneve", "ip": address, "chassis_name": name}})
        };
        let another = uuid()?;
        let mut by_hand = Self {
            _ovs: ovs,
            _southbound: southbound,
            stage,
            own: String::new(),
            other: String::new(),
            schema,
        };
        let global = json!({"op": "insert", "table": "SB_Global", "row": {"nb_cfg": 0}});
        let rows = [
            chassis(&system_id),
            chassis(&another),
            encap(&system_id, "127.0.0.1"),
            encap(&another, "127.0.0.2"),
            global,
        ];
        let results = by_hand.transact(&rows)?;
        let inserted = |index: usize| Some(results.get(index)?.get("uuid")?.get(1)?.as_str()?.to_owned());
        by_hand.own = inserted(0).context("no row of this chassis")?;
        by_hand.other = inserted(1).context("no row of another chassis")?;
        Ok(by_hand)
    }

    pub fn schema(&self) -> Schema {
        self.schema
    }

    pub fn add_network(&self, name: &str) -> Result<Network> {
        self.stage.add_network(name)
    }

    /// A running machine with its tap, of which no database says anything yet.
    pub fn boot(&self, port: Port) -> Result<Guest> {
        self.stage.add_guest_on(port, Path::OnLink)
    }

    /// The ifindex that the guest's tap has now.
    pub fn ifindex(&self, guest: &Guest) -> Result<u32> {
        self.stage.ifindex(guest)
    }

    /// Writes the port's row in the Southbound, which names a chassis in some columns.
    pub fn write_port(&self, port: &Port, columns: &[(&str, Named)]) -> Result<()> {
        let Port { id, mac, address, instance, project, network, .. } = port;
        let key = i64::from(u16::from_str_radix(&id[..4], 16)? >> 1) + 1;
        let mut row = json!({
            "logical_port": id, "datapath": ["named-uuid", "datapath"], "tunnel_key": key,
            "mac": format!("{mac} {address}"),
            "external_ids": map(&[
                ("neutron:device_id", instance), ("neutron:project_id", project),
                ("neutron:network_name", &format!("neutron-{network}")),
                ("neutron:cidrs", &format!("{address}/24")), ("neutron:device_owner", "compute:nova"),
            ]),
        });
        for (column, chassis) in columns {
            row[column] = self.reference(*chassis);
        }
        let ids = map(&[("name", &format!("neutron-{network}")), ("logical-switch", &uuid()?)]);
        let datapath = json!({"op": "insert", "table": "Datapath_Binding", "uuid-name": "datapath",
            "row": {"tunnel_key": key, "external_ids": ids}});
        self.transact(&[datapath, json!({"op": "insert", "table": "Port_Binding", "row": row})])?;
        Ok(())
    }

    /// Changes columns of the port's row that name a chassis, or none.
    pub fn move_port(&self, port: &Port, columns: &[(&str, Option<Named>)]) -> Result<()> {
        let value =
            |chassis: &Option<Named>| chassis.map_or(json!(["set", []]), |named| self.reference(named));
        let row: serde_json::Map<_, _> =
            columns.iter().map(|(column, chassis)| ((*column).to_owned(), value(chassis))).collect();
        let change = json!({"op": "update", "table": "Port_Binding", "row": row,
            "where": [["logical_port", "==", port.id]]});
        let results = self.transact(&[change])?;
        ensure!(results[0]["count"] == 1, "{results}");
        Ok(())
    }

    /// Adds the tap to the integration bridge with the external_ids that os-vif writes, and the index that ovs-vswitchd
    /// does.
    pub fn plug(&self, guest: &Guest) -> Result<()> {
        let Port { id, tap, mac, instance, .. } = &guest.port;
        let ifindex = self.ifindex(guest)?;
        run(client("ovs-vsctl", self.sandbox(), OVS_SOCKET)
            .words(format!("--no-wait add-port br-int {tap} -- set Interface {tap} ifindex={ifindex}"))
            .arg(format!(
            "external_ids={{iface-id=\"{id}\",iface-status=active,attached-mac=\"{mac}\",vm-uuid=\"{instance}\"}}"
        )))?;
        Ok(())
    }

    pub fn unplug(&self, guest: &Guest) -> Result<()> {
        run(client("ovs-vsctl", self.sandbox(), OVS_SOCKET)
            .words(format!("--no-wait del-port br-int {}", guest.port.tap)))?;
        Ok(())
    }

    fn reference(&self, chassis: Named) -> Value {
        let uuid = match chassis {
            Named::Own => &self.own,
            Named::Other => &self.other,
        };
        json!(["uuid", uuid])
    }

    fn transact(&self, operations: &[Value]) -> Result<Value> {
        let mut transaction = vec![json!("OVN_Southbound")];
        transaction.extend(operations.iter().cloned());
        let mut command = Command::new("ovsdb-client");
        command.args(["--timeout=30", "transact"]).arg(unix(self.sandbox(), SB_SOCKET));
        let results = run(command.arg(Value::from(transaction).to_string()))?;
        ensure!(!results.contains("\"error\""), "{operations:?}: {results}");
        serde_json::from_str(&results).with_context(|| results.clone())
    }
}

impl Chassis for ByHand {
    fn sandbox(&self) -> &Sandbox {
        self.stage.sandbox()
    }

    fn host(&self) -> &Namespace {
        self.stage.host()
    }

    fn agent_options(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ovs", format!("ovsdb_connection = {}", unix(self.sandbox(), OVS_SOCKET))),
            ("ovn", format!("ovn_sb_connection = {}", unix(self.sandbox(), SB_SOCKET))),
        ]
    }
}

fn map(pairs: &[(&str, &str)]) -> Value {
    json!(["map", pairs])
}

/// The schema without what came later, of what the agent asks for.
fn of_ovn_20_03(schema: &str) -> Result<String> {
    let mut schema: Value = serde_json::from_str(schema)?;
    schema["version"] = json!("2.7.0");
    let tables = schema["tables"].as_object_mut().context("the schema has no tables")?;
    tables.remove("Chassis_Private").context("the schema has no Chassis_Private")?;
    let ports = tables.get_mut("Port_Binding").and_then(|table| table["columns"].as_object_mut());
    let ports = ports.context("the schema has no Port_Binding")?;
    for column in ["requested_chassis", "additional_chassis", "port_security", "up"] {
        ports.remove(column).with_context(|| format!("the schema has no Port_Binding.{column}"))?;
    }
    // Later than 22.03, which some systems have.
    for column in ["requested_additional_chassis", "additional_encap", "mirror_rules", "mirror_port"] {
        ports.remove(column);
    }
    Ok(schema.to_string())
}
