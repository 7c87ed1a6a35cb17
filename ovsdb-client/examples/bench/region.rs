//! A Southbound database with as many ports as a region has, as ovn-northd and Neutron fill them in.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ovsdb_client::{Clause, Client, Columns, Config, Event, Mutation, Mutator, Operation, Uuid, Value};

pub(crate) const SCHEMA: &str = "/usr/share/ovn/ovn-sb.ovsschema";
const START: Duration = Duration::from_secs(10);
/// Ports written in one transaction.
const CHUNK: usize = 5000;

/// A server with its directory, both gone when this is dropped.
pub(crate) struct Region {
    directory: PathBuf,
    server: Option<Child>,
    /// The rows of `ports`.
    pub(crate) rows: Vec<Uuid>,
    networks: Vec<Uuid>,
    chassis: Vec<Uuid>,
    /// The logical ports, those of each host next to each other.
    pub(crate) ports: Vec<String>,
}

impl Region {
    pub(crate) fn create(rows: usize) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("ovsdb-bench-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let mut region = Self {
            directory,
            server: None,
            rows: Vec::new(),
            networks: Vec::new(),
            chassis: Vec::new(),
            ports: (0..rows).map(|row| id("port", row)).collect(),
        };
        region.start()?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(region.fill())?;
        Ok(region)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn remote(&self) -> String {
        format!("unix:{}", self.path("sock").display())
    }

    fn start(&mut self) -> Result<()> {
        let created = Command::new("ovsdb-tool")
            .arg("create")
            .arg(self.path("db"))
            .arg(SCHEMA)
            .status()
            .context("ovsdb-tool")?;
        ensure!(created.success(), "ovsdb-tool: {created}");
        let server = Command::new("ovsdb-server")
            .args([
                "db",
                "--remote=punix:sock",
                "--unixctl=ctl",
                "-vconsole:off",
                "-vsyslog:off",
                "-vfile:off",
            ])
            .current_dir(&self.directory)
            .env("OVS_RUNDIR", &self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("ovsdb-server")?;
        self.server = Some(server);
        let deadline = Instant::now() + START;
        while std::os::unix::net::UnixStream::connect(self.path("sock")).is_err() {
            ensure!(Instant::now() < deadline, "ovsdb-server does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<()> {
        let mut client = Client::builder(Config::new(self.remote().parse()?, "OVN_Southbound")).connect();
        while !matches!(client.recv().await, Event::Synced) {}
        let hosts = self.ports.len().div_ceil(super::HOST);
        let networks: Vec<Operation> = (0..hosts).map(network).collect();
        let networks = inserted(client.transact(networks).await?)?;
        let chassis: Vec<Operation> = (0..hosts).flat_map(chassis).collect();
        // Each chassis is inserted behind its encapsulation.
        let chassis: Vec<Uuid> =
            inserted(client.transact(chassis).await?)?.into_iter().skip(1).step_by(2).collect();
        let rows: Vec<usize> = (0..self.ports.len()).collect();
        for rows in rows.chunks(CHUNK) {
            let ports = rows.iter().map(|&row| self.port(row, &networks, &chassis)).collect();
            self.rows.extend(inserted(client.transact(ports).await?)?);
        }
        (self.networks, self.chassis) = (networks, chassis);
        Ok(())
    }

    pub(crate) fn hosts(&self) -> usize {
        self.chassis.len()
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.server.as_ref().context("no server runs")?.id())
    }

    /// A port that Neutron has bound to a host.
    pub(crate) fn plugged(&self, host: usize, port: &str) -> Operation {
        insert(
            "Port_Binding",
            [
                ("logical_port", port.into()),
                ("datapath", self.networks[host % self.networks.len()].into()),
                ("tunnel_key", (20_000 + host as i64).into()),
                ("requested_chassis", self.chassis[host].into()),
                ("mac", vec!["fa:16:3e:00:00:01 10.0.0.3"].into()),
                ("external_ids", map([("neutron:device_id", id("instance", host))])),
            ],
        )
    }

    /// What ovn-controller says of it.
    pub(crate) fn claimed(&self, host: usize, row: Uuid) -> Operation {
        let columns = [("chassis".to_owned(), self.chassis[host].into()), ("up".to_owned(), true.into())];
        Operation::Update { table: "Port_Binding".to_owned(), condition: of(row), row: columns.into() }
    }

    /// A bound port of a guest. A network's ports are spread over all hosts.
    fn port(&self, row: usize, networks: &[Uuid], chassis: &[Uuid]) -> Operation {
        let (host, network, key) = (row / super::HOST, row % networks.len(), row / networks.len());
        let address = format!("10.{}.{}.{}", network % 256, key / 250, key % 250 + 3);
        let mac = format!("fa:16:3e:{:02x}:{:02x}:{:02x}", row >> 16 & 255, row >> 8 & 255, row & 255);
        let both = || Value::from(vec![format!("{mac} {address}")]);
        insert(
            "Port_Binding",
            [
                ("logical_port", self.ports[row].as_str().into()),
                ("datapath", networks[network].into()),
                ("tunnel_key", (key as i64 + 1).into()),
                ("chassis", chassis[host].into()),
                ("requested_chassis", chassis[host].into()),
                ("up", true.into()),
                ("mac", both()),
                ("port_security", both()),
                ("options", map([("requested-chassis", format!("compute-{host}.example.org"))])),
                (
                    "external_ids",
                    map([
                        ("neutron:cidrs", format!("{address}/16")),
                        ("neutron:device_id", id("instance", row)),
                        ("neutron:device_owner", "compute:nova".to_owned()),
                        ("neutron:mtu", String::new()),
                        ("neutron:network_name", format!("neutron-{}", id("network", network))),
                        ("neutron:port_capabilities", String::new()),
                        ("neutron:port_name", String::new()),
                        ("neutron:project_id", id("project", network).replace('-', "")),
                        ("neutron:revision_number", "4".to_owned()),
                        ("neutron:security_group_ids", id("group", network)),
                        ("neutron:subnet_pool_addr_scope4", String::new()),
                        ("neutron:subnet_pool_addr_scope6", String::new()),
                        ("neutron:vnic_type", "normal".to_owned()),
                    ]),
                ),
            ],
        )
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server
            && let Err(error) = server.kill().and_then(|()| server.wait())
        {
            eprintln!("bench: ovsdb-server may still run: {error}");
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("bench: {} is left behind: {error}", self.directory.display());
        }
    }
}

/// A change that nobody's conditions depend on.
pub(crate) fn rename_port(row: Uuid, number: usize) -> Operation {
    let mutations = vec![
        Mutation::new("external_ids", Mutator::Delete, vec!["neutron:port_name"]),
        Mutation::new(
            "external_ids",
            Mutator::Insert,
            map([("neutron:port_name", format!("name-{number}"))]),
        ),
    ];
    Operation::Mutate { table: "Port_Binding".to_owned(), condition: of(row), mutations }
}

pub(crate) fn unplugged(row: Uuid) -> Operation {
    Operation::Delete { table: "Port_Binding".to_owned(), condition: of(row) }
}

pub(crate) fn chassis_name(number: usize) -> String {
    id("chassis", number)
}

/// By identity, as all IDLs write: a server goes through the whole table for any other condition.
fn of(row: Uuid) -> Vec<Clause> {
    vec![Clause::equal("_uuid", row)]
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

fn chassis(number: usize) -> [Operation; 2] {
    let (name, encap) = (chassis_name(number), format!("encap{number}"));
    let mut encapsulation = insert(
        "Encap",
        [
            ("type", "geneve".into()),
            ("ip", format!("172.16.{}.{}", number / 250, number % 250 + 1).into()),
            ("chassis_name", name.clone().into()),
        ],
    );
    if let Operation::Insert { name, .. } = &mut encapsulation {
        *name = Some(encap.clone());
    }
    let chassis = insert(
        "Chassis",
        [
            ("name", name.into()),
            ("hostname", format!("compute-{number}.example.org").into()),
            ("encaps", Value::named_uuid(encap)),
        ],
    );
    [encapsulation, chassis]
}

fn insert<const N: usize>(table: &str, columns: [(&str, Value); N]) -> Operation {
    let row: Columns = columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Operation::Insert { table: table.to_owned(), row, name: None }
}

fn map<const N: usize>(pairs: [(&str, String); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(key, value)| (key.to_owned().into(), value.into())).collect())
}

pub(crate) fn inserted(results: Vec<ovsdb_client::OperationResult>) -> Result<Vec<Uuid>> {
    results.into_iter().map(|result| result.uuid.context("nothing was inserted")).collect()
}

/// A UUID that follows from a kind and a number, and looks random as those in databases do.
fn id(kind: &str, number: usize) -> String {
    let kind = kind.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let half = |salt: u64| {
        // splitmix64
        let mut x = (number as u64 ^ kind << 32).wrapping_add(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    Uuid::from_u64_pair(half(1), half(2)).to_string()
}
