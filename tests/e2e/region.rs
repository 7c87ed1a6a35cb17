//! A small region goes through everything that `cargo xtask simulate` tries: its agents hold what they should after each.

use std::{sync::Mutex, time::Duration};

use anyhow::{Result, ensure};
use metadata_tests::region::{
    phases::{self, Plan},
    simulation::{Scale, Simulation},
};
use tokio::runtime;

/// Lock of the tests, one at a time: their counts are of all of this process.
static ALONE: Mutex<()> = Mutex::new(());

const SCALE: Scale = Scale {
    hosts: 50,
    agents: 50,
    ports: 20,
    election_timer: Duration::from_secs(2),
    monitor_all: false,
    patience: Duration::from_secs(120),
};

fn runtime() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread().enable_all().build()?)
}

#[test]
fn agents_converge_whatever_happens_to_servers() -> Result<()> {
    let _alone = ALONE.lock();
    let plan = Plan {
        scale: SCALE,
        churn: 10,
        churn_for: Duration::from_secs(5),
        life: Duration::from_secs(1),
        rack: 10,
        quiet: Duration::from_secs(1),
    };
    let costs = runtime()?.block_on(phases::run(plan, None, |cost| println!("{cost:?}")))?;
    ensure!(costs.len() == phases::COUNT, "{} phases", costs.len());
    let started = costs[1].events.complete + costs[1].events.resumed;
    ensure!(started >= SCALE.agents, "{started} connections of {} agents", SCALE.agents);
    Ok(())
}

#[test]
fn all_rows_are_as_well_had_without_conditions() -> Result<()> {
    let _alone = ALONE.lock();
    runtime()?.block_on(async {
        let scale = Scale { hosts: 20, agents: 5, monitor_all: true, ..SCALE };
        let mut simulation = Simulation::start(scale).await?;
        simulation.boot(0..scale.agents)?;
        simulation.converge().await?;
        simulation.check_rows().await?;
        for host in [3, 13] {
            let vif = simulation.next_vif(host);
            let served = simulation.live(vif, Duration::from_millis(100)).await?;
            ensure!(served.is_some() == (host < scale.agents), "{served:?}");
        }
        simulation.check_rows().await?;
        simulation.stop()
    })
}

/// Wrong rows are noticed: one that changed without the model's knowledge, and a port that is plugged nowhere.
#[test]
fn a_wrong_row_is_noticed() -> Result<()> {
    let _alone = ALONE.lock();
    runtime()?.block_on(async {
        let scale = Scale { hosts: 2, agents: 2, ports: 3, patience: Duration::from_secs(3), ..SCALE };
        let mut simulation = Simulation::start(scale).await?;
        simulation.boot(0..scale.agents)?;
        simulation.converge().await?;
        simulation.misdescribe(1).await?;
        let error = simulation.converge().await.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(error.contains("host 1") && error.contains("is served as"), "{error:?}");
        simulation.insert_stray(0).await?;
        let error = simulation.check_rows().await.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(error.contains("host 0 has 1 rows too many"), "{error:?}");
        simulation.stop()
    })
}
