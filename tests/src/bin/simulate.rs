//! The Southbound under a region of agents: what each thing that happens costs it and them. `cargo xtask simulate` runs
//! it.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;
use metadata_tests::region::{
    phases::{self, Cost, Plan},
    simulation::Scale,
};

#[derive(Debug, Parser)]
#[command(about = "Agents' control planes against a Southbound of three servers")]
struct Options {
    /// Agents, each of a chassis of its own.
    #[arg(long, default_value_t = 300)]
    agents: usize,
    /// Chassis, if there are to be more than agents.
    #[arg(long, default_value_t = 0)]
    hosts: usize,
    /// Ports of each chassis.
    #[arg(long, default_value_t = 100)]
    ports: usize,
    /// Instances that come and go each second.
    #[arg(long, default_value_t = 10)]
    churn: u32,
    /// Seconds for which instances come and go.
    #[arg(long, default_value_t = 20)]
    churn_for: u64,
    /// Hosts that lose their power together.
    #[arg(long, default_value_t = 40)]
    rack: usize,
    /// Election timer of the cluster, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    election_timer: u64,
    /// Seconds in which all agents must hold what they should.
    #[arg(long, default_value_t = 300)]
    patience: u64,
    /// With southbound_monitor_all: every agent has all rows.
    #[arg(long)]
    monitor_all: bool,
    /// A folder for what the servers log.
    #[arg(long)]
    logs: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let plan = Plan {
        scale: Scale {
            hosts: options.hosts.max(options.agents),
            agents: options.agents,
            ports: options.ports,
            election_timer: Duration::from_millis(options.election_timer),
            monitor_all: options.monitor_all,
            patience: Duration::from_secs(options.patience),
        },
        churn: options.churn,
        churn_for: Duration::from_secs(options.churn_for),
        life: Duration::from_secs(2),
        rack: options.rack,
        quiet: Duration::from_secs(5),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = |cost: &Cost| eprintln!("simulate: {}: {:.1} s", cost.name, cost.took.as_secs_f64());
    let costs = runtime.block_on(phases::run(plan, options.logs.as_deref(), told))?;
    report(&options, &costs);
    Ok(())
}

fn report(options: &Options, costs: &[Cost]) {
    println!(
        "\n{} agents, {} ports each, {} ports in all\n",
        options.agents,
        options.ports,
        options.hosts.max(options.agents) * options.ports
    );
    println!(
        "| phase | s | server CPU, ms | server MB | clients | bystander median, longest, ms | CPU per agent, ms | with all rows | resumed | failed |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for cost in costs {
        let of = |text: &dyn Fn(&(Duration, u64, usize)) -> String| {
            cost.servers.iter().map(text).collect::<Vec<_>>().join(" / ")
        };
        println!(
            "| {} | {:.1} | {} | {} | {} | {:.1}, {:.0} | {:.2} | {} | {} | {} |",
            cost.name,
            cost.took.as_secs_f64(),
            of(&|server| format!("{:.0}", ms(server.0))),
            of(&|server| format!("{:.0}", server.1 as f64 / 1e6)),
            of(&|server| server.2.to_string()),
            ms(cost.bystander.median),
            ms(cost.bystander.longest),
            ms(cost.agents) / options.agents as f64,
            cost.events.complete,
            cost.events.resumed,
            cost.events.failed.values().sum::<usize>(),
        );
    }
    println!();
    for cost in costs {
        for (reason, count) in &cost.events.failed {
            println!("{}: {count} × {reason}", cost.name);
        }
        if let Some((median, longest)) = cost.plugs {
            println!(
                "{}: a plugged port is served after {:.0} ms, {:.0} ms at most",
                cost.name,
                ms(median),
                ms(longest)
            );
        }
    }
    if let Some(churn) = costs.iter().find(|cost| cost.plugs.is_some()) {
        // It is written, claimed, released and removed.
        let changes = 4.0 * f64::from(options.churn) * options.churn_for as f64;
        let each = ms(churn.agents) * 1e3 / changes;
        println!("CPU of all agents together for each change of a port: {each:.0} µs");
    }
    if let (Some(before), Some(after)) = (costs.first(), costs.get(1)) {
        let memory = after.memory.saturating_sub(before.memory) as f64;
        println!("memory of an agent's control plane: {:.0} kB", memory / options.agents as f64 / 1e3);
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
