//! Profile of a request: system calls, switches and time of each way's proxy, and a flame graph of ours.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use inferno::flamegraph::{Options, from_lines};
use metadata_tests::{
    cloud::Chassis as _,
    command::require,
    guest::METADATA,
    load,
    process::{cpu_time, family},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Bench, LOADS, WAYS, Way, areas, name_of};

/// Time under load.
const COUNTED: Duration = Duration::from_secs(3);
/// Time in which perf is ready: it opens an event for each system call and thread.
const START: Duration = Duration::from_secs(2);
/// Samples a second and processor. A prime, so as not to keep step with something that repeats.
const SAMPLES: u32 = 4999;
/// Events that are counted besides system calls.
const SWITCHES: &str = "context-switches";

/// One load under `perf`.
struct Watched {
    /// Text that `perf` printed.
    output: String,
    requests: f64,
    /// Time of the proxy's processes on processors.
    cpu: Duration,
}

impl Bench {
    /// Prints tables for each load, and draws what our processes do under it into the current folder.
    pub(crate) fn profile(&self, is_wanted: impl Fn(&load::Load) -> bool) -> Result<()> {
        require(&["perf"])?;
        for load in LOADS.into_iter().filter(is_wanted) {
            let mut counted = Vec::new();
            for way in self.ways()?.into_iter().skip(1) {
                counted.push(self.count(&way, load)?);
            }
            print(&name_of(load), &counted);
            let name = format!("proxy-{}", name_of(load).replace(',', "").replace(' ', "-"));
            let mut spent = Vec::new();
            for way in self.ways()?.into_iter().skip(1) {
                let (stacks, cpu) = self.sample(&way, load)?;
                spent.push(areas::spent(&stacks, cpu));
                if way.address == METADATA {
                    draw(&stacks, &name_of(load), Path::new(&name))?;
                }
            }
            areas::print(&name_of(load), &spent);
            println!("\n{name}.svg is drawn from {name}.folded");
        }
        Ok(())
    }

    /// System calls and switches of a way's processes, for each request.
    fn count(&self, way: &Way<'_>, load: load::Load) -> Result<BTreeMap<String, f64>> {
        let events = format!("syscalls:sys_enter_*,{SWITCHES}");
        let watched = self.watched(way, load, &["stat", "--field-separator", ";", "--event", &events])?;
        let (output, requests) = (watched.output, watched.requests);
        // Value, unit, event, and more (perf-stat(1), "CSV FORMAT").
        let line = |line: &str| {
            let mut fields = line.split(';');
            let times: f64 = fields.next()?.parse().ok()?;
            let event = fields.nth(1)?.trim_start_matches("syscalls:sys_enter_").to_owned();
            (times > 0.0).then_some((event, times / requests))
        };
        Ok(output.lines().filter_map(line).collect())
    }

    /// Stacks of a way's processes, each with how often it was seen, and microseconds of processors for each request.
    fn sample(&self, way: &Way<'_>, load: load::Load) -> Result<(BTreeMap<String, u64>, f64)> {
        let file = self.cloud.chassis.sandbox().path("perf.data").to_string_lossy().into_owned();
        let rate = SAMPLES.to_string();
        let record =
            ["record", "--event", "cpu-clock", "--freq", &rate, "--call-graph", "fp", "--output", &file];
        let watched = self.watched(way, load, &record)?;
        let script = ["script", "--input", &file, "--fields", "comm,ip,sym"];
        let output = Command::new("perf").args(script).stderr(Stdio::null()).output()?;
        let cpu = watched.cpu.as_secs_f64() * 1e6 / watched.requests;
        Ok((folded(&String::from_utf8_lossy(&output.stdout)), cpu))
    }

    /// Runs `perf` on the processes of a way's proxy while the load is on them: it has begun before the first request, and
    /// ends after the last.
    fn watched(&self, way: &Way<'_>, load: load::Load, arguments: &[&str]) -> Result<Watched> {
        let proxy = way.proxy.context("there is no proxy")?;
        let of: Vec<_> = family(proxy)?.iter().map(u32::to_string).collect();
        let mut perf = Command::new("perf");
        perf.args(arguments).args(["--pid", &of.join(",")]).stdout(Stdio::null()).stderr(Stdio::piped());
        let perf = perf.spawn().context("cannot start perf")?;
        // It says nothing when it is ready.
        thread::sleep(START);
        let before = cpu_time(proxy)?;
        let loaded = load::run(way.guest, way.address, load, COUNTED);
        let cpu = cpu_time(proxy)?.saturating_sub(before);
        kill(Pid::from_raw(perf.id().cast_signed()), Signal::SIGINT)?;
        let output = perf.wait_with_output()?;
        self.cloud.agent.discard_log()?;
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Watched { output, requests: loaded?.requests as f64, cpu })
    }
}

/// Stacks from what `perf script` prints: a line with the thread's name, then a line for each frame, the innermost first,
/// then an empty one.
fn folded(script: &str) -> BTreeMap<String, u64> {
    let mut stacks = BTreeMap::new();
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some(thread) = lines.next() else { continue };
        let mut frames: Vec<_> = lines
            .filter_map(|line| line.trim().split_once(' '))
            .map(|(_, symbol)| symbol.replace(';', ":"))
            .filter(|symbol| symbol != "[unknown]")
            .collect();
        frames.push(thread.trim().trim_end_matches(char::is_numeric).trim_end_matches('-').to_owned());
        frames.reverse();
        *stacks.entry(frames.join(";")).or_insert(0) += 1;
    }
    stacks
}

/// Writes stacks as text and as a picture, in files of that name.
fn draw(stacks: &BTreeMap<String, u64>, title: &str, file: &Path) -> Result<()> {
    ensure!(!stacks.is_empty(), "no stack was sampled");
    let lines: Vec<_> = stacks.iter().map(|(stack, times)| format!("{stack} {times}")).collect();
    fs::write(file.with_extension("folded"), lines.join("\n"))?;
    let mut options = Options::default();
    options.title = format!("{title}: time on a processor");
    options.count_name = "samples".to_owned();
    let out = fs::File::create(file.with_extension("svg"))?;
    Ok(from_lines(&mut options, lines.iter().map(String::as_str), out)?)
}

fn print(load: &str, counted: &[BTreeMap<String, f64>]) {
    println!("\n| {load}: for each request | {} |", WAYS[1..].join(" | "));
    println!("| --- {}|", "| --- ".repeat(counted.len()));
    let of = |event: &str| {
        let times = counted.iter().map(|way| way.get(event).copied().unwrap_or_default());
        times.map(|times| format!("{times:.2}")).collect::<Vec<_>>().join(" | ")
    };
    // What is seldom is not a request's.
    let mut events: Vec<_> =
        counted.iter().flatten().filter(|(_, times)| **times > 0.005).map(|(event, _)| event).collect();
    events.sort();
    events.dedup();
    for event in events {
        println!("| {event} | {} |", of(event));
    }
}
