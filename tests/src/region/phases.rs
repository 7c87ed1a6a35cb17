//! Phases of a region's life, one after another, and the cost of each.

use std::{
    path::Path,
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::{
    bystander::Waits,
    events::{AGENTS, Counts},
    meter,
    simulation::{Scale, Simulation},
};
use crate::random::Random;

/// Plan of the phases.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub scale: Scale,
    /// Instances that come and go in a second, and for how long.
    pub churn: u32,
    pub churn_for: Duration,
    /// Lifetime of each instance.
    pub life: Duration,
    /// Hosts that lose their power together.
    pub rack: usize,
    /// Time for which nothing is done, to see what that costs.
    pub quiet: Duration,
}

/// Cost of a phase.
#[derive(Debug)]
pub struct Cost {
    pub name: &'static str,
    /// From its beginning until all was as it should be.
    pub took: Duration,
    /// Of each server: processor time, memory in bytes, clients.
    pub servers: Vec<(Duration, u64, usize)>,
    /// Of all agents.
    pub agents: Duration,
    /// This process' memory, in bytes.
    pub memory: u64,
    pub bystander: Waits,
    pub events: Counts,
    /// Times that plugged ports took to be served: the median and the longest.
    pub plugs: Option<(Duration, Duration)>,
}

/// Number of phases.
pub const COUNT: usize = 11;

type Step<'a> = Pin<Box<dyn Future<Output = Result<Option<(Duration, Duration)>>> + 'a>>;

/// Goes through all phases; an error if agents do not converge, or a row is wrong.
///
/// The servers' logs are kept in the folder `logs`, if there is one.
pub async fn run(plan: Plan, logs: Option<&Path>, told: impl Fn(&Cost)) -> Result<Vec<Cost>> {
    eprintln!(
        "simulate: writing a region of {} hosts with {} ports each",
        plan.scale.hosts, plan.scale.ports
    );
    let mut simulation = Simulation::start(plan.scale).await?;
    let mut costs = Vec::new();
    let result = all(&mut simulation, plan, &mut costs, told).await;
    let kept = logs.map_or(Ok(()), |folder| simulation.keep_logs(folder));
    let stopped = simulation.stop();
    result.and(kept)?;
    stopped?;
    Ok(costs)
}

async fn all(
    simulation: &mut Simulation,
    plan: Plan,
    costs: &mut Vec<Cost>,
    told: impl Fn(&Cost),
) -> Result<()> {
    let agents = plan.scale.agents;
    let rack = 0..plan.rack.min(agents);
    simulation.bystander.take()?;
    let mut phase = Phases { simulation, costs, told: &told };
    phase
        .run("nobody is there", |_| {
            Box::pin(async move {
                sleep(plan.quiet).await;
                Ok(None)
            })
        })
        .await?;
    phase
        .run("all start", |simulation| {
            Box::pin(async move {
                simulation.boot(0..agents)?;
                simulation.converge().await?;
                Ok(None)
            })
        })
        .await?;
    phase
        .run("nothing happens", |_| {
            Box::pin(async move {
                sleep(plan.quiet).await;
                Ok(None)
            })
        })
        .await?;
    phase
        .run("a port of each host changes", |simulation| {
            Box::pin(async move {
                simulation.describe(0..agents).await?;
                simulation.converge().await?;
                Ok(None)
            })
        })
        .await?;
    phase
        .run("nb_cfg is raised", |simulation| {
            Box::pin(async move {
                simulation.raise().await?;
                Ok(None)
            })
        })
        .await?;
    phase.run("instances come and go", |simulation| Box::pin(churn(simulation, plan))).await?;
    phase
        .run("the leader is killed", |simulation| {
            Box::pin(async move {
                let leader = simulation.servers.leader()?;
                simulation.servers.kill(leader)?;
                simulation.describe(0..agents).await?;
                simulation.converge().await?;
                Ok(None)
            })
        })
        .await?;
    phase
        .run("it comes back", |simulation| {
            Box::pin(async move {
                simulation.servers.start()?;
                simulation.describe(0..agents).await?;
                simulation.converge().await?;
                Ok(None)
            })
        })
        .await?;
    phase
        .run("all servers are restarted", |simulation| {
            Box::pin(async move {
                (0..simulation.servers.count()).try_for_each(|server| simulation.servers.kill(server))?;
                simulation.servers.start()?;
                simulation.describe(0..agents).await?;
                simulation.converge().await?;
                Ok(None)
            })
        })
        .await?;
    let (going, coming) = (rack.clone(), rack);
    phase
        .run("a rack loses its power", |simulation| {
            Box::pin(async move {
                simulation.cut(going.clone());
                simulation.describe(going).await?;
                simulation.converge().await?;
                Ok(None)
            })
        })
        .await?;
    phase
        .run("the rack comes back", |simulation| {
            Box::pin(async move {
                simulation.boot(coming)?;
                simulation.converge().await?;
                Ok(None)
            })
        })
        .await?;
    Ok(())
}

async fn churn(simulation: &mut Simulation, plan: Plan) -> Result<Option<(Duration, Duration)>> {
    let mut random = Random::new(1);
    let count = plan.churn * plan.churn_for.as_secs() as u32;
    let hosts = plan.scale.hosts as u64;
    let vifs: Vec<_> = (0..count).map(|_| simulation.next_vif(random.below(hosts) as usize)).collect();
    let simulation = &*simulation;
    let lives = (0..).zip(vifs).map(|(number, vif)| async move {
        sleep(Duration::from_secs(1) * number / plan.churn).await;
        simulation.live(vif, plan.life).await
    });
    let times = futures_util::future::try_join_all(lives).await?;
    let mut times: Vec<Duration> = times.into_iter().flatten().collect();
    simulation.converge().await?;
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().zip(times.last().copied()))
}

struct Phases<'a, T> {
    simulation: &'a mut Simulation,
    costs: &'a mut Vec<Cost>,
    told: &'a T,
}

impl<T: Fn(&Cost)> Phases<'_, T> {
    async fn run(
        &mut self,
        name: &'static str,
        step: impl FnOnce(&mut Simulation) -> Step<'_>,
    ) -> Result<()> {
        let simulation = &mut *self.simulation;
        simulation.bystander.take()?;
        let (servers, agents) = (simulation.servers.cpu()?, meter::cpu_of_threads(&[AGENTS, IDENTITIES])?);
        let (events, began) = (simulation.events.counts(), Instant::now());
        let plugs = step(simulation).await.with_context(|| format!("phase {name:?}"))?;
        let took = began.elapsed();
        let spent =
            simulation.servers.cpu()?.into_iter().zip(servers).map(|(now, then)| now.saturating_sub(then));
        let state = simulation.servers.memory()?.into_iter().zip(simulation.servers.connections()?);
        let cost = Cost {
            name,
            took,
            servers: spent.zip(state).map(|(cpu, (memory, clients))| (cpu, memory, clients)).collect(),
            agents: meter::cpu_of_threads(&[AGENTS, IDENTITIES])?.saturating_sub(agents),
            memory: meter::memory(std::process::id())?,
            bystander: simulation.bystander.take()?,
            events: simulation.events.counts().since(&events),
            plugs,
        };
        (self.told)(&cost);
        self.costs.push(cost);
        simulation.check_rows().await.with_context(|| format!("after phase {name:?}"))
    }
}

/// The threads that write what is remembered.
const IDENTITIES: &str = "identities";
