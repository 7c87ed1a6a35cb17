//! Cost of the control plane: how soon a plugged guest is answered, what a restart of the agent takes from guests, and
//! what each further network takes from the host.
//!
//! On a real OVN and Open vSwitch.
#![forbid(unsafe_code)]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Parser;
use metadata_ebpf::map::LAYOUT;
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::Cloud,
    first_answer::Interfaces,
    guest::Guest,
    ovn::{Lab, Routing},
    port::{METADATA_PORT, Network, Port},
    process,
    traffic::{meanwhile, while_asking},
    wait::until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PLUGS: usize = 30;
const CHANGES: usize = 10;
const NETWORKS: usize = 200;
const KILLS: usize = 10;
const UPGRADES: usize = 5;
/// Delay of a restart by systemd in our unit (`RestartSec=`).
const RESTART: Duration = Duration::from_millis(300);
/// Age from which on the end of a guest-facing process is no crash loop.
const SETTLED: Duration = Duration::from_millis(10_500);
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
struct Arguments {
    /// Memory only, after guests were plugged.
    #[arg(long)]
    memory: bool,
}

fn main() -> Result<()> {
    let Arguments { memory: memory_only } = Arguments::parse();
    let mut cloud = Cloud::on(Lab::start()?, &Options::default())?;
    cloud.quiet = true;
    println!("| what | measured | goal |\n| --- | --- | --- |");
    let guests = plugs(&cloud)?;
    if !memory_only {
        changes(&mut cloud, &guests[..2], Change::Restart)?;
        changes(&mut cloud, &guests[..2], Change::Takeover)?;
        changes(&mut cloud, &guests[..2], Change::Kill)?;
        other_layouts(&mut cloud, &guests[0])?;
        kills_of_the_guest_facing_process(&cloud, &guests[0])?;
    }
    memory(&mut cloud, guests)
}

/// From the interface's row to the first answer, for guests whose other rows are there, as Neutron has it.
fn plugs(cloud: &Cloud<Lab>) -> Result<Vec<Guest>> {
    let network = cloud.chassis.add_network("plugged", Routing::Isolated)?;
    let rows = Interfaces::of(&cloud.chassis.ovs_remote())?;
    let mut guests = Vec::new();
    let mut times = Vec::new();
    for _ in 0..PLUGS {
        let guest = boot(cloud, &network)?;
        let time = rows.until_answered(&guest, || cloud.chassis.plug(&guest))?;
        own_identity(&guest)?;
        times.push(time);
        guests.push(guest);
    }
    times.sort();
    let (median, slowest) = (times[PLUGS / 2], times[PLUGS - 1]);
    println!(
        "| from the plugged interface's row to the guest's answer, median of {PLUGS} | {median:.0?} | ≤ 50 ms |"
    );
    println!("| the slowest of them | {slowest:.0?} | |");
    Ok(guests)
}

/// A guest with its rows and its tap, not plugged yet.
fn boot(cloud: &Cloud<Lab>, network: &Network) -> Result<Guest> {
    let port = Port::new(network)?;
    cloud.nova.add_instance(&port);
    cloud.chassis.create_port(&port)?;
    let guest = cloud.chassis.boot(port)?;
    guest.configure(Some((METADATA_PORT, "fa:16:3e:aa:bb:cc")))?;
    Ok(guest)
}

/// A way for an agent to come after another.
#[derive(Debug, Clone, Copy)]
enum Change {
    Restart,
    Takeover,
    Kill,
}

/// Guests that ask all the time while one agent comes after another.
fn changes(cloud: &mut Cloud<Lab>, guests: &[Guest], change: Change) -> Result<()> {
    let mut slowest = Vec::new();
    let mut requests = 0;
    for _ in 0..CHANGES {
        // A request without its right answer is an error.
        let ((), answers) = meanwhile(guests, || {
            thread::sleep(Duration::from_millis(500));
            match change {
                Change::Restart => {
                    cloud.agent.stop()?;
                    cloud.agent.resume()?;
                }
                Change::Takeover => {
                    let status = cloud.agent.replace()?.wait()?;
                    ensure!(status.success(), "the former agent ended with {status}");
                }
                Change::Kill => {
                    cloud.agent.kill()?;
                    // As the unit has it.
                    thread::sleep(RESTART);
                    cloud.agent.resume()?;
                }
            }
            cloud.agent.wait_ready()?;
            thread::sleep(Duration::from_millis(500));
            Ok(())
        })?;
        requests += answers.iter().map(|guest| guest.count).sum::<usize>();
        slowest.extend(answers.iter().map(|guest| guest.slowest).max());
    }
    slowest.sort();
    let (median, most) = (slowest[CHANGES / 2], slowest[CHANGES - 1]);
    match change {
        Change::Restart => {
            println!("| requests during {CHANGES} restarts of the agent that failed | 0 of {requests} | 0 |");
            println!("| the slowest request during a restart, median | {median:.1?} | |");
        }
        Change::Takeover => {
            println!(
                "| requests during {CHANGES} takeovers by another agent that failed | 0 of {requests} | 0 |"
            );
            println!("| the slowest request during a takeover, median | {median:.1?} | |");
            println!("| the slowest request of all during takeovers | {most:.1?} | ≤ 100 ms |");
        }
        Change::Kill => {
            println!(
                "| requests during {CHANGES} times that the agent was killed and started {RESTART:.0?} later that failed | \
                 0 of {requests} | 0 |"
            );
            println!("| the slowest request of such a time, median | {median:.1?} | |");
            println!("| the slowest request of all of these | {most:.1?} | |");
        }
    }
    Ok(())
}

/// A guest that asks and tries again while an agent takes over that cannot read the maps of the former one.
fn other_layouts(cloud: &mut Cloud<Lab>, guest: &Guest) -> Result<()> {
    let (mut count, mut failed, mut gap) = (0, 0, Duration::ZERO);
    for _ in 0..UPGRADES {
        let asked = while_asking(guest, |asked| {
            // As an agent with the next layout would have pinned them.
            let pins = cloud.agent.run_dir().join("bpf");
            let [own, other] = [LAYOUT, LAYOUT + 1].map(|layout| pins.join(format!("layout-{layout}")));
            fs::rename(own, other)?;
            let status = cloud.agent.replace()?.wait()?;
            ensure!(status.success(), "the former agent ended with {status}");
            cloud.agent.wait_ready()?;
            asked.wait_answers()
        })?;
        count += asked.count();
        failed += asked.failed();
        gap = gap.max(asked.gap());
    }
    println!(
        "| requests during {UPGRADES} takeovers from an agent whose maps have another layout that failed, with a client that gives \
         up after 300 ms | {failed} of {} | 0 |",
        count + failed
    );
    println!("| the longest time of these without an answer | {gap:.0?} | |");
    Ok(())
}

/// Time until another guest-facing process serves a guest that connects.
fn kills_of_the_guest_facing_process(cloud: &Cloud<Lab>, guest: &Guest) -> Result<()> {
    let before = guest.netns.repeated_syns()?;
    let mut times = Vec::new();
    for _ in 0..KILLS {
        let process = cloud.agent.guest_process()?;
        kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL)?;
        let killed = Instant::now();
        own_identity(guest)?;
        times.push(killed.elapsed());
        until("there is another one", PATIENCE, || {
            ensure!(cloud.agent.guest_process()? != process);
            Ok(())
        })?;
        // One that ends soon after its start is replaced with a delay.
        thread::sleep(SETTLED);
    }
    times.sort();
    let repeated = guest.netns.repeated_syns()? - before;
    let (median, slowest) = (times[KILLS / 2], times[KILLS - 1]);
    println!(
        "| from the end of the guest-facing process (SIGKILL) to two answers over new connections, median of {KILLS} | \
         {median:.0?} | ≤ 100 ms |"
    );
    println!(
        "| the slowest of them, and SYNs that had to be repeated | {slowest:.0?}, {repeated} | ≤ 100 ms, 0 |"
    );
    Ok(())
}

/// The agent's memory, with guests in one network and in many.
fn memory(cloud: &mut Cloud<Lab>, mut guests: Vec<Guest>) -> Result<()> {
    for guest in guests.drain(1..) {
        cloud.chassis.unplug(&guest)?;
        cloud.agent.wait_gone(&guest.port.tap)?;
        cloud.chassis.stop_tap(&guest)?;
    }
    let measure = |cloud: &mut Cloud<Lab>, guests: &[Guest]| -> Result<u64> {
        // What a former load left in the allocator is no network's.
        cloud.agent.stop()?;
        cloud.agent.resume()?;
        cloud.agent.wait_ready()?;
        for guest in guests {
            cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        }
        own_identity(&guests[guests.len() - 1])?;
        thread::sleep(process::AT_REST);
        process::memory(cloud.agent.id()?)
    };
    let one = measure(cloud, &guests)?;
    for number in 1..NETWORKS {
        let network = cloud.chassis.add_network(&format!("network{number}"), Routing::Isolated)?;
        let guest = boot(cloud, &network)?;
        cloud.chassis.plug(&guest)?;
        guests.push(guest);
    }
    let many = measure(cloud, &guests)?;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!("| memory of the agent (PSS), one network | {:.1} MB | |", megabytes(one));
    println!("| the same, {NETWORKS} networks | {:.1} MB | < 30 MB |", megabytes(many));
    Ok(())
}
