//! This agent beside the one it replaces: neutron-ovn-metadata-agent with Debian's haproxy, on one chassis with a real OVN.
//!
//! Both see the same databases, guests and upstream. Where loads are compared they alternate: programs of ours are put on the
//! taps for its rounds, and taken off for the other's, which runs all the time. What is printed is the table of
//! docs/benchmarks.md; ratios are medians over rounds, with quartiles.
#![forbid(unsafe_code)]

mod answers;
mod changes;
mod migration;
mod neutron;
mod pair;
mod report;
mod requests;
mod scale;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use metadata_tests::{nova, upstream::constant, world};
use neutron::Neutron;
use report::Report;

/// Parts of the measurement, and its rounds.
#[derive(Debug, Parser)]
struct Arguments {
    /// The virtual environment that has neutron.
    #[arg(long)]
    environment: PathBuf,
    /// Numbers of networks, each with a guest, for memory and starts.
    #[arg(long, value_delimiter = ',', default_value = "1,50")]
    networks: Vec<usize>,
    /// Starts of each agent for each number of networks.
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Rounds of everything else.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a load in a round.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Ports of other hosts in the Southbound, with which requests are measured once more.
    #[arg(long, default_value_t = 10_000)]
    foreign: usize,
    /// `metadata_workers` of the other agent; its own choice if not given.
    #[arg(long)]
    workers: Option<u32>,
    /// File in which the comparison is drawn.
    #[arg(long, default_value = "incumbent.svg")]
    svg: PathBuf,
    /// Only these parts of it.
    parts: Vec<Part>,
}

/// A part of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Good answers, and processor time for each.
    Requests,
    /// Requests at once, and bodies in two pieces.
    Answers,
    /// A guest that is plugged, and a restart of the agent.
    Changes,
    /// Memory and start by networks.
    Scale,
    /// `migrate` against the real agent, while guests ask.
    Migration,
}

impl Arguments {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("upstream") {
        return constant::serve(SocketAddrV4::new(Ipv4Addr::LOCALHOST, nova::ADDRESS.port()));
    }
    let arguments = Arguments::parse();
    world::enter()?;
    if [Part::Answers, Part::Changes, Part::Requests, Part::Scale].into_iter().any(|part| arguments.has(part))
    {
        compare(&arguments)?;
    }
    if arguments.has(Part::Migration) {
        migration::there_and_back(&arguments)?;
    }
    Ok(())
}

/// Everything that both do.
fn compare(arguments: &Arguments) -> Result<()> {
    let mut report = Report::begin(&Neutron::version(&arguments.environment)?);
    if arguments.has(Part::Answers) || arguments.has(Part::Changes) || arguments.has(Part::Requests) {
        let mut pair = pair::Pair::start(arguments, 2)?;
        pair.start_neutron()?;
        if arguments.has(Part::Answers) {
            answers::at_once(&mut pair, arguments, &mut report)?;
            answers::bodies(&mut pair, arguments, &mut report)?;
        }
        if arguments.has(Part::Changes) {
            changes::plugs(&mut pair, arguments, &mut report)?;
            changes::restarts(&mut pair, arguments, &mut report)?;
        }
        if arguments.has(Part::Requests) {
            requests::all(&mut pair, arguments, &mut report)?;
        }
    }
    if arguments.has(Part::Scale) {
        for networks in &arguments.networks {
            scale::starts(*networks, arguments, &mut report)?;
        }
    }
    std::fs::write(&arguments.svg, report.drawing())?;
    println!("\nThe comparison is drawn in {}.", arguments.svg.display());
    Ok(())
}
