//! A node that boots: 200 guests of several networks ask for their metadata within ten seconds, each as cloud-init does, of
//! a Nova that takes its time and has few workers.
//!
//! The same crawls are made once through the agent and once straight to Nova, in rounds that alternate: Nova is what limits
//! both.
#![forbid(unsafe_code)]

use std::{
    net::SocketAddrV4,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    cloud::{Chassis as _, Cloud},
    cloud_init::{Datasource, SUITES, crawl},
    guest::{Guest, METADATA},
    http::{self, Connection},
    nova::{self, Pace},
    port::Port,
    process::{cpu_time, memory},
    spread::{Spread, milliseconds, percentile},
    stage::{Path, Stage},
};

const GUESTS: usize = 200;
const NETWORKS: usize = 8;
/// The time within which all of them begin.
const BOOTS: Duration = Duration::from_secs(10);
const PACE: Pace = Pace { answer: Duration::from_millis(30), workers: 4 };
/// New connections of each guest.
const REQUESTS: usize = 25;
const ROUNDS: usize = 3;
const CRAWLS: usize = 5;
/// A client's patience with one request.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// A way to Nova.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Without a proxy, with the headers that one would add.
    Straight,
    Agent,
}

/// One boot of all guests.
#[derive(Debug)]
struct Boot {
    /// From the first guest's first request to the last answer.
    all: f64,
    /// Of each guest, from its first request to its last answer.
    crawls: Vec<Duration>,
    requests: Vec<Duration>,
    failed: usize,
    /// The agent's, at most.
    memory: u64,
    cpu: Duration,
}

fn main() -> Result<()> {
    // What a node has by default.
    let more = ["request_rate = 100", "request_burst = 200"];
    let more = more.map(|option| ("metadata_ebpf", option.to_owned())).to_vec();
    let mut cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    cloud.quiet = true;
    let networks = (0..NETWORKS)
        .map(|number| cloud.chassis.add_network(&format!("tenant{number}")))
        .collect::<Result<Vec<_>>>()?;
    let guests = (0..GUESTS)
        .map(|number| cloud.chassis.add_guest(&networks[number % NETWORKS], Path::OnLink))
        .collect::<Result<Vec<_>>>()?;
    cloud.chassis.write_inventory(&guests.iter().map(|guest| &guest.port).collect::<Vec<_>>())?;
    for guest in &guests {
        cloud.nova.add_instance(&guest.port);
        cloud.nova.set_user_data(&guest.port, "#!/bin/sh\n");
    }
    for guest in &guests {
        cloud.agent.wait_served(guest, cloud.chassis.ifindex(guest)?)?;
    }
    let paths = crawled(&cloud, &guests[0])?;
    eprintln!("a crawl asks for {paths:?}");

    cloud.nova.set_pace(Some(PACE));
    let before = memory(cloud.agent.id()?)?;
    let mut boots = [vec![], vec![]];
    for _ in 0..ROUNDS {
        for (way, boots) in [Way::Straight, Way::Agent].into_iter().zip(&mut boots) {
            let boot = boot(&cloud, &guests, &paths, way)?;
            eprintln!("{way:?}: {:.1} s, {} failed", boot.all, boot.failed);
            boots.push(boot);
            cloud.agent.discard_log()?;
            drop(cloud.nova.take_requests());
        }
    }
    print(&boots, before);
    real_clients(&cloud, &guests[0])
}

/// Paths that the real client asks for, repeated to as many requests as a boot makes.
fn crawled(cloud: &Cloud<Stage>, guest: &Guest) -> Result<Vec<String>> {
    drop(cloud.nova.take_requests());
    for source in [Datasource::OpenStack, Datasource::Ec2] {
        crawl(&cloud.chassis, guest, SUITES[0], source)?;
    }
    let asked = cloud.nova.take_requests();
    let paths: Vec<_> = asked.into_iter().map(|request| request.target).cycle().take(REQUESTS).collect();
    ensure!(paths.len() == REQUESTS, "cloud-init asked for nothing");
    Ok(paths)
}

/// All guests boot, one after the other within some seconds.
fn boot(cloud: &Cloud<Stage>, guests: &[Guest], paths: &[String], way: Way) -> Result<Boot> {
    let agent = cloud.agent.id()?;
    let before = cpu_time(agent)?;
    let booted = AtomicBool::new(false);
    let started = Instant::now();
    let (results, memory) = thread::scope(|scope| -> Result<_> {
        let watching = scope.spawn(|| -> Result<u64> {
            let mut most = 0;
            while !booted.load(Ordering::Relaxed) {
                most = memory(agent)?.max(most);
                thread::sleep(LOOK);
            }
            Ok(most)
        });
        let asking: Vec<_> = guests
            .iter()
            .enumerate()
            .map(|(number, guest)| {
                scope.spawn(move || {
                    thread::sleep(BOOTS * number as u32 / GUESTS as u32);
                    let netns = if way == Way::Agent { &guest.netns } else { cloud.chassis.host() };
                    netns.run(|| ask(&guest.port, paths, way))
                })
            })
            .collect();
        let results: Vec<_> = asking.into_iter().map(thread::ScopedJoinHandle::join).collect();
        booted.store(true, Ordering::Relaxed);
        Ok((results, watching.join().ok().context("the watch panicked")??))
    })?;
    let all = started.elapsed().as_secs_f64();
    let mut boot =
        Boot { all, crawls: vec![], requests: vec![], failed: 0, memory, cpu: cpu_time(agent)? - before };
    for result in results {
        let (times, failed) = result.ok().context("a guest panicked")??;
        boot.crawls.push(times.iter().sum());
        boot.requests.extend(times);
        boot.failed += failed;
    }
    Ok(boot)
}

/// One crawl, each request on a connection of its own; how long each took, and how many were not answered as they should.
fn ask(port: &Port, paths: &[String], way: Way) -> (Vec<Duration>, usize) {
    let signature = nova::signature(&port.instance);
    let (to, headers): (SocketAddrV4, Vec<(&str, &str)>) = match way {
        Way::Agent => (METADATA, vec![]),
        Way::Straight => (
            nova::ADDRESS,
            vec![
                ("X-Instance-ID", port.instance.as_str()),
                ("X-Tenant-ID", port.project.as_str()),
                ("X-Instance-ID-Signature", signature.as_str()),
            ],
        ),
    };
    let headers = [headers.as_slice(), &[("Connection", "close")]].concat();
    let (mut times, mut failed) = (Vec::new(), 0);
    for path in paths {
        let asked = Instant::now();
        let answer = http::connect_from(None, to, LIMIT)
            .and_then(|stream| Connection::new(stream).request("GET", path, &headers, b""));
        times.push(asked.elapsed());
        // What Nova has not, it says so.
        let answered = answer.is_ok_and(|response| matches!(response.status, 200 | 404));
        failed += usize::from(!answered);
    }
    (times, failed)
}

fn print(boots: &[Vec<Boot>; 2], before: u64) {
    let Pace { answer, workers } = PACE;
    println!(
        "| {GUESTS} guests of {NETWORKS} networks boot within {} s, {REQUESTS} connections each; Nova takes {} ms, {workers} at a time; \
         median and quartiles of {ROUNDS} rounds | straight to Nova | through the agent | ratio |\n| --- | --- | --- | --- |",
        BOOTS.as_secs(),
        answer.as_millis()
    );
    let line = |what: &str, digits: usize, of: &dyn Fn(&Boot) -> f64| {
        let [straight, agent] = boots;
        let spread = |boots: &[Boot]| Spread::of(boots.iter().map(of));
        let ratio = Spread::of(straight.iter().zip(agent).map(|(one, other)| of(other) / of(one)));
        println!("| {what} | {:.digits$} | {:.digits$} | {ratio} |", spread(straight), spread(agent));
    };
    line("time to the last answer, s", 1, &|boot| boot.all);
    let crawl = |boot: &Boot, percent| percentile(boot.crawls.iter().copied(), percent).as_secs_f64();
    line("a guest's crawl, s, half of them", 1, &|boot| crawl(boot, 50));
    line("the slowest crawl, s", 1, &|boot| crawl(boot, 100));
    line("the slowest crawl : half of them", 2, &|boot| crawl(boot, 100) / crawl(boot, 50));
    line("p99 of a request, ms", 0, &|boot| milliseconds(percentile(boot.requests.iter().copied(), 99)));
    let failed = |boots: &[Boot]| boots.iter().map(|boot| boot.failed).sum::<usize>();
    let all = |boots: &[Boot]| boots.iter().map(|boot| boot.requests.len()).sum::<usize>();
    let [straight, agent] = boots;
    println!(
        "| not answered | {} of {} | {} of {} | |",
        failed(straight),
        all(straight),
        failed(agent),
        all(agent)
    );
    let most = Spread::of(agent.iter().map(|boot| boot.memory as f64 / 1e6));
    let cpu = Spread::of(agent.iter().map(|boot| boot.cpu.as_secs_f64()));
    println!(
        "| memory of the agent (PSS), MB: before, at most | | {:.1}, {most:.1} | |",
        before as f64 / 1e6
    );
    println!("| processor time of the agent, s | | {cpu} | |");
}

/// A whole crawl by the real client, its own start and work included.
fn real_clients(cloud: &Cloud<Stage>, guest: &Guest) -> Result<()> {
    println!(
        "\n| cloud-init, median and quartiles of {CRAWLS} crawls | requests | a crawl, s | of that Nova's, s |"
    );
    println!("| --- | --- | --- | --- |");
    for suite in SUITES {
        for source in [Datasource::OpenStack, Datasource::Ec2] {
            let mut times = Vec::new();
            drop(cloud.nova.take_requests());
            for _ in 0..CRAWLS {
                let started = Instant::now();
                crawl(&cloud.chassis, guest, suite, source)?;
                times.push(started.elapsed().as_secs_f64());
            }
            let requests = cloud.nova.take_requests().len() / CRAWLS;
            println!(
                "| {source:?} of {suite} | {requests} | {} | {:.2} |",
                Spread::of(times),
                (PACE.answer * requests as u32).as_secs_f64()
            );
        }
    }
    Ok(())
}
