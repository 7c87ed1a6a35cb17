//! Soak of an agent: memory, descriptors and latency while guests ask at a bounded rate, and taps, databases and Nova
//! come and go.
//!
//! On a real OVN and Open vSwitch. Prints a table, a verdict, and draws the curves.
#![forbid(unsafe_code)]

mod drawing;
mod load;
mod sample;
mod unrest;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use load::Load;
use metadata_tests::{
    agent::Options,
    cloud::Cloud,
    guest::Guest,
    ovn::{Lab, Routing},
};
use sample::{Sample, Watch};
use unrest::Unrest;

const GUESTS: usize = 8;
/// Guests whose taps come and go.
const RESTLESS: usize = 4;
const PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
struct Arguments {
    /// Duration in minutes.
    #[arg(long, default_value_t = 12)]
    minutes: u32,
    /// Requests a second, of all guests together.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// File that the curves are drawn into.
    #[arg(long, default_value = "soak.svg")]
    svg: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut cloud = Cloud::on(Lab::start()?, &Options::default())?;
    cloud.quiet = true;
    let network = cloud.chassis.add_network("steady", Routing::Isolated)?;
    let steady = (0..GUESTS).map(|_| cloud.add_guest(&network)).collect::<Result<Vec<_>>>()?;
    let other = cloud.chassis.add_network("restless", Routing::Isolated)?;
    let restless = (0..RESTLESS).map(|_| cloud.add_guest(&other)).collect::<Result<Vec<_>>>()?;
    for guest in steady.iter().chain(&restless) {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
    }
    let samples = soak(&mut cloud, &steady, &restless, &arguments)?;
    sample::print(&samples);
    sample::judge(&samples);
    std::fs::write(&arguments.svg, drawing::curves(&samples))?;
    println!("\nThe curves are in {}.", arguments.svg.display());
    Ok(())
}

/// Takes a sample every ten seconds, while guests ask and everything around the agent is restless.
fn soak(
    cloud: &mut Cloud<Lab>,
    steady: &[Guest],
    restless: &[Guest],
    arguments: &Arguments,
) -> Result<Vec<Sample>> {
    let load = Load::new(arguments.rate / steady.len() as u32);
    let is_over = AtomicBool::new(false);
    let count = arguments.minutes * 60 / PERIOD.as_secs() as u32;
    thread::scope(|scope| {
        let asking: Vec<_> = steady.iter().map(|guest| scope.spawn(|| load.ask(guest, &is_over))).collect();
        let watch = Watch::of(cloud)?;
        let mut unrest = Unrest::new(restless);
        let result = (1..=count)
            .map(|number| {
                let end = Instant::now() + PERIOD;
                unrest.stir(cloud, number, end)?;
                thread::sleep(end.saturating_duration_since(Instant::now()));
                let sample = watch.sample(load.take(), unrest.take())?;
                // Each request is a line of the agent's log, and is kept by Nova's stand-in.
                cloud.agent.discard_log()?;
                drop(cloud.nova.take_requests());
                eprintln!("{number} of {count}: {sample:?}");
                Ok(sample)
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        for guest in asking {
            guest.join().ok().context("a guest panicked")??;
        }
        result
    })
}
