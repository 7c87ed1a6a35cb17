//! Real servers in temporary directories, gone when dropped.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is what they are for"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ovsdb_client::{
    Atom, Batch, Change, Clause, Client, Columns, Config, Event, Handle, Operation, Row, Splitter, TlsConfig,
    Uuid, Value,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const WAIT: Duration = Duration::from_secs(20);

/// A database for tests: every kind of column, and two that a "newer" schema would have.
pub const SCHEMA: &str = r#"{
  "name": "Inventory", "version": "1.0.0",
  "tables": {
    "Item": { "isRoot": true, "indexes": [["name"]], "columns": {
      "name": {"type": "string"},
      "count": {"type": "integer"},
      "price": {"type": "real"},
      "up": {"type": {"key": "boolean", "min": 0, "max": 1}},
      "tag": {"type": {"key": "integer", "min": 0, "max": 1}},
      "peer": {"type": {"key": {"type": "uuid", "refTable": "Item", "refType": "weak"}, "min": 0, "max": 1}},
      "labels": {"type": {"key": "string", "min": 0, "max": "unlimited"}},
      "peers": {"type": {"key": {"type": "uuid", "refTable": "Item", "refType": "weak"}, "min": 0, "max": "unlimited"}},
      "ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}}
    } },
    "Global": { "isRoot": true, "maxRows": 1, "columns": { "number": {"type": "integer"} } }
  }
}"#;

ovsdb_client::row! {
    pub struct Item in "Item" {
        name: String,
        count: i64,
        price: f64,
        up: Option<bool>,
        tag: Option<i64>,
        peer: Option<Uuid>,
        labels: BTreeSet<String>,
        peers: BTreeSet<Uuid>,
        ids: BTreeMap<String, String>,
        later: Option<String> as optional,
    }
}

ovsdb_client::row! {
    pub struct Global in "Global" {
        number: i64,
    }
}

/// A directory of its own, removed when dropped.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ovsdb-client-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Runs a tool of Open vSwitch to its end.
pub fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| missing(program, &error));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn missing(program: &str, error: &std::io::Error) -> ! {
    let package = match program {
        "ovs-pki" => "openvswitch-pki",
        "openssl" => "openssl",
        _ => "openvswitch-common (ovsdb-server: openvswitch-switch)",
    };
    panic!("{program}: {error}: these tests need it, install the Debian package {package}")
}

/// A port that nothing listens on, from below those that the kernel gives to clients.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = std::process::id() * 97 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + u16::try_from(offset % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// An ovsdb-server with one database.
pub struct Server {
    pub directory: TempDir,
    pub port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// A standalone server on a Unix socket and a TCP port, with `schema`.
    pub fn start(schema: &str) -> Self {
        Self::start_with(schema, |port| vec![format!("--remote=ptcp:{port}:127.0.0.1")])
    }

    /// The same with the arguments that `arguments` gives for a free port.
    pub fn start_with(schema: &str, arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let directory = TempDir::new();
        fs::write(directory.path("schema"), schema).unwrap();
        run("ovsdb-tool", &["create", "db", "schema"], &directory.0);
        Self::serve(directory, arguments)
    }

    /// Serves the database `db` in `directory`.
    pub fn serve(directory: TempDir, arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let port = free_port();
        let mut server = Self { arguments: arguments(port), directory, port, child: None };
        server.restart();
        server
    }

    /// Starts the server, after it was stopped or for the first time, and waits until it listens.
    pub fn restart(&mut self) {
        self.stop();
        let directory = &self.directory.0;
        drop(fs::remove_file(directory.join("sock")));
        let child = Command::new("ovsdb-server")
            .args([
                "db",
                "--remote=punix:sock",
                "--unixctl=ctl",
                "--no-chdir",
                "-vconsole:off",
                "-vsyslog:off",
            ])
            .args(["--log-file=log", "-vfile:info"])
            .args(&self.arguments)
            .current_dir(directory)
            .env("OVS_RUNDIR", directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| missing("ovsdb-server", &error));
        self.child = Some(child);
        let socket = directory.join("sock");
        let deadline = Instant::now() + WAIT;
        while std::os::unix::net::UnixStream::connect(&socket).is_err()
            || std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err()
        {
            let log = || fs::read_to_string(directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "ovsdb-server does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the server as a crash would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub fn unix(&self) -> String {
        format!("unix:{}", self.directory.path("sock").display())
    }

    pub fn tcp(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }

    /// Asks the server over its control socket.
    pub fn appctl(&self, arguments: &[&str]) -> String {
        let control = self.directory.path("ctl");
        let mut all = vec!["-t", control.to_str().unwrap()];
        all.extend(arguments);
        run("ovs-appctl", &all, &self.directory.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn config(remotes: &str) -> Config {
    let mut config = Config::new(remotes.parse().unwrap(), "Inventory");
    config.backoff_max = Duration::from_millis(400);
    config
}

/// The next event, or a failed test.
pub async fn next(client: &mut Client) -> Event {
    tokio::time::timeout(WAIT, client.recv()).await.expect("no event in time")
}

/// Takes events until one is wanted, and gives all batches on the way.
pub async fn until(
    client: &mut Client,
    mut wanted: impl FnMut(&Event, &Client) -> bool,
) -> (Event, Vec<Batch>) {
    let mut batches = Vec::new();
    loop {
        let event = next(client).await;
        let done = wanted(&event, client);
        match event {
            event if done => return (event, batches),
            Event::Batch(batch) => batches.push(batch),
            _ => {}
        }
    }
}

pub async fn synced(client: &mut Client) -> Vec<Batch> {
    until(client, |event, _| matches!(event, Event::Synced)).await.1
}

pub async fn batch(client: &mut Client) -> Batch {
    match until(client, |event, _| matches!(event, Event::Batch(_))).await.0 {
        Event::Batch(batch) => batch,
        other => panic!("{other:?}"),
    }
}

/// Takes events until the table holds exactly these names.
pub async fn until_names(client: &mut Client, names: &[&str]) -> Vec<Batch> {
    let mut batches = Vec::new();
    while item_names(client) != names {
        if let Event::Batch(batch) = next(client).await {
            batches.push(batch);
        }
    }
    batches
}

pub fn item_names(client: &Client) -> Vec<String> {
    let mut names: Vec<String> = client.table::<Item>().iter().map(|(_, item)| item.name.clone()).collect();
    names.sort();
    names
}

/// `+name`, `-name` and `~name` for each change.
pub fn summary(changes: &[Change<Item>]) -> Vec<String> {
    let mut lines: Vec<String> = changes
        .iter()
        .map(|change| match (&change.old, &change.new) {
            (None, Some(new)) => format!("+{}", new.name),
            (Some(old), None) => format!("-{}", old.name),
            (Some(_), Some(new)) => format!("~{}", new.name),
            (None, None) => panic!("a change of nothing"),
        })
        .collect();
    lines.sort();
    lines
}

pub fn summaries(batches: &[Batch]) -> Vec<Vec<String>> {
    batches.iter().map(|batch| summary(batch.of::<Item>())).collect()
}

pub fn insert(name: &str) -> Operation {
    insert_row(Columns::from([("name".into(), name.into())]))
}

pub fn insert_row(row: Columns) -> Operation {
    Operation::Insert { table: "Item".into(), row, name: None }
}

pub fn delete(name: &str) -> Operation {
    Operation::Delete { table: "Item".into(), condition: named(name) }
}

pub fn update(name: &str, column: &str, value: impl Into<Value>) -> Operation {
    Operation::Update {
        table: "Item".into(),
        condition: named(name),
        row: Columns::from([(column.into(), value.into())]),
    }
}

pub fn named(name: &str) -> Vec<Clause> {
    vec![Clause::equal("name", name)]
}

/// What a fold of notifications gives: to compare with the replica.
pub struct Fold<R>(pub BTreeMap<Uuid, R>);

impl<R: Row> Fold<R> {
    pub fn apply(&mut self, batch: &Batch) {
        for change in batch.of::<R>() {
            let old = match &change.new {
                Some(new) => self.0.insert(change.uuid, R::clone(new)),
                None => self.0.remove(&change.uuid),
            };
            assert_eq!(old.as_ref(), change.old.as_deref(), "the old row is the one told before");
        }
    }

    pub fn check(&self, client: &Client) {
        let table: BTreeMap<Uuid, R> =
            client.table::<R>().iter().map(|(uuid, row)| (*uuid, R::clone(row))).collect();
        assert_eq!(self.0, table);
    }
}

/// Certificates as deployments make them.
pub struct Pki(pub TempDir);

impl Pki {
    pub fn new() -> Self {
        let pki = Self(TempDir::new());
        pki.run(&["init"]);
        pki
    }

    fn run(&self, arguments: &[&str]) {
        let directory = &self.0.0;
        let mut all = vec!["-B", "2048", "-b", "-u", "--log=log"];
        let top = format!("--dir={}", directory.join("pki").display());
        all.push(&top);
        all.extend(arguments);
        run("ovs-pki", &all, directory);
    }

    /// A key and a certificate `<name>` from the `switch` or the `controller` authority.
    pub fn issue(&self, name: &str, authority: &str) {
        self.run(&["req+sign", name, authority]);
    }

    /// The same with a certificate of long ago.
    pub fn issue_expired(&self, name: &str, authority: &str) {
        self.run(&["req", name]);
        let (request, certificate) =
            (self.file(&format!("{name}-req.pem")), self.file(&format!("{name}-cert.pem")));
        let dates = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"];
        let files = ["-in", &request, "-out", &certificate];
        let arguments: Vec<&str> =
            ["ca", "-config", "ca.cnf", "-batch"].into_iter().chain(files).chain(dates).collect();
        run("openssl", &arguments, &self.0.0.join(format!("pki/{authority}ca")));
    }

    pub fn authority(&self, authority: &str) -> String {
        self.file(&format!("pki/{authority}ca/cacert.pem"))
    }

    pub fn file(&self, name: &str) -> String {
        self.0.path(name).to_str().unwrap().to_owned()
    }

    /// A client's configuration: `name` signed by the controller authority, servers by the switch authority.
    pub fn tls(&self, name: &str) -> TlsConfig {
        TlsConfig {
            private_key: self.file(&format!("{name}-privkey.pem")).into(),
            certificate: self.file(&format!("{name}-cert.pem")).into(),
            ca_certificates: self.authority("switch").into(),
            verify_hostname: false,
        }
    }

    /// The arguments of a server that listens on `port` with the certificate `name`.
    pub fn server_arguments(&self, name: &str, port: u16) -> Vec<String> {
        vec![
            format!("--remote=pssl:{port}:127.0.0.1"),
            format!("--private-key={}", self.file(&format!("{name}-privkey.pem"))),
            format!("--certificate={}", self.file(&format!("{name}-cert.pem"))),
            format!("--ca-cert={}", self.authority("controller")),
        ]
    }
}

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
                server.child.is_some()
                    && server.appctl(&["cluster/status", "Inventory"]).contains("Role: leader")
            };
            if let Some(leader) = self.servers.iter().position(leads) {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Server {
    /// Waits until a server of a cluster has found it.
    pub fn await_connected(&self) {
        let arguments = ["--timeout=20", "wait", &self.unix(), "Inventory", "connected"];
        run("ovsdb-client", &arguments, &self.directory.0);
    }
}

/// A listener between a client and a server that keeps what the server says, and can rename the client's methods.
pub struct Proxy {
    pub port: u16,
    pub heard: Arc<Mutex<Vec<String>>>,
    /// Makes the next modification that the server tells unreadable.
    pub garble: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server: &Server, rename: &'static [&'static str]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let garble: Arc<AtomicBool> = Arc::default();
        let (target, log, garbler) = (server.port, Arc::clone(&heard), Arc::clone(&garble));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let (log, garbler) = (Arc::clone(&log), Arc::clone(&garbler));
                connections.spawn(async move {
                    let renamed = |message: &mut String| {
                        for method in rename {
                            let (from, to) = (format!("\"{method}\""), format!("\"no_{method}\""));
                            // The database _Server is monitored with monitor_cond in any case.
                            if !message.contains("_Server") {
                                *message = message.replace(&from, &to);
                            }
                        }
                    };
                    tokio::select! {
                        () = relay(from_client, to_server, renamed) => {}
                        () = relay(from_server, to_client, |message| {
                            if message.contains("\"modify\"") && garbler.swap(false, Ordering::Relaxed) {
                                *message = message.replace("\"modify\"", "\"garbled\"");
                            }
                            log.lock().unwrap().push(message.clone());
                        }) => {}
                    }
                });
            }
        });
        Self { port, heard, garble, task }
    }

    pub fn remote(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut pass: impl FnMut(&mut String),
) {
    let mut splitter = Splitter::new(1 << 30);
    let mut buffer = vec![0; 4096];
    loop {
        match from.read(&mut buffer).await {
            Ok(length) if length > 0 => splitter.push(&buffer[..length]).unwrap(),
            _ => return,
        }
        while let Some(message) = splitter.next_message() {
            let mut message = String::from_utf8(message).unwrap();
            pass(&mut message);
            if to.write_all(message.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// The rows of `Item` as the server of `handle` holds them, read without any monitor.
pub async fn select_items(handle: &Handle) -> BTreeMap<Uuid, Item> {
    let select = Operation::Select { table: "Item".into(), condition: vec![], columns: None };
    let results = handle.transact(vec![select]).await.unwrap();
    results[0].rows.iter().map(item_of).collect()
}

fn item_of(row: &Columns) -> (Uuid, Item) {
    let atoms = |column: &str| match &row[column] {
        Value::Atom(atom) => vec![atom.clone()],
        Value::Set(atoms) => atoms.clone(),
        Value::Map(_) => panic!("{column} is a map"),
    };
    let uuids = |column: &str| -> BTreeSet<Uuid> {
        let uuid = |atom| if let Atom::Uuid(uuid) = atom { uuid } else { panic!("{atom:?}") };
        atoms(column).into_iter().map(uuid).collect()
    };
    let strings = |column: &str| -> BTreeSet<String> {
        let text = |atom| if let Atom::String(text) = atom { text } else { panic!("{atom:?}") };
        atoms(column).into_iter().map(text).collect()
    };
    let integer = |atom: &Atom| if let Atom::Integer(value) = atom { *value } else { panic!("{atom:?}") };
    let price = match atoms("price")[0] {
        Atom::Real(value) => value,
        Atom::Integer(value) => value as f64,
        ref other => panic!("{other:?}"),
    };
    let ids = match &row["ids"] {
        Value::Map(pairs) => pairs.iter().map(|pair| match pair {
            (Atom::String(key), Atom::String(value)) => (key.clone(), value.clone()),
            other => panic!("{other:?}"),
        }),
        other => panic!("{other:?}"),
    };
    let item = Item {
        name: strings("name").into_iter().next().unwrap(),
        count: integer(&atoms("count")[0]),
        price,
        up: atoms("up").first().map(|atom| *atom == Atom::Boolean(true)),
        tag: atoms("tag").first().map(integer),
        peer: uuids("peer").into_iter().next(),
        labels: strings("labels"),
        peers: uuids("peers"),
        ids: ids.collect(),
        later: None,
    };
    (uuids("_uuid").into_iter().next().unwrap(), item)
}
