//! `cargo xtask vm-test`: the agent on Debian's kernels, with Open vSwitch's kernel datapath, and as a service of systemd's,
//! in virtual machines.
mod archive;
pub(crate) mod cloud_guest;
mod guest;
mod initramfs;
mod kernel;
mod machine;

use std::{
    collections::VecDeque,
    fmt, fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::{
    build,
    command::{cargo, output, say},
    dist, setup,
    test::need_root,
};

/// Suites of the end-to-end tests that run in the machines. The last one takes minutes, and is not run for each change.
const SUITES: &[&str] = &["vm", "tapless", "systemd", "migration"];
const WITHOUT_IPV6: &[&str] = &["without_ipv6"];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this kernel (5.10, 6.1, 6.12 or newest); may be given several times.
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Look for newer packages of the kernels instead of using those that are there.
    #[arg(long)]
    refresh: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// On kernels without IPv6 (`ipv6.disable=1`): only what there is to see on these.
    #[arg(long)]
    without_ipv6: bool,
    /// The runs that must pass for a change to land: each suite on the kernels that make a difference to it.
    #[arg(long, conflicts_with_all = ["kernels", "without_ipv6"])]
    change: bool,
}

/// Machines of each change, those that take longest first. What systemd has to do with the agent is no matter of the kernel: that
/// suite runs with Debian's own pair, and on the others with `cargo xtask vm-test`.
const OF_EACH_CHANGE: [Job; 4] = [
    Job { kernel: "6.1", suites: &["systemd"], without_ipv6: false },
    Job { kernel: "6.12", suites: &["vm", "tapless"], without_ipv6: false },
    Job { kernel: "6.1", suites: &["vm", "tapless"], without_ipv6: false },
    Job { kernel: "6.12", suites: WITHOUT_IPV6, without_ipv6: true },
];

/// One machine's part of the tests.
#[derive(Debug, Clone, Copy)]
struct Job {
    kernel: &'static str,
    suites: &'static [&'static str],
    without_ipv6: bool,
}

impl Job {
    /// Name of the machine, which is part of files' names.
    fn name(&self) -> String {
        format!("{}-{}", self.kernel, self.suites.join("-"))
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}, {}", self.kernel, self.suites.join(", "))
    }
}

/// Outcome of a job.
struct Outcome {
    job: Job,
    /// Release of the kernel.
    release: String,
    /// Reason for which it failed, if it did.
    failure: Option<String>,
    time: Duration,
}

/// Runs the tests as the options say.
pub(crate) fn test(options: &Options) -> anyhow::Result<()> {
    if options.change {
        return run(&OF_EACH_CHANGE, options.filter.as_deref(), options.refresh);
    }
    let suites = if options.without_ipv6 { WITHOUT_IPV6 } else { SUITES };
    let on = |kernel: &'static kernel::Kernel| Job {
        kernel: kernel.name,
        suites,
        without_ipv6: options.without_ipv6,
    };
    let jobs: Vec<_> = kernel::choose(&options.kernels)?.into_iter().map(on).collect();
    run(&jobs, options.filter.as_deref(), options.refresh)
}

/// Runs the tests of each change, on kernels without TCX and with it.
pub(crate) fn test_change() -> anyhow::Result<()> {
    run(&OF_EACH_CHANGE, None, false)
}

/// Runs jobs, as many at a time as there are processors; all are tried whatever fails.
fn run(jobs: &[Job], filter: Option<&str>, refresh: bool) -> anyhow::Result<()> {
    need_root("virtual machines see this machine's files as root")?;
    setup::for_vm_tests()?;
    let agent = build::build(&build::Options { release: false })?;
    let programs = Programs { packages: dist::Packages::of(&agent)?, agent, tests: build_tests()? };
    let cache = cache()?;

    // Whatever has to be fetched is, before machines run side by side.
    kernel::busybox(&cache)?;
    let mut waiting = VecDeque::new();
    for job in jobs {
        let kernel = kernel::find(job.kernel)?.install(&cache, refresh)?;
        waiting.push_back((*job, kernel, programs.script(job.suites, filter)?));
    }
    let (waiting, outcomes) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    // A machine takes one processor, whatever it has.
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                while let Some((job, kernel, script)) = next() {
                    let outcome = run_job(job, &kernel, &cache, &script);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    report(&outcomes.into_inner().unwrap_or_else(PoisonError::into_inner), jobs.len())
}

/// Makes the image of the guests that the end-to-end tests boot.
pub(crate) fn guest_image() -> anyhow::Result<()> {
    guest::make(&cache()?)
}

/// The folder of kernels and tools, by its whole name: the machines see the same files under the same names.
fn cache() -> anyhow::Result<PathBuf> {
    let cache = build::target().join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    Ok(cache.canonicalize()?)
}

/// Programs that run in the machines.
struct Programs {
    agent: PathBuf,
    /// The same, as packages.
    packages: dist::Packages,
    tests: PathBuf,
}

impl Programs {
    /// The script that a machine runs, whose status is the machine's: the tests of these suites whose name has the filter in
    /// it. A machine in which no test runs would pass.
    fn script(&self, suites: &[&str], filter: Option<&str>) -> anyhow::Result<String> {
        let list = output(Command::new(&self.tests).args(["--ignored", "--list", "--format=terse"]))?;
        let all: Vec<_> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        let is_wanted = |name: &&&str| filter.is_none_or(|filter| name.contains(filter));
        let agent = quoted(&self.agent.to_string_lossy());
        let package = quoted(&self.packages.deb.to_string_lossy());
        let [rpm, next_rpm] = self.packages.rpms.each_ref().map(|package| quoted(&package.to_string_lossy()));
        let tests = quoted(&self.tests.to_string_lossy());
        let mut script = format!(
            "export METADATA_AGENT_BIN={agent} METADATA_AGENT_PACKAGE={package}\n\
             export METADATA_AGENT_RPM={rpm} METADATA_AGENT_NEXT_RPM={next_rpm}\nstatus=0\n"
        );
        let mut is_empty = true;
        for suite in suites {
            let prefix = format!("{suite}::");
            let names: Vec<_> =
                all.iter().filter(|name| name.starts_with(&prefix)).filter(is_wanted).copied().collect();
            if names.is_empty() {
                ensure!(filter.is_some(), "the suite {suite} has no test for the machines");
                continue;
            }
            is_empty = false;
            let names = names.join(" ");
            // One test at a time: the machine is slow, and one can use the chassis of another.
            script += &format!(
                "{tests} --ignored --test-threads=1 --show-output --color=never --exact {names} || status=$?\n"
            );
        }
        ensure!(!is_empty, "no test for the machines has {:?} in its name", filter.unwrap_or_default());
        Ok(script + "exit $status\n")
    }
}

fn run_job(job: Job, kernel: &kernel::Installed, cache: &Path, script: &str) -> Outcome {
    let started = Instant::now();
    say(&job.to_string());
    let arguments = if job.without_ipv6 { " ipv6.disable=1" } else { "" };
    let run = || {
        let name = job.name();
        let initramfs = initramfs::Initramfs::write(&name, kernel, cache, script)?;
        machine::run(&name, kernel, &initramfs, arguments)
    };
    let failure = run().err().map(|error| format!("{error:#}"));
    if let Some(failure) = &failure {
        say(&format!("{job} failed: {failure}"));
    }
    Outcome { job, release: kernel.release.clone(), failure, time: started.elapsed() }
}

/// Builds the end-to-end tests.
fn build_tests() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--locked", "--package", "metadata-tests", "--no-run", "--test", "e2e"]);
    let messages = output(build.arg("--message-format=json-render-diagnostics"))?;
    // A program that belongs to the package is built with its tests.
    let built = messages.lines().find(|line| line.contains(r#""kind":["test"]"#));
    let program = built.and_then(|line| {
        let (_, rest) = line.split_once(r#""executable":""#)?;
        rest.split('"').next().map(PathBuf::from)
    });
    program.context("cargo does not say where it put the tests")
}

fn report(outcomes: &[Outcome], jobs: usize) -> anyhow::Result<()> {
    println!();
    for Outcome { job, release, failure, time } in outcomes {
        let verdict = if failure.is_none() { "pass" } else { "FAIL" };
        println!("{verdict}  {:>4.0} s  {job} ({release})", time.as_secs_f64());
    }
    let passed = outcomes.iter().filter(|outcome| outcome.failure.is_none()).count();
    ensure!(passed == jobs, "{passed} of {jobs} machines passed");
    Ok(())
}

/// As a word of a shell script.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
