//! Cost of many guests on one node: start, adoption, memory, plugging beside guests that ask, and the kernel's RTNL
//! lock.
//!
//! Real taps with no machines behind most of them, whose rows are in real databases as OVN and nova would have written them.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::Cloud,
    first_answer::{Interfaces, first_answer},
    guest::{Guest, METADATA},
    netns::Namespace,
    ovn::{ByHand, Named, Schema},
    port::{Network, Port},
    process,
    spread::{Spread, milliseconds, percentile},
    tap::{BareTap, set_up_here},
    traffic::{Answers, meanwhile},
    wait::until,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const NETWORKS: usize = 50;
const GUESTS: usize = 4;
const ROUNDS: usize = 5;
const STARTS: usize = 3;
/// Ports that come and go beside guests that ask.
const BATCH: usize = 100;
/// Taps that are being attached when another one is plugged.
const BACKLOG: usize = 500;
const QUIET: Duration = Duration::from_secs(3);
/// Between two takings of the RTNL lock.
const PAUSE: Duration = Duration::from_millis(1);
/// Whom guests send to, who are told by hand.
const NEIGHBOUR: &str = "fa:16:3e:aa:bb:cc";
const PATIENCE: Duration = Duration::from_secs(120);
const OWN: [(&str, Named); 2] = [("chassis", Named::Own), ("requested_chassis", Named::Own)];

#[derive(Debug, Parser)]
struct Arguments {
    /// Ports of the node.
    #[arg(long, default_value_t = 1000)]
    taps: usize,
    /// Only these parts of it.
    parts: Vec<Part>,
}

/// A part of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Memory of both processes by number of ports.
    Memory,
    /// An agent that finds all of them plugged.
    Start,
    /// An agent that comes after another.
    Adopt,
    /// Ports that come and go beside guests that ask.
    Plug,
    /// Another's wait for the kernel's RTNL lock.
    Lock,
    /// A guest that is plugged when many others wait for their programs.
    Newcomer,
    /// `metadata-agent cleanup` of a node whose agent is stopped.
    CleanUp,
}

impl Part {
    fn measure(self, node: &mut Node) -> Result<()> {
        match self {
            Self::Memory => node.memory(),
            Self::Start => node.start_cold(),
            Self::Adopt => node.adopt(),
            Self::Plug => node.plug_beside(),
            Self::Lock => node.lock(),
            Self::Newcomer => node.newcomer(),
            Self::CleanUp => node.clean_up(),
        }
    }
}

fn main() -> Result<()> {
    let Arguments { taps, parts } = Arguments::parse();
    ensure!(taps > BACKLOG, "{BACKLOG} taps and some more are needed");
    // A tap lives as long as its descriptor.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut cloud = Cloud::on(ByHand::start(Schema::Installed)?, &Options::default())?;
    cloud.quiet = true;
    let mut node = Node::start(cloud, taps)?;
    for part in Part::value_variants().iter().filter(|part| parts.is_empty() || parts.contains(part)) {
        part.measure(&mut node)?;
    }
    Ok(())
}

/// The beginning of a table.
fn table(heads: &[&str]) {
    let rule: Vec<_> = heads.iter().map(|_| "---").collect();
    println!("\n| {} |\n| {} |", heads.join(" | "), rule.join(" | "));
}

/// A node of many ports. The guests that there are from the beginning have the oldest taps.
struct Node {
    guests: Vec<Guest>,
    taps: Vec<BareTap>,
    /// The number of ports, guests' included, that are there in the end.
    most: usize,
    networks: Vec<Network>,
    cloud: Cloud<ByHand>,
}

impl Node {
    fn start(cloud: Cloud<ByHand>, most: usize) -> Result<Self> {
        let networks = (0..NETWORKS)
            .map(|number| cloud.chassis.add_network(&format!("tenant{number}")))
            .collect::<Result<_>>()?;
        let mut node = Self { guests: Vec::new(), taps: Vec::new(), most, networks, cloud };
        for number in 0..GUESTS {
            let guest = node.boot(number)?;
            node.cloud.chassis.plug(&guest)?;
            node.cloud.agent.wait_served(&guest, node.cloud.chassis.ifindex(&guest)?)?;
            node.guests.push(guest);
        }
        Ok(node)
    }

    fn ports(&self) -> usize {
        self.guests.len() + self.taps.len()
    }

    /// A running guest with its row in the Southbound, not plugged yet.
    fn boot(&self, number: usize) -> Result<Guest> {
        let port = Port::new(&self.networks[number % NETWORKS])?;
        self.cloud.nova.add_instance(&port);
        self.cloud.chassis.write_port(&port, &OWN)?;
        let guest = self.cloud.chassis.boot(port)?;
        // Nobody answers before it is served, and who asks for an address waits for a second before the next try.
        guest.netns.ip(format!("neigh replace {} lladdr {NEIGHBOUR} dev eth0", METADATA.ip()))?;
        Ok(guest)
    }

    /// Has so many ports on the node in all, whose rows are there, and plugs them.
    fn fill(&mut self, count: usize) -> Result<()> {
        let before = self.taps.len();
        while self.ports() < count {
            let port = Port::new(&self.networks[self.taps.len() % NETWORKS])?;
            self.taps.push(self.cloud.chassis.add_tap(port)?);
        }
        let new = &self.taps[before..];
        self.cloud.chassis.write_ports(&new.iter().map(|tap| &tap.port).collect::<Vec<_>>(), &OWN)?;
        if !new.is_empty() {
            self.plug(new)?;
        }
        self.wait_served(self.ports())
    }

    fn plug(&self, taps: &[BareTap]) -> Result<()> {
        self.cloud.chassis.plug_ports(&taps.iter().map(|tap| (&tap.port, tap.ifindex)).collect::<Vec<_>>())
    }

    fn unplug(&self, taps: &[BareTap]) -> Result<()> {
        self.cloud.chassis.unplug_ports(&taps.iter().map(|tap| &tap.port).collect::<Vec<_>>())
    }

    /// Waits until that many ports are there, and each is served.
    fn wait_served(&mut self, count: usize) -> Result<()> {
        until(&format!("{count} ports are served"), PATIENCE, || {
            let ready = self.cloud.agent.admin("GET", "/ready")?;
            ensure!(ready.status == 200, "{}", ready.text());
            let known = self.cloud.agent.metric("metadata_ports{identity=\"known\"}")?;
            ensure!(known == count as f64, "{known} are known");
            Ok(())
        })
    }

    /// An agent that finds all of them plugged, and nothing of another one.
    fn start_cold(&mut self) -> Result<()> {
        self.fill(self.most)?;
        let newest = self.boot(0)?;
        self.cloud.chassis.plug(&newest)?;
        self.guests.push(newest);
        let count = self.ports();
        let (mut all, mut oldest, mut youngest, mut kernel) = (vec![], vec![], vec![], vec![]);
        for _ in 0..STARTS {
            self.cloud.agent.stop()?;
            self.cloud.agent.clean_up()?;
            let before = kernel_memory()?;
            let started = Instant::now();
            self.cloud.agent.resume()?;
            let (first, last) = (&self.guests[0], &self.guests[GUESTS]);
            let answered = thread::scope(|scope| -> Result<[Instant; 2]> {
                let asking = [first, last].map(|guest| scope.spawn(|| first_answer(guest)));
                let [first, last] = asking.map(|guest| guest.join().ok().context("a guest panicked"));
                Ok([first??, last??])
            })?;
            self.wait_served(count)?;
            all.push(started.elapsed().as_secs_f64());
            oldest.push((answered[0] - started).as_secs_f64());
            youngest.push((answered[1] - started).as_secs_f64());
            kernel.push(kernel_memory()?.saturating_sub(before) as f64 / 1e3 / count as f64);
        }
        let (all, oldest, youngest) = (Spread::of(all), Spread::of(oldest), Spread::of(youngest));
        table(&[
            &format!("an agent finds {count} ports plugged, median and quartiles of {STARTS}"),
            "measured",
        ]);
        println!("| all are served after, s | {all} |");
        println!("| the guest with the oldest tap is answered after, s | {oldest} |");
        println!("| the guest with the newest tap is answered after, s | {youngest} |");
        println!(
            "| slab and per-processor memory of the kernel's for each port, kB | {:.1} |",
            Spread::of(kernel)
        );
        Ok(())
    }

    /// An agent after another, while guests ask.
    fn adopt(&mut self) -> Result<()> {
        self.fill(self.most)?;
        let count = self.ports();
        let assignments = |node: &Self| -> Result<BTreeMap<String, (u32, u64)>> {
            let ports = node.cloud.agent.ports()?;
            Ok(ports.into_iter().map(|port| (port.port, (port.index, port.generation))).collect())
        };
        let before = assignments(self)?;
        let mut times = Vec::new();
        for _ in 0..STARTS {
            self.cloud.agent.stop()?;
            let started = Instant::now();
            self.cloud.agent.resume()?;
            self.wait_served(count)?;
            times.push(started.elapsed().as_secs_f64());
        }
        table(&[&format!("an agent comes after another, {count} ports"), "measured", "goal"]);
        println!("| after a restart all are served, s after its start | {} | |", Spread::of(times));
        let mut times = Vec::new();
        let guests = std::mem::take(&mut self.guests);
        let ((), answers) = meanwhile(&guests, || {
            for _ in 0..STARTS {
                let started = Instant::now();
                let status = self.cloud.agent.replace()?.wait()?;
                ensure!(status.success(), "the former agent ended with {status}");
                times.push(started.elapsed().as_secs_f64());
            }
            Ok(())
        })?;
        self.guests = guests;
        self.wait_served(count)?;
        let requests: usize = answers.iter().map(|guest| guest.count).sum();
        let slowest = answers.iter().map(|guest| guest.slowest).max().unwrap_or_default();
        println!("| a takeover, s until the former agent has ended | {} | |", Spread::of(times));
        println!("| requests that failed during {STARTS} takeovers | 0 of {requests} | 0 |");
        println!("| the slowest of them, ms | {:.0} | ≤ 100 |", milliseconds(slowest));
        ensure!(assignments(self)? == before, "assignments were not adopted");
        Ok(())
    }

    /// Both processes with few ports and with all.
    fn memory(&mut self) -> Result<()> {
        table(&[
            "memory (PSS), MB",
            "control plane",
            "guest-facing process",
            "for each further port, kB",
            "goal",
        ]);
        let mut before = None;
        for count in [self.ports(), 200, self.most] {
            self.fill(count)?;
            // What a former load left in the allocator is no port's, nor what a start takes and gives back.
            self.cloud.agent.stop()?;
            self.cloud.agent.resume()?;
            self.wait_served(count)?;
            for guest in &self.guests {
                own_identity(guest)?;
            }
            thread::sleep(process::AT_REST);
            let processes = process::family(self.cloud.agent.id()?)?;
            let memory = processes.iter().map(|id| process::memory_of(*id)).collect::<Result<Vec<_>>>()?;
            let [control, guests] = memory[..] else { bail!("there are {} processes", memory.len()) };
            let all = control + guests;
            let each =
                before.map(|(ports, bytes)| (all as f64 - bytes as f64) / (count - ports) as f64 / 1e3);
            println!(
                "| {count} ports | {:.1} | {:.1} | {} | {} |",
                control as f64 / 1e6,
                guests as f64 / 1e6,
                each.map_or(String::new(), |each| format!("{each:.1}")),
                each.map_or("", |_| "≤ 12")
            );
            before.get_or_insert((count, all));
        }
        Ok(())
    }

    /// Ports that come and go, beside guests that ask all the time.
    fn plug_beside(&mut self) -> Result<()> {
        self.fill(self.most)?;
        let count = self.ports();
        let guests = std::mem::take(&mut self.guests);
        let p99 = |answers: &[Answers]| {
            milliseconds(percentile(answers.iter().flat_map(|guest| guest.times.clone()), 99))
        };
        let (mut quiet, mut noisy, mut requests) = ([vec![], vec![]], [vec![], vec![]], 0);
        let mut took = [vec![], vec![]];
        for _ in 0..ROUNDS {
            for (which, plugs) in [(0, false), (1, true)] {
                let ((), answers) = meanwhile(&guests, || {
                    thread::sleep(QUIET);
                    Ok(())
                })?;
                quiet[which].push(p99(&answers));
                let batch = self.taps.len() - BATCH..;
                let (time, answers) = meanwhile(&guests, || {
                    let started = Instant::now();
                    if plugs {
                        self.plug(&self.taps[batch])?;
                        self.wait_served(count)?;
                    } else {
                        self.unplug(&self.taps[batch])?;
                        self.wait_served(count - BATCH)?;
                    }
                    Ok(started.elapsed())
                })?;
                noisy[which].push(p99(&answers));
                requests += answers.iter().map(|guest| guest.count).sum::<usize>();
                took[which].push(time.as_secs_f64());
            }
        }
        self.guests = guests;
        table(&[
            &format!("beside {count} ports, median and quartiles of {ROUNDS} rounds"),
            "quiet",
            "meanwhile",
            "goal",
        ]);
        let [detach, attach] = took.map(Spread::of);
        println!("| {BATCH} ports are unplugged, s until done | | {detach} | |");
        println!("| {BATCH} ports are plugged, s until all are served | | {attach} | |");
        for (which, what) in [(0, "unplugged"), (1, "plugged")] {
            let ratio = noisy[which].iter().zip(&quiet[which]).map(|(noisy, quiet)| noisy / quiet);
            println!(
                "| p99 of a served guest's request while they are {what}, ms; ratio {} | {} | {} | |",
                Spread::of(ratio),
                Spread::of(quiet[which].iter().copied()),
                Spread::of(noisy[which].iter().copied())
            );
        }
        println!("| requests that failed meanwhile | | 0 of {requests} | 0 |");
        Ok(())
    }

    /// Waits of somebody else for the lock that the kernel holds while a link is attached.
    fn lock(&mut self) -> Result<()> {
        self.fill(self.most)?;
        let count = self.ports();
        let batch = self.taps.len() - BATCH..;
        let (mut quiet, mut noisy) = ([vec![], vec![]], [vec![], vec![]]);
        for _ in 0..ROUNDS {
            let (_, waits) = self.take_lock(|_| {
                thread::sleep(QUIET);
                Ok(())
            })?;
            quiet[0].push(milliseconds(percentile(waits.iter().copied(), 50)));
            quiet[1].push(milliseconds(percentile(waits, 100)));
            self.unplug(&self.taps[batch.clone()])?;
            self.wait_served(count - BATCH)?;
            let ((), waits) = self.take_lock(|node| {
                node.plug(&node.taps[batch.clone()])?;
                node.wait_served(count)
            })?;
            noisy[0].push(milliseconds(percentile(waits.iter().copied(), 50)));
            noisy[1].push(milliseconds(percentile(waits, 100)));
        }
        table(&["the RTNL lock", "quiet", "meanwhile"]);
        for (which, what) in [(0, "half of them"), (1, "the longest")] {
            println!(
                "| another's wait for the RTNL lock while {BATCH} ports are plugged, {what}, ms | {:.3} | {:.3} |",
                Spread::of(quiet[which].iter().copied()),
                Spread::of(noisy[which].iter().copied())
            );
        }
        Ok(())
    }

    /// Removal of all that an agent leaves, beside somebody who needs the lock.
    fn clean_up(&mut self) -> Result<()> {
        self.fill(self.most)?;
        let count = self.ports();
        let (mut quiet, mut took, mut half, mut longest) = (vec![], vec![], vec![], vec![]);
        for _ in 0..STARTS {
            self.wait_served(count)?;
            self.cloud.agent.stop()?;
            let (_, waits) = self.take_lock(|_| {
                thread::sleep(QUIET);
                Ok(())
            })?;
            quiet.push(milliseconds(percentile(waits, 100)));
            let (time, waits) = self.take_lock(|node| {
                let started = Instant::now();
                node.cloud.agent.clean_up()?;
                Ok(started.elapsed())
            })?;
            took.push(time.as_secs_f64());
            half.push(milliseconds(percentile(waits.iter().copied(), 50)));
            longest.push(milliseconds(percentile(waits, 100)));
            self.cloud.agent.resume()?;
        }
        self.wait_served(count)?;
        table(&[
            &format!("`metadata-agent cleanup` of {count} ports, median and quartiles of {STARTS}"),
            "measured",
        ]);
        println!("| it takes, s | {} |", Spread::of(took));
        println!(
            "| another's wait for the RTNL lock meanwhile, half of them, ms | {:.3} |",
            Spread::of(half)
        );
        println!("| the longest, ms | {:.1} |", Spread::of(longest));
        println!("| the longest before, ms | {:.1} |", Spread::of(quiet));
        Ok(())
    }

    /// Does `work` while a thread takes the lock again and again, by setting up a device that is up; how long each took.
    fn take_lock<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Vec<Duration>)> {
        let done = AtomicBool::new(false);
        let host = Namespace::existing(self.guests[0].netns.name());
        thread::scope(|scope| {
            let taking = scope.spawn(|| {
                host.run(|| -> std::io::Result<Vec<Duration>> {
                    let mut waits = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        set_up_here("lo")?;
                        waits.push(began.elapsed());
                        thread::sleep(PAUSE);
                    }
                    Ok(waits)
                })
            });
            let result = work(self);
            done.store(true, Ordering::Relaxed);
            let waits = taking.join().ok().context("the thread panicked")???;
            Ok((result?, waits))
        })
    }

    /// A guest that is plugged when many others wait for their programs.
    fn newcomer(&mut self) -> Result<()> {
        let rows = Interfaces::of(&self.cloud.chassis.ovs_remote())?;
        self.fill(self.most)?;
        let count = self.ports();
        let backlog = self.taps.len() - BACKLOG..;
        let (mut alone, mut behind, mut left) = (vec![], vec![], vec![]);
        for round in 0..ROUNDS {
            self.unplug(&self.taps[backlog.clone()])?;
            self.wait_served(count - BACKLOG)?;
            for is_behind in [false, true] {
                let guest = self.boot(round)?;
                if is_behind {
                    self.plug(&self.taps[backlog.clone()])?;
                }
                let time = rows.until_answered(&guest, || self.cloud.chassis.plug(&guest))?;
                if is_behind {
                    let ports = self.cloud.agent.ports()?;
                    left.push(ports.iter().filter(|port| !port.reason.is_empty()).count() as f64);
                    behind.push(milliseconds(time));
                } else {
                    alone.push(milliseconds(time));
                }
                own_identity(&guest)?;
                self.cloud.chassis.unplug(&guest)?;
                self.cloud.agent.wait_gone(&guest.port.tap)?;
            }
            self.wait_served(count)?;
        }
        table(&[&format!("a new guest on a node of {count} ports"), "nothing else", "meanwhile"]);
        println!(
            "| from a plugged interface's row to its guest's answer, while {BACKLOG} others are attached, ms | {:.0} | {:.0} |",
            Spread::of(alone),
            Spread::of(behind)
        );
        println!("| of these still waiting then | | {:.0} |", Spread::of(left));
        Ok(())
    }
}

/// Memory that the kernel of the whole machine has for its own objects, in bytes.
fn kernel_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let of = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("a line is missing")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    Ok(of("SUnreclaim:")? + of("Percpu:")?)
}
