//! A region: a Southbound with thousands of bound ports, and the control planes of its hosts.
//!
//! ```text
//! vif       a guest's port, and everything that is said of it      writer   a program that writes to a database
//! servers   the Southbound: one server, or a raft cluster          hosts    the local Open vSwitch of every host
//! agent     the agent of a host, all of it that has no kernel      meter    what servers and agents cost
//! ```
//!
//! Rows are written here as Neutron, ovn-northd and ovn-controller write them.

pub mod agent;
pub mod bystander;
pub mod events;
pub mod hosts;
pub mod meter;
pub mod neutron;
pub mod phases;
pub mod servers;
pub mod simulation;
pub mod vif;
pub mod writer;

use anyhow::{Context as _, Result};
use ovsdb_client::{Clause, Columns, Mutation, Mutator, Operation, OperationResult, Uuid, Value};

use self::{
    vif::{Vif, id},
    writer::Writer,
};

pub const DATABASE: &str = "OVN_Southbound";
pub const SCHEMA: &str = "/usr/share/ovn/ovn-sb.ovsschema";
/// Rows written in one transaction.
const CHUNK: usize = 5000;

/// The rows of a region, by which others are written.
#[derive(Debug)]
pub struct Region {
    /// Ports of each host.
    pub per_host: usize,
    pub networks: Vec<Uuid>,
    pub chassis: Vec<Uuid>,
    /// The rows of Chassis_Private.
    private: Vec<Uuid>,
    /// The rows of the ports that the region began with, those of each host next to each other.
    pub rows: Vec<Uuid>,
    global: Uuid,
}

impl Region {
    /// Writes `hosts` chassis with as many bound ports each into an empty Southbound.
    pub async fn fill(writer: &Writer, hosts: usize, per_host: usize) -> Result<Self> {
        let networks = inserted(writer.write((0..hosts).map(network).collect()).await?)?;
        let chassis = inserted(writer.write((0..hosts).flat_map(chassis).collect()).await?)?;
        // Each chassis is inserted behind its encapsulation.
        let chassis: Vec<Uuid> = chassis.into_iter().skip(1).step_by(2).collect();
        let private = (0..hosts).map(|host| chassis_private(host, chassis[host])).collect();
        let private = inserted(writer.write(private).await?)?;
        let global = inserted(writer.write(vec![insert("SB_Global", [("nb_cfg", 0.into())])]).await?)?[0];
        let mut region = Self { per_host, networks, chassis, private, rows: Vec::new(), global };
        let numbers: Vec<usize> = (0..hosts * per_host).collect();
        for numbers in numbers.chunks(CHUNK) {
            let rows = numbers.iter().map(|number| region.bound(region.vif(*number))).collect();
            let rows = inserted(writer.write(rows).await?)?;
            region.rows.extend(rows);
        }
        Ok(region)
    }

    pub fn hosts(&self) -> usize {
        self.chassis.len()
    }

    /// One of the ports that the region began with.
    pub fn vif(&self, number: usize) -> Vif {
        Vif { number, host: number / self.per_host, networks: self.hosts(), revision: 0 }
    }

    /// A further port on a host: the `index`th of all that were added.
    pub fn further_vif(&self, index: usize, host: usize) -> Vif {
        Vif { number: self.rows.len() + index, host, networks: self.hosts(), revision: 0 }
    }

    /// The row of a port that is bound and up.
    fn bound(&self, vif: Vif) -> Operation {
        let mut row = self.row(vif);
        row.extend([("chassis".to_owned(), self.chassis[vif.host].into()), ("up".to_owned(), true.into())]);
        Operation::Insert { table: PORT_BINDING.to_owned(), row, name: None }
    }

    /// The row of a port that Neutron has bound to a host, as ovn-northd writes it.
    pub fn wanted(&self, vif: Vif) -> Operation {
        Operation::Insert { table: PORT_BINDING.to_owned(), row: self.row(vif), name: None }
    }

    /// Claim by the host's ovn-controller when the port is plugged.
    pub fn claimed(&self, vif: Vif, row: Uuid) -> Operation {
        update(PORT_BINDING, row, [("chassis", self.chassis[vif.host].into()), ("up", true.into())])
    }

    fn row(&self, vif: Vif) -> Columns {
        columns([
            ("logical_port", vif.name().into()),
            ("datapath", self.networks[vif.network_number()].into()),
            ("tunnel_key", vif.tunnel_key().into()),
            ("requested_chassis", self.chassis[vif.host].into()),
            ("mac", vif.addresses().into()),
            ("port_security", vif.addresses().into()),
            ("options", map([("requested-chassis", format!("compute-{}.example.org", vif.host))])),
            ("external_ids", map(vif.external_ids())),
        ])
    }

    /// Another number for all chassis to answer.
    pub fn raised(&self, nb_cfg: i64) -> Operation {
        update("SB_Global", self.global, [("nb_cfg", nb_cfg.into())])
    }

    /// Answer of a chassis' agent to it.
    pub fn answered(&self, host: usize, nb_cfg: i64) -> Operation {
        let answer = map([("neutron:ovn-metadata-sb-cfg", nb_cfg.to_string())]);
        let mutations = vec![
            Mutation::new("external_ids", Mutator::Delete, vec!["neutron:ovn-metadata-sb-cfg"]),
            Mutation::new("external_ids", Mutator::Insert, answer),
        ];
        Operation::Mutate {
            table: "Chassis_Private".to_owned(),
            condition: of(self.private[host]),
            mutations,
        }
    }

    /// A row that no agent asks for, for a bystander to write to.
    pub fn of_no_concern(&self) -> Operation {
        insert("DNS", [("datapaths", vec![self.networks[0]].into())])
    }
}

pub const PORT_BINDING: &str = "Port_Binding";

/// Release by a host's ovn-controller when a port is unplugged.
pub fn released(row: Uuid) -> Operation {
    let nothing = Value::Set(Vec::new());
    update(PORT_BINDING, row, [("chassis", nothing), ("up", false.into())])
}

pub fn removed(row: Uuid) -> Operation {
    Operation::Delete { table: PORT_BINDING.to_owned(), condition: of(row) }
}

/// Neutron's word about a port, anew.
pub fn described(vif: Vif, row: Uuid) -> Operation {
    update(PORT_BINDING, row, [("external_ids", map(vif.external_ids()))])
}

/// A change that nobody's conditions depend on.
pub fn renamed(row: Uuid, number: usize) -> Operation {
    let name = map([("neutron:port_name", format!("name-{number}"))]);
    let mutations = vec![
        Mutation::new("external_ids", Mutator::Delete, vec!["neutron:port_name"]),
        Mutation::new("external_ids", Mutator::Insert, name),
    ];
    Operation::Mutate { table: PORT_BINDING.to_owned(), condition: of(row), mutations }
}

/// A bystander's write to a row of its own.
pub fn noted(row: Uuid, number: u64) -> Operation {
    update("DNS", row, [("external_ids", map([("number", number.to_string())]))])
}

/// A chassis' name, its system-id.
pub fn chassis_name(host: usize) -> String {
    id("chassis", host)
}

pub fn inserted(results: Vec<OperationResult>) -> Result<Vec<Uuid>> {
    results.into_iter().map(|result| result.uuid.context("nothing was inserted")).collect()
}

fn network(number: usize) -> Operation {
    let name = format!("neutron-{}", id("network", number));
    insert(
        "Datapath_Binding",
        [
            ("tunnel_key", (number as i64 + 1).into()),
            ("external_ids", map([("logical-switch", id("switch", number)), ("name", name)])),
        ],
    )
}

fn chassis(host: usize) -> [Operation; 2] {
    let (name, encap) = (chassis_name(host), format!("encap{host}"));
    let encapsulation = Operation::Insert {
        table: "Encap".to_owned(),
        row: columns([
            ("type", "geneve".into()),
            ("ip", format!("172.16.{}.{}", host / 250, host % 250 + 1).into()),
            ("chassis_name", name.clone().into()),
        ]),
        name: Some(encap.clone()),
    };
    let chassis = insert(
        "Chassis",
        [
            ("name", name.into()),
            ("hostname", format!("compute-{host}.example.org").into()),
            ("encaps", Value::named_uuid(encap)),
        ],
    );
    [encapsulation, chassis]
}

fn chassis_private(host: usize, chassis: Uuid) -> Operation {
    insert("Chassis_Private", [("name", chassis_name(host).into()), ("chassis", chassis.into())])
}

fn insert<const N: usize>(table: &str, row: [(&str, Value); N]) -> Operation {
    Operation::Insert { table: table.to_owned(), row: columns(row), name: None }
}

/// By identity, as all IDLs write: a server goes through the whole table for any other condition.
fn update<const N: usize>(table: &str, row: Uuid, values: [(&str, Value); N]) -> Operation {
    Operation::Update { table: table.to_owned(), condition: of(row), row: columns(values) }
}

fn of(row: Uuid) -> Vec<Clause> {
    vec![Clause::equal("_uuid", row)]
}

fn columns<const N: usize>(values: [(&str, Value); N]) -> Columns {
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn map<const N: usize>(pairs: [(&str, String); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(key, value)| (key.to_owned().into(), value.into())).collect())
}
