//! What the clients of all chassis cost the Southbound: the CPU time of its only thread, its memory, and how long others
//! wait while many hosts plug at once.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ovsdb_client::{Client, Config, Event, Handle, Operation, OperationResult, Uuid};
use tokio::task::JoinSet;

use super::HOST;
use super::region::{self, Region};
use super::subscriber::{Kind, Subscriber};

const CLIENTS: usize = 20;
/// Hosts that plug in the same moment. The incumbent's do nothing then: as many as are connected anyway are enough.
pub(crate) const STORM: usize = 50;
const CHANGES: usize = 400;
const KINDS: [Kind; 3] = [Kind::Chassis, Kind::Names, Kind::Everything];
/// The server is idle when it used less than a hundredth of this time.
const IDLE: Duration = Duration::from_millis(200);

/// What one kind of client costs, in milliseconds and bytes, per client, change, plug and unplug.
#[derive(Default)]
struct Costs {
    first: f64,
    others: f64,
    memory: f64,
    change: f64,
    plug: f64,
    unplug: f64,
    wait: f64,
    storm: usize,
}

/// A program that writes, as Neutron, ovn-northd and ovn-controller do.
struct Writer {
    client: Client,
    handle: Handle,
}

pub(crate) fn bench(rows: usize) -> Result<()> {
    eprintln!("making a Southbound of {rows} ports");
    let region = Region::create(rows)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (costs, alone) = runtime.block_on(async {
        let mut writer = Writer::connect(&region).await?;
        let (mut all, mut alone) = (Vec::new(), Costs::default());
        for kind in KINDS {
            // What the transactions cost when nobody listens: each time, as it depends on what else the machine does.
            alone = costs(&region, &mut writer, &mut Vec::new(), &Costs::default()).await?;
            all.push(measure(&region, &mut writer, kind, &alone).await.with_context(|| kind.name())?);
        }
        drop(writer);
        Ok::<_, anyhow::Error>((all, alone))
    })?;
    report(&region, &costs, &alone);
    Ok(())
}

async fn measure(region: &Region, writer: &mut Writer, kind: Kind, alone: &Costs) -> Result<Costs> {
    eprintln!("{}", kind.name());
    settle(region).await?;
    let memory = region.memory()?;
    let (mut subscribers, mut connect) = (Vec::new(), Vec::new());
    for host in 0..CLIENTS {
        let before = region.cpu()?;
        subscribers.push(subscriber(region, kind, host).await?);
        settle(region).await?;
        connect.push(milliseconds(region.cpu()?.saturating_sub(before)));
    }
    let others = connect[1..].iter().sum::<f64>() / (connect.len() - 1) as f64;
    let memory = region.memory()?.saturating_sub(memory) as f64 / CLIENTS as f64;
    let costs = costs(region, writer, &mut subscribers, alone).await?;
    if kind != Kind::Everything {
        for host in CLIENTS..STORM.min(region.hosts()) {
            subscribers.push(subscriber(region, kind, host).await?);
        }
    }
    let storm = subscribers.len();
    let wait = storm_of(region, writer, subscribers).await?;
    settle(region).await?;
    Ok(Costs { first: connect[0], others, memory, wait, storm, ..costs })
}

async fn subscriber(region: &Region, kind: Kind, host: usize) -> Result<Subscriber> {
    let ports = &region.ports[host * HOST..(host + 1) * HOST];
    Subscriber::connect(kind, &region.remote(), region::chassis_name(host), ports).await
}

/// Changes of ports anywhere, and a port of each client that is plugged and unplugged, beyond what that costs `alone`.
async fn costs(
    region: &Region,
    writer: &mut Writer,
    subscribers: &mut [Subscriber],
    alone: &Costs,
) -> Result<Costs> {
    settle(region).await?;
    let before = region.cpu()?;
    for number in 0..CHANGES {
        // Every host's turn comes, not only that of those that are connected.
        let row = region.rows[number * region.rows.len() / CHANGES];
        writer.write(vec![region::rename_port(row, number)]).await?;
    }
    let change = spent(region, before).await? / CHANGES as f64 - alone.change;
    let rounds = CLIENTS.min(region.hosts());
    let names: Vec<String> = (0..rounds).map(|host| format!("plugged-{host}")).collect();
    let mut rows = Vec::new();
    let before = region.cpu()?;
    for (host, name) in names.iter().enumerate() {
        let row = writer.insert(vec![region.plugged(host, name)]).await?[0];
        writer.write(vec![region.claimed(host, row)]).await?;
        rows.push(row);
        if let Some(subscriber) = subscribers.get_mut(host) {
            subscriber.plug(name, true).await?;
        }
    }
    let plug = spent(region, before).await? / rounds as f64 - alone.plug;
    let before = region.cpu()?;
    for ((host, name), row) in names.iter().enumerate().zip(rows) {
        writer.write(vec![region::unplugged(row)]).await?;
        if let Some(subscriber) = subscribers.get_mut(host) {
            subscriber.plug(name, false).await?;
        }
    }
    let unplug = spent(region, before).await? / rounds as f64 - alone.unplug;
    let change = change / subscribers.len().max(1) as f64;
    Ok(Costs { change, plug, unplug, ..Costs::default() })
}

/// The longest that a transaction of one row takes while all hosts plug a port at once.
async fn storm_of(region: &Region, writer: &mut Writer, subscribers: Vec<Subscriber>) -> Result<f64> {
    let names: Vec<String> = (0..subscribers.len()).map(|host| format!("stormy-{host}")).collect();
    let rows = names.iter().enumerate().map(|(host, name)| region.plugged(host, name));
    let rows = writer.insert(rows.collect()).await?;
    settle(region).await?;
    let mut plugs = JoinSet::new();
    for (mut subscriber, name) in subscribers.into_iter().zip(names.clone()) {
        plugs.spawn(async move {
            subscriber.plug(&name, true).await?;
            Ok::<_, anyhow::Error>(subscriber)
        });
    }
    let (mut longest, began) = (Duration::ZERO, Instant::now());
    let mut done = Vec::new();
    // For a second at least: the chassis claim their ports meanwhile.
    let mut claims = rows.iter().enumerate();
    while done.len() < names.len() || began.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        writer.write(vec![region::rename_port(region.rows[region.rows.len() - 1], done.len())]).await?;
        longest = longest.max(asked.elapsed());
        if let Some((host, row)) = claims.next() {
            writer.write(vec![region.claimed(host, *row)]).await?;
        }
        while let Some(subscriber) = plugs.try_join_next() {
            done.push(subscriber??);
        }
    }
    writer.write(rows.into_iter().map(region::unplugged).collect()).await?;
    Ok(milliseconds(longest))
}

impl Writer {
    async fn connect(region: &Region) -> Result<Self> {
        let mut client = Client::builder(Config::new(region.remote().parse()?, "OVN_Southbound")).connect();
        while !matches!(client.recv().await, Event::Synced) {}
        Ok(Self { handle: client.handle(), client })
    }

    async fn insert(&mut self, operations: Vec<Operation>) -> Result<Vec<Uuid>> {
        region::inserted(self.write(operations).await?)
    }

    async fn write(&mut self, operations: Vec<Operation>) -> Result<Vec<OperationResult>> {
        tokio::select! {
            results = self.handle.transact(operations) => Ok(results?),
            event = self.client.recv() => anyhow::bail!("{event:?}"),
        }
    }
}

/// The milliseconds of CPU that the server used since it had used `before`, once it is idle.
async fn spent(region: &Region, before: Duration) -> Result<f64> {
    settle(region).await?;
    Ok(milliseconds(region.cpu()?.saturating_sub(before)))
}

/// Waits until the server has nothing to do.
async fn settle(region: &Region) -> Result<()> {
    loop {
        let before = region.cpu()?;
        tokio::time::sleep(IDLE).await;
        if region.cpu()?.saturating_sub(before) < IDLE / 100 {
            return Ok(());
        }
    }
}

impl Region {
    /// The CPU time of the server's main thread, the only one that serves clients.
    fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid()?))?;
        let nanoseconds = text.split_whitespace().next().context("schedstat")?.parse()?;
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The server's memory, in bytes.
    fn memory(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kibibytes: u64 = line.split_whitespace().next().context("VmRSS")?.parse()?;
        Ok(kibibytes * 1024)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn report(region: &Region, costs: &[Costs], alone: &Costs) {
    let line = |name: &str, unit: f64, digits: usize, of: &dyn Fn(&Costs) -> f64| {
        let cells: Vec<String> =
            costs.iter().map(|costs| format!("{:.digits$}", (of(costs) * unit).max(0.0))).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    let (rows, hosts) = (region.ports.len(), region.hosts());
    println!("\n{rows} ports on {hosts} hosts, {CLIENTS} clients\n");
    println!("| | {} |", KINDS.map(Kind::name).join(" | "));
    println!("|---|{}", "--:|".repeat(KINDS.len()));
    line("the first client connects, ms of server CPU", 1.0, 0, &|costs| costs.first);
    line("each further one, ms", 1.0, 0, &|costs| costs.others);
    line("server memory per client, MB", 1e-6, 1, &|costs| costs.memory);
    line("a port changes, per client, µs", 1e3, 1, &|costs| costs.change);
    line("a port is plugged, ms", 1.0, 2, &|costs| costs.plug);
    line("a port is unplugged, ms", 1.0, 2, &|costs| costs.unplug);
    line("longest wait of another's transaction while hosts plug at once, ms", 1.0, 0, &|costs| costs.wait);
    let storms = costs.iter().map(|costs| costs.storm.to_string()).collect::<Vec<_>>().join(" | ");
    println!("| that many hosts | {storms} |");
    println!(
        "\nWithout any client a change costs {:.0} µs, the rows of a plug {:.2} ms, of an unplug {:.2} ms.",
        alone.change * 1e3,
        alone.plug,
        alone.unplug
    );
}
