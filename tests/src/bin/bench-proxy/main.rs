//! The proxy's price: next to a bare relay, to Debian's haproxy doing one plain hop, and to no proxy at all.
//!
//! All four are asked by the same load for the same upstream, in short rounds that alternate. Printed are medians over the
//! rounds, also of the ratios within each, with the quartiles: absolute numbers say little about another machine. With
//! `requests` as its argument it only measures those, with `profile` where the time of a request goes (both with `kept` behind
//! it: of kept connections), with `memory` that, with `tokens` what session tokens cost, with `crowd` one guest beside crowds.
#![forbid(unsafe_code)]

mod areas;
mod crowd;
mod haproxy;
mod parked;
mod profile;
mod relay;
mod tokens;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use haproxy::Haproxy;
use metadata_tests::{
    agent::Options,
    cloud::{Chassis as _, Cloud},
    guest::{Guest, METADATA},
    load::{self, Load, Mode},
    netns::Namespace,
    nova,
    port::Network,
    process::{Daemon, cpu_time, memory},
    spread::Spread,
    stage::{Path, Stage},
    upstream::constant,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parked::Noise;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(1);
const LOADS: [Load; 4] = [
    Load { connections: 1, mode: Mode::KeepAlive },
    Load { connections: 1, mode: Mode::Close },
    Load { connections: 32, mode: Mode::KeepAlive },
    Load { connections: 32, mode: Mode::Close },
];
const GUESTS: usize = 4;
const PARKED: usize = 10_000;
const SLOW: usize = 500;
const BUSY: usize = 100;
const NEIGHBOUR: Load = Load { connections: 1, mode: Mode::Close };
/// Enough for one end of all parked connections.
const DESCRIPTORS: u64 = PARKED as u64 + 2_000;

fn main() -> Result<()> {
    let upstream = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, nova::ADDRESS.port());
    if std::env::args().nth(1).as_deref() == Some("upstream") {
        return constant::serve(upstream);
    }
    if std::env::args().nth(1).as_deref() == Some("relay") {
        return relay::serve();
    }
    // What is started inherits it.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        most >= DESCRIPTORS,
        "{most} open files are allowed, and {DESCRIPTORS} are needed (`ulimit -Hn`)"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    if std::env::args().nth(1).as_deref() == Some("crowd") {
        return crowd::bench();
    }
    let bench = Bench::start()?;
    if std::env::args().nth(1).as_deref() == Some("tokens") {
        return bench.tokens();
    }
    // A second argument.
    let only_kept = std::env::args().nth(2).as_deref() == Some("kept");
    let is_wanted = |load: &Load| !only_kept || load.mode == Mode::KeepAlive;
    if std::env::args().nth(1).as_deref() == Some("profile") {
        return bench.profile(is_wanted);
    }
    if std::env::args().nth(1).as_deref() == Some("memory") {
        return bench.memory();
    }
    if std::env::args().nth(1).as_deref() == Some("requests") {
        return bench.requests(is_wanted);
    }
    bench.requests(is_wanted)?;
    bench.pools()?;
    bench.tokens()?;
    bench.memory()?;
    bench.fairness()?;
    drop(bench);
    noise()?;
    crowd::bench()
}

/// Everything that is measured, ready.
struct Bench {
    // Dropped in this order: who uses something goes before it.
    haproxy: Haproxy,
    relay: Daemon,
    _upstream: Daemon,
    guests: Vec<Guest>,
    /// A network whose guests have session tokens.
    with_tokens: Network,
    cloud: Cloud<Stage>,
}

/// One way from a guest to the upstream.
struct Way<'a> {
    guest: &'a Namespace,
    address: SocketAddrV4,
    proxy: Option<u32>,
}

/// Names of the ways, in their order.
const WAYS: [&str; 4] = ["no proxy", "bare relay", "haproxy", "ours"];

/// All ways under one load, one right after the other.
type Round = [Figures; 4];

/// One way under one load, in one round.
#[derive(Debug)]
struct Figures {
    rate: f64,
    /// In microseconds.
    p50: f64,
    p99: f64,
    /// The proxy's microseconds for one request.
    cpu: f64,
}

impl Bench {
    fn start() -> Result<Self> {
        // What is measured is work, not how it is refused: no port has a limit of its own.
        let options = [
            format!("connections = {DESCRIPTORS}"),
            "connection_rate = 0".to_owned(),
            "port_connections = 0".to_owned(),
            "port_requests = 0".to_owned(),
        ];
        let mut more = options.map(|option| ("metadata_ebpf", option)).to_vec();
        // As long as haproxy's: on a slow machine it takes a while to open all of them.
        more.push(("metadata_haproxy", "timeout_http_keep_alive = 120".to_owned()));
        let stage = Stage::start()?;
        let with_tokens = stage.add_network("tokens")?;
        more.push(("metadata_ebpf", format!("token_networks = {}:optional", with_tokens.id)));
        let mut cloud = Cloud::on(stage, &Options { more, ..Options::default() })?;
        cloud.quiet = true;
        let network = cloud.chassis.add_network("bench")?;
        let guests: Vec<_> =
            (0..GUESTS).map(|_| cloud.chassis.add_guest(&network, Path::OnLink)).collect::<Result<_>>()?;
        cloud.chassis.write_inventory(&guests.iter().map(|guest| &guest.port).collect::<Vec<_>>())?;
        for guest in &guests {
            cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
        }
        cloud.nova.pause();
        let mut command = cloud.chassis.host().command(std::env::current_exe()?)?;
        command.arg("upstream");
        let upstream = Daemon::spawn("upstream", command, cloud.chassis.sandbox().log("upstream"))?;
        let haproxy = Haproxy::start(&cloud)?;
        let relay = relay::start(&cloud, &haproxy.guest)?;
        for namespace in guests.iter().map(|guest| &guest.netns).chain([&haproxy.guest]) {
            namespace.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        }
        Ok(Self { haproxy, relay, _upstream: upstream, guests, with_tokens, cloud })
    }

    /// No proxy, the relay, haproxy, ours.
    fn ways(&self) -> Result<[Way<'_>; 4]> {
        let plain = &self.haproxy.guest;
        let direct = SocketAddrV4::new(haproxy::HOST, nova::ADDRESS.port());
        Ok([
            Way { guest: plain, address: direct, proxy: None },
            Way { guest: plain, address: relay::ADDRESS, proxy: Some(self.relay.id()) },
            Way { guest: plain, address: haproxy::ADDRESS, proxy: Some(self.haproxy.daemon.id()) },
            Way { guest: &self.guests[0].netns, address: METADATA, proxy: Some(self.cloud.agent.id()?) },
        ])
    }

    fn requests(&self, is_wanted: impl Fn(&Load) -> bool) -> Result<()> {
        let mut all = Vec::new();
        println!(
            "| connections | way | requests/s | p50 | p99 | CPU per request |\n| --- | --- | --- | --- | --- | --- |"
        );
        for load in LOADS.into_iter().filter(is_wanted) {
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let mut round = Vec::new();
                for way in self.ways()? {
                    round.push(self.round(&way, load)?);
                }
                rounds.push(round.try_into().ok().context("a round has all ways")?);
            }
            for (way, name) in WAYS.iter().enumerate() {
                let of = |figure: fn(&Figures) -> f64| over(&rounds, |round| figure(&round[way])).middle;
                println!(
                    "| {} | {name} | {:.0} | {:.0} µs | {:.0} µs | {:.1} µs |",
                    name_of(load),
                    of(|figures| figures.rate),
                    of(|figures| figures.p50),
                    of(|figures| figures.p99),
                    of(|figures| figures.cpu),
                );
            }
            all.push((load, rounds));
        }
        for (other, name) in [(1, "the bare relay"), (2, "haproxy")] {
            println!("\n| ours : {name} | requests/s | requests per CPU second | added p50 | p99 |");
            println!("| --- | --- | --- | --- | --- |");
            for (load, rounds) in &all {
                println!(
                    "| {} | {} | {} | {} | {} |",
                    name_of(*load),
                    over(rounds, |round| round[3].rate / round[other].rate),
                    over(rounds, |round| round[other].cpu / round[3].cpu),
                    added(rounds, other),
                    over(rounds, |round| round[3].p99 / round[other].p99),
                );
            }
        }
        Ok(())
    }

    /// Cost of a request for which a connection to Nova is made, since none is kept for its instance.
    fn pools(&self) -> Result<()> {
        println!("\n| over a new connection to Nova : a kept one | requests/s | CPU per request | p50 |");
        println!("| --- | --- | --- | --- |");
        for connections in [1, 32] {
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let [.., ours] = self.ways()?;
                let round = |mode| self.round(&ours, Load { connections, mode });
                rounds.push([round(Mode::KeepAlive)?, round(Mode::Unpooled)?]);
            }
            let of = |figure: fn(&Figures) -> f64| {
                median(rounds.iter().map(|[kept, new]| figure(new) / figure(kept)).collect())
            };
            println!(
                "| {connections} | {:.2} | {:.2} | {:.2} |",
                of(|figures| figures.rate),
                of(|figures| figures.cpu),
                of(|figures| figures.p50)
            );
        }
        Ok(())
    }

    fn round(&self, way: &Way, load: Load) -> Result<Figures> {
        let before = way.proxy.map(cpu_time).transpose()?;
        let measured = load::run(way.guest, way.address, load, ROUND)?;
        let after = way.proxy.map(cpu_time).transpose()?;
        let cpu = after.zip(before).map_or(Duration::ZERO, |(after, before)| after - before);
        // It writes a line for each request.
        self.cloud.agent.discard_log()?;
        Ok(Figures {
            rate: measured.rate(),
            p50: measured.percentile(50),
            p99: measured.percentile(99),
            cpu: cpu.as_secs_f64() * 1e6 / measured.requests as f64,
        })
    }

    /// Memory of a proxy for many connections that are kept, and on which nothing is asked.
    fn memory(&self) -> Result<()> {
        let [.., haproxy, ours] = self.ways()?;
        println!("\n| memory (PSS) | before | with {PARKED} idle connections | for each | goal |");
        println!("| --- | --- | --- | --- | --- |");
        let all: Vec<_> = self.guests.iter().map(|guest| &guest.netns).collect();
        let plain = vec![&self.haproxy.guest];
        for (name, way, guests, goal) in [("haproxy", haproxy, plain, ""), ("ours", ours, all, "< 60 MB")] {
            let proxy = way.proxy.context("there is no proxy")?;
            let before = memory(proxy)?;
            let mut held = Vec::new();
            for guest in &guests {
                held.extend(parked::idle(guest, way.address, PARKED / guests.len())?);
            }
            let with = memory(proxy)?;
            parked::all_open(&held, PARKED).with_context(|| format!("through {name}"))?;
            println!(
                "| {name} | {:.1} MB | {:.1} MB | {:.1} kB | {goal} |",
                before as f64 / 1e6,
                with as f64 / 1e6,
                with.saturating_sub(before) as f64 / 1e3 / PARKED as f64
            );
        }
        Ok(())
    }

    /// One guest's requests while another holds what it can get.
    fn fairness(&self) -> Result<()> {
        let [hostile, neighbour, ..] = self.guests.as_slice() else { unreachable!("there are {GUESTS}") };
        let p99 = || -> Result<f64> {
            let measured = load::run(&neighbour.netns, METADATA, NEIGHBOUR, ROUND * 2)?;
            Ok(measured.percentile(99))
        };
        let mut ratios = Vec::new();
        for _ in 0..5 {
            self.cloud.agent.settled_counters()?;
            let quiet = p99()?;
            let stop = AtomicBool::new(false);
            let noisy = thread::scope(|scope| {
                let slow = scope.spawn(|| parked::slow(&hostile.netns, METADATA, SLOW, &stop));
                let noisy = || -> Result<f64> {
                    let held = parked::idle(&hostile.netns, METADATA, PARKED)?;
                    let noisy = p99()?;
                    parked::all_open(&held, PARKED)?;
                    Ok(noisy)
                }();
                stop.store(true, Ordering::Relaxed);
                slow.join().ok().context("the slow clients panicked")??;
                noisy
            })?;
            ratios.push(noisy / quiet);
        }
        println!("\n| what | measured | goal |\n| --- | --- | --- |");
        println!(
            "| p99 of a neighbour, beside {PARKED} idle and {SLOW} slow connections of one port : quiet | {:.2} | ≤ 2 |",
            median(ratios)
        );
        Ok(())
    }
}

/// One guest's requests while another says as much as it can, within the limits that a port has by default.
fn noise() -> Result<()> {
    let more = vec![("metadata_ebpf", "request_rate = 100".to_owned())];
    let mut cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    cloud.quiet = true;
    let [hostile, neighbour] = cloud.overlapping_guests()?;
    // It stays within the limits itself.
    let ask = || -> Result<Vec<Duration>> {
        let mut connection = neighbour.connect()?;
        let mut times = Vec::new();
        for _ in 0..200 {
            let asked = Instant::now();
            let response = connection.request("GET", "/latest/meta-data/instance-id", &[], b"")?;
            times.push(asked.elapsed());
            ensure!(response.status == 200, "{response:?}");
            thread::sleep(Duration::from_millis(15));
        }
        Ok(times)
    };
    let p99 = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() * 99 / 100].as_secs_f64()
    };
    for (noise, name) in Noise::ALL {
        let (mut quiet, mut noisy) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            quiet.extend(ask()?);
            let stop = AtomicBool::new(false);
            noisy.extend(thread::scope(|scope| {
                let busy = scope.spawn(|| parked::busy(&hostile.netns, METADATA, BUSY, noise, &stop));
                thread::sleep(ROUND / 2);
                let times = ask();
                stop.store(true, Ordering::Relaxed);
                let taken = busy.join().ok().context("the busy guest panicked")??;
                ensure!(taken > 100_000, "only {taken} bytes were sent");
                times
            })?);
        }
        println!(
            "| p99 of a neighbour, beside a guest that sends {name} on {BUSY} connections : quiet | {:.2} | ≤ 2 |",
            p99(noisy) / p99(quiet)
        );
    }
    Ok(())
}

/// Added time of half of the answers, ours to another way's, each against no proxy. Where the load itself keeps all
/// processors busy that says nothing: a request waits for those before it then, whatever is in between.
fn added(rounds: &[Round], other: usize) -> String {
    if over(rounds, |round| round[other].p50 / round[0].p50).middle < 1.25 {
        return "–".to_owned();
    }
    over(rounds, |round| (round[3].p50 - round[0].p50) / (round[other].p50 - round[0].p50)).to_string()
}

/// The spread of a figure over the rounds.
fn over(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> Spread {
    Spread::of(rounds.iter().map(figure))
}

fn name_of(load: Load) -> String {
    let Load { connections, mode } = load;
    match mode {
        Mode::KeepAlive | Mode::KeepAliveWith(_) => format!("{connections}, kept alive"),
        Mode::Unpooled => format!("{connections}, kept alive, new to Nova"),
        Mode::Close => format!("{connections}, new for each request"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
