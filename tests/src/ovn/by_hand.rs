//! A chassis whose databases hold what a test writes: the rows of any version of OVN, and of states that pass too soon.
//!
//! Nothing but the databases runs: no northd that would take such rows away, no switch, no ovn-controller.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicI64, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::daemons::{OVS_SCHEMA, OVS_SOCKET, client, spawn_database, unix};
use crate::{
    cloud::Chassis,
    command::{Words as _, require, run},
    guest::Guest,
    netns::Namespace,
    ovn::{northbound::neutron_ids, southbound::SCHEMA},
    port::{Network, PREFIX_LENGTH, Port, uuid},
    process::Daemon,
    sandbox::Sandbox,
    stage::{Path, Stage},
    tap::BareTap,
};

const SB_SOCKET: &str = "sb.sock";
/// Ports in one transaction, which is one argument of a command, of 128 kB at most (MAX_ARG_STRLEN).
const AT_A_TIME: usize = 64;
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
    /// The next network's row has this number.
    next_key: AtomicI64,
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
            next_key: AtomicI64::new(1),
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

    /// A port's tap with no machine behind it, of which no database says anything yet.
    pub fn add_tap(&self, port: Port) -> Result<BareTap> {
        self.stage.add_tap(port)
    }

    /// Writes the port's row in the Southbound, which names a chassis in some columns.
    pub fn write_port(&self, port: &Port, columns: &[(&str, Named)]) -> Result<()> {
        self.write_ports(&[port], columns)
    }

    /// The same for many ports, in few transactions, each port with a network's row of its own.
    pub fn write_ports(&self, ports: &[&Port], columns: &[(&str, Named)]) -> Result<()> {
        for ports in ports.chunks(AT_A_TIME) {
            let rows = ports.iter().map(|port| self.port_rows(port, columns)).collect::<Vec<_>>();
            self.transact(&rows.concat())?;
        }
        Ok(())
    }

    /// Operations that insert a port's row, and one for its network.
    fn port_rows(&self, port: &Port, columns: &[(&str, Named)]) -> [Value; 2] {
        let Port { id, mac, address, instance, project, network, security_group, .. } = port;
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let cidrs = format!("{address}/{PREFIX_LENGTH}");
        let ids = neutron_ids((network, project), instance, "compute:nova", &cidrs, security_group);
        let addresses = format!("{mac} {address}");
        let named = format!("datapath{key}");
        let mut row = json!({
            "logical_port": id, "datapath": ["named-uuid", named], "tunnel_key": 1,
            "mac": addresses, "port_security": addresses,
            "external_ids": map(&ids.each_ref().map(|(key, value)| (*key, value.as_str()))),
        });
        for (column, chassis) in columns {
            row[column] = self.reference(*chassis);
        }
        if self.schema == Schema::Ovn2003 {
            row.as_object_mut().map(|row| row.remove("port_security"));
        }
        let ids = map(&[("name", &format!("neutron-{network}")), ("logical-switch", id)]);
        let datapath = json!({"op": "insert", "table": "Datapath_Binding", "uuid-name": named,
            "row": {"tunnel_key": key, "external_ids": ids}});
        [datapath, json!({"op": "insert", "table": "Port_Binding", "row": row})]
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
        self.plug_ports(&[(&guest.port, self.ifindex(guest)?)])
    }

    /// The same for many, in one transaction.
    pub fn plug_ports(&self, ports: &[(&Port, u32)]) -> Result<()> {
        let mut vsctl = self.vsctl();
        for (port, ifindex) in ports {
            let tap = &port.tap;
            vsctl.words(format!("-- add-port br-int {tap} -- set Interface {tap} ifindex={ifindex}"));
            vsctl.arg(port.external_ids());
        }
        run(&mut vsctl)?;
        Ok(())
    }

    pub fn unplug(&self, guest: &Guest) -> Result<()> {
        self.unplug_ports(&[&guest.port])
    }

    /// The same for many, in one transaction.
    pub fn unplug_ports(&self, ports: &[&Port]) -> Result<()> {
        let mut vsctl = self.vsctl();
        for port in ports {
            vsctl.words(format!("-- del-port br-int {}", port.tap));
        }
        run(&mut vsctl)?;
        Ok(())
    }

    /// Remote of the local Open vSwitch's database.
    pub fn ovs_remote(&self) -> String {
        unix(self.sandbox(), OVS_SOCKET)
    }

    /// `ovs-vsctl`, which waits for no ovs-vswitchd.
    fn vsctl(&self) -> Command {
        let mut vsctl = client("ovs-vsctl", self.sandbox(), OVS_SOCKET);
        vsctl.arg("--no-wait");
        vsctl
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
            ("ovs", format!("ovsdb_connection = {}", self.ovs_remote())),
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
