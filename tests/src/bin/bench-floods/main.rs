//! One guest's requests beside another that floods, both on taps as a hypervisor makes them, and what a frame of a flood costs.
//!
//! Rounds of three alternate: quiet; the same frames written to a tap that nobody serves, in a namespace of its own; and the
//! flood. The second says what a processor that is busy costs in any case.
#![forbid(unsafe_code)]
mod cost;
mod kernel;
mod neighbour;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use metadata_tests::{
    agent::{Options, service_namespace},
    cloud::{Chassis as _, Cloud},
    flood::{self, Extent, Flood},
    guest::Guest,
    netns::Namespace,
    port::{Network, Port},
    process,
    spread::Spread,
    stage::{Nic, Path, Stage},
    tap::BareTap,
};

use kernel::Losses;
use neighbour::Asked;

/// Time for a flood to get going before anything is measured.
const BEGIN: Duration = Duration::from_millis(200);
/// Time for what a flood leaves to go, before the next quiet time.
const REST: Duration = Duration::from_millis(300);

/// Connections of a guest that does not keep to its limit.
const UNPACED: usize = 500;

#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds, of which medians and quartiles are told.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each third of a round.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Processors that a flood is written from, where it is not one.
    #[arg(long, default_value_t = NonZeroUsize::new(2).expect("two is not zero"))]
    threads: NonZeroUsize,
    /// Only these parts of it.
    parts: Vec<Part>,
}

/// A part of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Cost of a frame that is dropped.
    Cost,
    /// A guest that nobody floods, and that connects as fast as it can: SYNs which its own limit costs it.
    Limit,
    /// A neighbour beside floods of every kind.
    Neighbour,
    /// The same beside one flood, with both guests on veth pairs.
    Veth,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let parts = Part::value_variants();
    for part in parts.iter().filter(|part| arguments.parts.is_empty() || arguments.parts.contains(part)) {
        match part {
            Part::Cost => cost::measure(arguments.rounds)?,
            Part::Limit => beside_nobody()?,
            Part::Neighbour => beside_taps(&arguments)?,
            Part::Veth => beside_veth(&arguments)?,
        }
    }
    Ok(())
}

/// Figures of one flood, a value of each round.
#[derive(Default)]
struct Seen {
    quiet: Vec<Asked>,
    elsewhere: Vec<Asked>,
    beside: Vec<Asked>,
    extents: Vec<Extent>,
    /// Frames of the flooding port by outcome.
    frames: BTreeMap<String, u64>,
    /// Processors that the agent had busy: in quiet times, and beside the flood.
    agent: [Vec<f64>; 2],
    losses: Losses,
}

fn beside_taps(arguments: &Arguments) -> Result<()> {
    let mut cloud = cloud(Nic::Tap)?;
    cloud.quiet = true;
    let network = cloud.chassis.add_network("flooding")?;
    let tap = cloud.chassis.add_tap_on(&network, arguments.threads)?;
    let other = cloud.chassis.add_network("asking")?;
    let guest = cloud.chassis.add_guest(&other, Path::OnLink)?;
    cloud.chassis.write_inventory(&[&tap.port, &guest.port])?;
    cloud.nova.add_instance(&guest.port);
    cloud.nova.add_instance(&tap.port);
    cloud.agent.wait_port_served(&tap.port, tap.ifindex)?;
    cloud.agent.wait_served(&guest, cloud.chassis.ifindex(&guest)?)?;
    let elsewhere = Elsewhere::start(&cloud.chassis, arguments.threads)?;
    let measured = Measured { cloud: &cloud, guest: &guest, seconds: Duration::from_secs(arguments.seconds) };
    let mut lines = Vec::new();
    for threads in [1, arguments.threads.get()] {
        for flood in Flood::ALL {
            let mut seen = Seen::default();
            for _ in 0..arguments.rounds {
                measured.round(&tap, &elsewhere.tap, flood, threads, &mut seen)?;
            }
            lines.push((flood.name(), threads, seen));
        }
    }
    tell_neighbour(&lines);
    tell_frames(&lines);
    Ok(())
}

/// A guest alone that meets its own limit, which is what a careless measurement takes for the cost of a flood.
fn beside_nobody() -> Result<()> {
    let mut cloud = cloud(Nic::Tap)?;
    cloud.quiet = true;
    let [guest] = cloud.guests()?;
    let measured = Measured { cloud: &cloud, guest: &guest, seconds: Duration::ZERO };
    let before = measured.losses()?;
    let asked = neighbour::ask_at_once(&guest, UNPACED)?;
    let mut losses = Losses::default();
    losses.add(&before, &measured.losses()?);
    println!(
        "\n| {UNPACED} connections one after another, no flood | failed or > 900 ms | lost |\n| --- | --- | --- |"
    );
    println!(
        "| p50 {:.2} ms, p99 {:.2} ms | {} | {losses} |",
        asked.p50_new() * 1e3,
        asked.p99_new() * 1e3,
        slow([&asked])
    );
    Ok(())
}

/// A flooding guest that is one end of a pair of devices sends as its kernel can.
fn beside_veth(arguments: &Arguments) -> Result<()> {
    let mut cloud = cloud(Nic::Veth)?;
    cloud.quiet = true;
    let [flooding, guest] = cloud.overlapping_guests()?;
    let measured = Measured { cloud: &cloud, guest: &guest, seconds: Duration::from_secs(arguments.seconds) };
    println!(
        "\n| SYNs to us, both guests on veth pairs, from so many processors | SYNs/s | p99 of a new connection, flood : quiet | the same, kept | failed or > 900 ms: quiet, flood | lost |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for threads in [1, arguments.threads.get()] {
        let mut seen = Seen::default();
        for _ in 0..arguments.rounds {
            seen.quiet.push(measured.ask()?);
            let before = measured.losses()?;
            let stop = AtomicBool::new(false);
            let (asked, sent) = thread::scope(|scope| -> Result<_> {
                let floods: Vec<_> = (0..threads).map(|_| scope.spawn(|| flooding.flood(&stop))).collect();
                thread::sleep(BEGIN);
                let asked = measured.ask();
                stop.store(true, Ordering::Relaxed);
                let sent = floods.into_iter().map(|flood| flood.join().ok().context("the flood panicked")?);
                Ok((asked?, sent.sum::<Result<u64>>()?))
            })?;
            seen.beside.push(asked);
            seen.extents.push(Extent { frames: sent, time: BEGIN + measured.seconds });
            seen.losses.add(&before, &measured.losses()?);
            thread::sleep(REST);
        }
        println!(
            "| {threads} | {:.0} | {:.2} | {:.2} | {}, {} | {} |",
            Spread::of(seen.extents.iter().map(|extent| rate(extent, 1))),
            ratio(&seen.beside, &seen.quiet, Asked::p99_new),
            ratio(&seen.beside, &seen.quiet, Asked::p99_kept),
            slow(&seen.quiet),
            slow(&seen.beside),
            seen.losses,
        );
    }
    Ok(())
}

/// Limits on frames are as they are by default: the neighbour keeps to that on connections.
fn cloud(nics: Nic) -> Result<Cloud<Stage>> {
    Cloud::on(Stage::start_with(nics)?, &Options::default())
}

/// A tap of the same kind where no program is: a bridge without another port drops what it is sent.
struct Elsewhere {
    tap: BareTap,
    _host: Namespace,
}

impl Elsewhere {
    fn start(stage: &Stage, queues: NonZeroUsize) -> Result<Self> {
        let host = Namespace::create(stage.sandbox(), "elsewhere")?;
        let port = Port::new(&Network::new("elsewhere")?)?;
        let tap = BareTap::plug_with(&host, port, 77, queues)?;
        host.ip("link add br0 type bridge")?;
        host.ip("link set br0 up")?;
        host.ip(format!("link set {} master br0", tap.port.tap))?;
        Ok(Self { tap, _host: host })
    }
}

/// The measuring side: the guest that asks, and what is read beside it.
struct Measured<'a> {
    cloud: &'a Cloud<Stage>,
    guest: &'a Guest,
    seconds: Duration,
}

impl Measured<'_> {
    fn round(
        &self,
        tap: &BareTap,
        elsewhere: &BareTap,
        flood: Flood,
        threads: usize,
        seen: &mut Seen,
    ) -> Result<()> {
        let (asked, busy) = self.with_agent(|| self.ask())?;
        seen.quiet.push(asked);
        seen.agent[0].push(busy);
        // A connection that is open there cannot be: any frame that is dropped will do.
        let dropped = if flood == Flood::Repeated { Flood::Ack } else { flood };
        let (asked, _) = flood::meanwhile(elsewhere, dropped, threads, || {
            thread::sleep(BEGIN);
            self.ask()
        })?;
        seen.elsewhere.push(asked);
        thread::sleep(REST);
        let (before, frames) = (self.losses()?, self.frames(tap)?);
        let ((asked, busy), extent) = flood::meanwhile(tap, flood, threads, || {
            thread::sleep(BEGIN);
            self.with_agent(|| self.ask())
        })?;
        seen.beside.push(asked);
        seen.agent[1].push(busy);
        seen.extents.push(extent);
        seen.losses.add(&before, &self.losses()?);
        for (outcome, count) in self.frames(tap)? {
            let earlier = frames.get(&outcome).copied().unwrap_or(0);
            *seen.frames.entry(outcome).or_default() += count - earlier;
        }
        thread::sleep(REST);
        Ok(())
    }

    fn ask(&self) -> Result<Asked> {
        neighbour::ask(self.guest, self.seconds)
    }

    /// The work's result, and the processors that the agent's processes had busy meanwhile.
    fn with_agent<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let process = self.cloud.agent.id()?;
        let before = process::cpu_time(process)?;
        let done = work()?;
        let used = process::cpu_time(process)?.saturating_sub(before);
        Ok((done, used.as_secs_f64() / self.seconds.as_secs_f64()))
    }

    fn frames(&self, tap: &BareTap) -> Result<BTreeMap<String, u64>> {
        let ports = self.cloud.agent.ports()?;
        let port = ports.into_iter().find(|port| port.port == tap.port.id);
        Ok(port.context("the flooding port is not listed")?.frames)
    }

    fn losses(&self) -> Result<Losses> {
        let ports = self.cloud.agent.ports()?;
        let port = ports.into_iter().find(|port| port.port == self.guest.port.id);
        let own = port.context("the neighbour's port is not listed")?.frames;
        let service = Namespace::existing(&service_namespace(&self.cloud.chassis));
        Losses::read(&service, self.cloud.chassis.host(), self.guest, &own)
    }
}

fn rate(extent: &Extent, threads: usize) -> f64 {
    extent.frames as f64 * threads as f64 / extent.time.as_secs_f64()
}

fn ratio(of: &[Asked], to: &[Asked], figure: fn(&Asked) -> f64) -> Spread {
    Spread::of(of.iter().zip(to).map(|(of, to)| figure(of) / figure(to)))
}

/// Number of requests that failed or were slow, of all.
fn slow<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> String {
    let (mut bad, mut all) = (0, 0);
    for asked in asked {
        (bad, all) = (bad + asked.bad(), all + asked.all());
    }
    format!("{bad} of {all}")
}

/// One of the three times of all rounds.
type Third = fn(&Seen) -> &[Asked];

fn tell_neighbour(lines: &[(&str, usize, Seen)]) {
    println!(
        "\n| flood, from so many processors | new connection, p50 | p99 | p99, flood : elsewhere | kept, p50 | p99 | p99, flood : elsewhere | failed or > 900 ms: quiet, elsewhere, flood |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, threads, Seen { quiet, elsewhere, beside, .. }) in lines {
        println!(
            "| {name}, {threads} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {}, {}, {} |",
            ratio(beside, quiet, Asked::p50_new),
            ratio(beside, quiet, Asked::p99_new),
            ratio(beside, elsewhere, Asked::p99_new),
            ratio(beside, quiet, Asked::p50_kept),
            ratio(beside, quiet, Asked::p99_kept),
            ratio(beside, elsewhere, Asked::p99_kept),
            slow(quiet),
            slow(elsewhere),
            slow(beside),
        );
    }
    let all = |of: Third| slow(lines.iter().flat_map(|(.., seen)| of(seen)));
    let [quiet, elsewhere, beside] =
        [all(|seen| &seen.quiet), all(|seen| &seen.elsewhere), all(|seen| &seen.beside)];
    println!("| all of them | | | | | | | {quiet}, {elsewhere}, {beside} |");
    println!(
        "\n| ms, medians of all rounds | new connection, p50 | p99 | kept, p50 | p99 |\n| --- | --- | --- | --- | --- |"
    );
    let thirds: [Third; 3] = [|seen| &seen.quiet, |seen| &seen.elsewhere, |seen| &seen.beside];
    for (name, of) in ["quiet", "elsewhere", "flood"].into_iter().zip(thirds) {
        let figure = |figure: fn(&Asked) -> f64| {
            Spread::of(lines.iter().flat_map(|(.., seen)| of(seen)).map(|asked| figure(asked) * 1e3))
        };
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} | {:.2} |",
            figure(Asked::p50_new),
            figure(Asked::p99_new),
            figure(Asked::p50_kept),
            figure(Asked::p99_kept),
        );
    }
}

fn tell_frames(lines: &[(&str, usize, Seen)]) {
    println!(
        "\n| flood, from so many processors | frames/s | of these: dropped by a limit or for want of a place, to the service, not ours | sources learned, given up | agent's processors: quiet, flood | lost |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, threads, seen) in lines {
        let of = |outcome: &str| seen.frames.get(outcome).copied().unwrap_or(0);
        let all: u64 = seen.extents.iter().map(|extent| extent.frames).sum();
        let percent = |count: u64| 100.0 * count as f64 / all as f64;
        let dropped = of("connections_limited") + of("answers_limited") + of("sources_exhausted");
        let redirected = of("redirected");
        println!(
            "| {name}, {threads} | {:.0} | {:.1} %, {:.1} %, {:.1} % | {}, {} | {:.2}, {:.2} | {} |",
            Spread::of(seen.extents.iter().map(|extent| rate(extent, *threads))),
            percent(dropped),
            percent(redirected),
            percent(all.saturating_sub(dropped + redirected)),
            of("source_learned"),
            of("source_reclaimed"),
            Spread::of(seen.agent[0].iter().copied()).middle,
            Spread::of(seen.agent[1].iter().copied()).middle,
            seen.losses,
        );
    }
}
