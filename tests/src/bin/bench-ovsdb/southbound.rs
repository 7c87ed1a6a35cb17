//! Cost of the clients of all chassis to the Southbound: processor time, memory, and how long others wait while many
//! hosts plug at once.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use metadata_tests::region::{self, DATABASE, inserted, meter, servers::Servers, writer::Writer};
use ovsdb_client::Config;
use tokio::{runtime, task::JoinSet};

use super::{
    HOST, Setting,
    subscriber::{Kind, Subscriber},
};

/// Hosts that plug in the same moment.
const STORM: usize = 50;
const CHANGES: usize = 400;
const PLUGS: usize = 20;
const ELECTION_TIMER: Duration = Duration::from_secs(10);
/// Servers are idle when they used less than this share of this time beyond what they use anyway.
const IDLE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Ports in the Southbound.
    #[arg(long, default_value_t = 100_000)]
    rows: usize,
    /// Numbers of clients, one measurement after another.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 20, 100])]
    clients: Vec<usize>,
    /// No more clients than this that ask for much: each takes a second or more, and memory of the servers and here.
    #[arg(long, default_value_t = 10)]
    most_of_large: usize,
    /// A cluster of three servers in the place of one server.
    #[arg(long)]
    raft: bool,
}

/// Costs of one kind of client to all servers together: milliseconds and bytes.
#[derive(Default)]
struct Costs {
    clients: usize,
    connect: f64,
    server_memory: f64,
    client_memory: f64,
    change: f64,
    plug: f64,
    unplug: f64,
    raise: f64,
    wait: f64,
    storm: usize,
}

pub(crate) fn bench(options: &Options) -> Result<()> {
    ensure!(options.rows >= STORM * HOST, "at least {} rows are needed", STORM * HOST);
    let mut setting = Setting::create(options.rows)?;
    if options.raft {
        setting.servers = setting.servers.into_cluster(&setting.sandbox, 3, ELECTION_TIMER)?;
    }
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let writer = Writer::connect(Config::new(setting.servers.remotes().parse()?, DATABASE)).await?;
        let servers = if options.raft { "three servers in a cluster" } else { "one server" };
        println!("\n{} ports on {} hosts, {servers}\n", options.rows, setting.region.hosts());
        println!(
            "| clients | connects, ms | server MB each | client MB each | a port changes, µs each | plug, ms | unplug, ms | \
             nb_cfg, ms each | wait, ms | of |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
        for clients in &options.clients {
            // What the transactions cost when nobody listens: each time, as it depends on what else the machine does.
            let mut alone = transactions(&setting, &writer, &mut Vec::new()).await?;
            alone.raise = raise(&setting, &writer, (*clients).max(1)).await?;
            print_line("none, but transactions", &alone, *clients);
            for kind in Kind::ALL {
                let clients = if kind.is_large() { (*clients).min(options.most_of_large) } else { *clients };
                let costs = measure(&setting, &writer, kind, clients, &alone).await.with_context(|| kind.name())?;
                print_line(kind.name(), &costs, clients);
            }
        }
        Ok(())
    })
}

fn print_line(name: &str, costs: &Costs, clients: usize) {
    let each = 1e3 / costs.clients.max(1) as f64;
    println!(
        "| {clients} × {name} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {} |",
        costs.connect,
        costs.server_memory * 1e-6,
        costs.client_memory * 1e-6,
        costs.change * each,
        costs.plug,
        costs.unplug,
        costs.raise,
        costs.wait,
        costs.storm,
    );
}

async fn measure(
    setting: &Setting,
    writer: &Writer,
    kind: Kind,
    clients: usize,
    alone: &Costs,
) -> Result<Costs> {
    eprintln!("{clients} × {}", kind.name());
    settle(&setting.servers).await?;
    let server_memory: u64 = setting.servers.memory()?.iter().sum();
    let client_memory = meter::memory(std::process::id())?;
    let mut subscribers = Vec::new();
    let connect = spent(&setting.servers, async {
        for host in 0..clients {
            subscribers.push(subscribe(setting, kind, host).await?);
        }
        Ok(())
    })
    .await?;
    let grown = |now: u64, before: u64| now.saturating_sub(before) as f64 / clients as f64;
    let server_memory = grown(setting.servers.memory()?.iter().sum(), server_memory);
    let client_memory = grown(meter::memory(std::process::id())?, client_memory);
    let costs = transactions(setting, writer, &mut subscribers).await?;
    let raise = raise(setting, writer, clients).await?;
    // Of those that ask for much as many as there are have to do.
    let most = if kind.is_large() { clients } else { STORM };
    for host in clients..most.min(setting.region.hosts()) {
        subscribers.push(subscribe(setting, kind, host).await?);
    }
    subscribers.truncate(STORM);
    let storm = subscribers.len();
    let wait = storm_of(setting, writer, subscribers).await?;
    settle(&setting.servers).await?;
    Ok(Costs {
        clients,
        connect: connect / clients as f64,
        server_memory,
        client_memory,
        change: costs.change - alone.change,
        plug: costs.plug - alone.plug,
        unplug: costs.unplug - alone.unplug,
        raise,
        wait,
        storm,
    })
}

async fn subscribe(setting: &Setting, kind: Kind, host: usize) -> Result<Subscriber> {
    let networks = &setting.region.networks;
    let datapaths =
        (host * HOST..(host + 1) * HOST).map(|number| networks[setting.region.vif(number).network_number()]);
    Subscriber::connect(
        kind,
        &setting.servers.remotes(),
        region::chassis_name(host),
        &setting.ports(host),
        datapaths.collect(),
    )
    .await
}

/// Changes of ports anywhere, and a port that is plugged and unplugged on one host after another.
async fn transactions(setting: &Setting, writer: &Writer, subscribers: &mut [Subscriber]) -> Result<Costs> {
    let (region, servers) = (&setting.region, &setting.servers);
    settle(servers).await?;
    let change = spent(servers, async {
        for number in 0..CHANGES {
            // Every host's turn comes, not only that of those that are connected.
            let row = region.rows[number * region.rows.len() / CHANGES];
            writer.write(vec![region::renamed(row, number)]).await?;
        }
        Ok(())
    })
    .await?;
    let vifs: Vec<_> =
        (0..PLUGS).map(|index| region.further_vif(index, index % subscribers.len().max(1))).collect();
    let mut rows = Vec::new();
    let plug = spent(servers, async {
        for vif in &vifs {
            let row = inserted(writer.write(vec![region.wanted(*vif)]).await?)?[0];
            writer.write(vec![region.claimed(*vif, row)]).await?;
            rows.push(row);
            if let Some(subscriber) = subscribers.get_mut(vif.host) {
                subscriber.plug(&vif.name(), true).await?;
            }
        }
        Ok(())
    })
    .await?;
    let unplug = spent(servers, async {
        for (vif, row) in vifs.iter().zip(rows) {
            writer.write(vec![region::removed(row)]).await?;
            if let Some(subscriber) = subscribers.get_mut(vif.host) {
                subscriber.plug(&vif.name(), false).await?;
            }
        }
        Ok(())
    })
    .await?;
    let each = |cost: f64, count: usize| cost / count as f64;
    Ok(Costs {
        change: each(change, CHANGES),
        plug: each(plug, PLUGS),
        unplug: each(unplug, PLUGS),
        ..Costs::default()
    })
}

/// A number is raised, and so many chassis answer it. What that costs for each.
async fn raise(setting: &Setting, writer: &Writer, chassis: usize) -> Result<f64> {
    settle(&setting.servers).await?;
    static NUMBER: AtomicI64 = AtomicI64::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let cost = spent(&setting.servers, async {
        writer.write(vec![setting.region.raised(number)]).await?;
        for host in 0..chassis {
            writer.write(vec![setting.region.answered(host, number)]).await?;
        }
        Ok(())
    })
    .await?;
    Ok(cost / chassis as f64)
}

/// The longest that a transaction of one row takes while all hosts plug a port at once.
async fn storm_of(setting: &Setting, writer: &Writer, subscribers: Vec<Subscriber>) -> Result<f64> {
    let region = &setting.region;
    let vifs: Vec<_> = (0..subscribers.len()).map(|host| region.further_vif(PLUGS + host, host)).collect();
    let rows = inserted(writer.write(vifs.iter().map(|vif| region.wanted(*vif)).collect()).await?)?;
    settle(&setting.servers).await?;
    let mut plugs = JoinSet::new();
    for (mut subscriber, vif) in subscribers.into_iter().zip(vifs.clone()) {
        plugs.spawn(async move {
            subscriber.plug(&vif.name(), true).await?;
            Ok::<_, anyhow::Error>(subscriber)
        });
    }
    let (mut longest, began) = (Duration::ZERO, Instant::now());
    let mut done = Vec::new();
    // For a second at least: the chassis claim their ports meanwhile.
    let mut claims = vifs.iter().zip(&rows);
    while done.len() < vifs.len() || began.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        writer.write(vec![region::renamed(region.rows[region.rows.len() - 1], done.len())]).await?;
        longest = longest.max(asked.elapsed());
        if let Some((vif, row)) = claims.next() {
            writer.write(vec![region.claimed(*vif, *row)]).await?;
        }
        while let Some(subscriber) = plugs.try_join_next() {
            done.push(subscriber??);
        }
    }
    writer.write(rows.into_iter().map(region::removed).collect()).await?;
    Ok(milliseconds(longest))
}

/// The milliseconds of processor time that all servers use for something, until they are idle again.
async fn spent(servers: &Servers, something: impl Future<Output = Result<()>>) -> Result<f64> {
    let before = total(servers)?;
    something.await?;
    settle(servers).await?;
    Ok(milliseconds(total(servers)?.saturating_sub(before)))
}

fn total(servers: &Servers) -> Result<Duration> {
    Ok(servers.cpu()?.iter().sum())
}

/// Waits until servers have nothing to do.
async fn settle(servers: &Servers) -> Result<()> {
    loop {
        let before = total(servers)?;
        tokio::time::sleep(IDLE).await;
        // A cluster's servers hear from each other, and say that they are there.
        if total(servers)?.saturating_sub(before) < IDLE / 100 * servers.count() as u32 {
            return Ok(());
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
