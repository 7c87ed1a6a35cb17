//! Measures clients of OVSDB against each other, and what they cost a Southbound of a region's size.
//!
//! `bench-ovsdb clients`: each client is a process of its own, measured from its start to the moment when it holds all rows,
//! or has printed them. `bench-ovsdb southbound`: what a server pays for the clients of all hosts, by how they ask for
//! their ports. `cargo xtask bench ovsdb` and `cargo xtask bench southbound` install what is needed and run these.

mod client;
mod contender;
mod report;
mod southbound;
mod subscriber;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use metadata_tests::{
    region::{DATABASE, Region, servers::Servers, writer::Writer},
    sandbox::Sandbox,
};
use ovsdb_client::Config;
use tokio::runtime;

use contender::{Contender, Usage};

/// The ports of one host.
const HOST: usize = 200;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Clients against each other.
    Clients(ClientsOptions),
    /// Cost of clients to a server.
    Southbound(southbound::Options),
    /// The client that is measured.
    #[command(name = client::COMMAND)]
    Client { remote: String, ports: Option<PathBuf> },
}

#[derive(Debug, Args)]
struct ClientsOptions {
    /// Ports in the Southbound.
    #[arg(long, default_value_t = 100_000)]
    rows: usize,
    /// Runs of each client, of which the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// A Southbound with the ports of many hosts.
struct Setting {
    region: Region,
    servers: Servers,
    sandbox: Sandbox,
}

impl Setting {
    fn create(rows: usize) -> Result<Self> {
        ensure!(rows >= HOST && rows.is_multiple_of(HOST), "hosts have {HOST} rows each");
        eprintln!("making a Southbound of {rows} ports");
        let sandbox = Sandbox::create()?;
        let servers = Servers::standalone(&sandbox)?;
        let remotes = servers.remotes();
        let region = runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let writer = Writer::connect(Config::new(remotes.parse()?, DATABASE)).await?;
            Region::fill(&writer, rows / HOST, HOST).await
        })?;
        Ok(Self { region, servers, sandbox })
    }

    /// The names of a host's ports.
    fn ports(&self, host: usize) -> Vec<String> {
        (host * HOST..(host + 1) * HOST).map(|number| self.region.vif(number).name()).collect()
    }
}

fn main() -> Result<()> {
    match Cli::parse().what {
        What::Client { remote, ports } => client::run(&remote, ports.as_deref()),
        What::Clients(options) => compare(&options),
        What::Southbound(options) => southbound::bench(&options),
    }
}

fn compare(options: &ClientsOptions) -> Result<()> {
    ensure!(options.runs > 0, "at least one run is needed");
    let setting = Setting::create(options.rows)?;
    let rows = options.rows;
    let [full, conditional] = [contender::full(&setting, rows)?, contender::conditional(&setting)?];
    for (title, contenders) in [("all rows", full), ("the rows of one host", conditional)] {
        let usages = measure(&contenders, options.runs)?;
        report::table(&format!("{title}: {} of {rows}", contenders[0].rows), &contenders, &usages);
        report::goals(&contenders, &usages);
    }
    Ok(())
}

/// The median of some runs of each. They take turns, so that what else the machine does hits all alike.
fn measure(contenders: &[Contender], runs: usize) -> Result<Vec<Usage>> {
    let mut usages = vec![Vec::new(); contenders.len()];
    for run in 0..runs {
        for (contender, usages) in contenders.iter().zip(&mut usages) {
            eprintln!("run {} of {runs}: {}", run + 1, contender.name);
            usages.push(contender.measure().with_context(|| contender.name.to_owned())?);
        }
    }
    Ok(usages.iter().map(|usages| Usage::median(usages)).collect())
}
