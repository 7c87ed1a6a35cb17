//! `cargo xtask vm-test`: the agent on Debian's kernels, with Open vSwitch's kernel datapath, and as a service of systemd's,
//! in virtual machines.
mod archive;
pub(crate) mod cloud_guest;
mod guest;
mod initramfs;
mod kernel;
mod machine;

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;

use crate::{
    build,
    command::{cargo, output, say},
    dist, setup,
    test::need_root,
};

/// Suites of the end-to-end tests that run in the machines.
const SUITES: &[&str] = &["vm", "tapless", "systemd"];
/// Those that take an emulated machine minutes besides, and are not run for each change.
const LONG_SUITES: &[&str] = &["migration"];

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
    /// Without those that take long.
    #[arg(skip)]
    is_short: bool,
}

impl Options {
    /// That kernel, as it was fetched, without IPv6.
    pub(crate) fn without_ipv6(kernel: &str) -> Self {
        Self { without_ipv6: true, ..Self::only(&[kernel]) }
    }

    /// These kernels, as they were fetched, and the tests of each change.
    pub(crate) fn only(kernels: &[&str]) -> Self {
        Self {
            kernels: kernels.iter().map(|name| (*name).to_owned()).collect(),
            refresh: false,
            filter: None,
            without_ipv6: false,
            is_short: true,
        }
    }
}

/// Outcome of one kernel's run.
struct Outcome {
    /// Name and release of the kernel.
    kernel: String,
    /// Reason for which it failed, if it did.
    failure: Option<String>,
    time: Duration,
}

/// Runs the tests on each kernel; all are tried whatever fails.
pub(crate) fn test(options: &Options) -> anyhow::Result<()> {
    need_root("virtual machines see this machine's files as root")?;
    let kernels = kernel::choose(&options.kernels)?;
    setup::for_vm_tests()?;
    let agent = build::build(&build::Options { release: false })?;
    let program =
        Program { packages: dist::Packages::of(&agent)?, agent, suites: Vec::new(), tests: build_tests()? };
    let suites = match options {
        Options { without_ipv6: true, .. } => vec!["without_ipv6"],
        Options { is_short: true, .. } => SUITES.to_vec(),
        _ => [SUITES, LONG_SUITES].concat(),
    };
    let program = program.with_tests(&suites, options.filter.as_deref())?;
    let arguments = if options.without_ipv6 { " ipv6.disable=1" } else { "" };
    let cache = cache()?;

    // Whatever has to be fetched is, before machines run side by side.
    kernel::busybox(&cache)?;
    let mut installed = Vec::new();
    for kernel in kernels {
        installed.push((kernel.name, kernel.install(&cache, options.refresh)?));
    }
    // Each machine takes one processor, whatever it has.
    let at_a_time = thread::available_parallelism().map_or(1, NonZero::get);
    let mut outcomes = Vec::new();
    for some in installed.chunks(at_a_time) {
        let (cache, program, arguments) = (&cache, &program, arguments);
        thread::scope(|scope| {
            let on = |(name, kernel)| scope.spawn(move || run_on(name, kernel, cache, program, arguments));
            let running: Vec<_> = some.iter().map(|(name, kernel)| on((name, kernel))).collect();
            for thread in running {
                outcomes.push(thread.join().map_err(|_| anyhow!("a machine's thread panicked"))?);
            }
            anyhow::Ok(())
        })?;
    }
    report(&outcomes)
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
struct Program {
    agent: PathBuf,
    /// The same, as packages.
    packages: dist::Packages,
    tests: PathBuf,
    /// Names of the tests of each suite.
    suites: Vec<Vec<String>>,
}

impl Program {
    /// The tests of these suites whose name has the filter in it. A machine in which no test runs would pass.
    fn with_tests(mut self, suites: &[&str], filter: Option<&str>) -> anyhow::Result<Self> {
        let list = output(Command::new(&self.tests).args(["--ignored", "--list", "--format=terse"]))?;
        let all: Vec<_> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        let is_wanted = |name: &&&str| filter.is_none_or(|filter| name.contains(filter));
        for suite in suites {
            let prefix = format!("{suite}::");
            let tests = all.iter().filter(|name| name.starts_with(&prefix)).filter(is_wanted);
            let tests: Vec<_> = tests.map(|name| (*name).to_owned()).collect();
            if tests.is_empty() && filter.is_none() {
                bail!("the suite {suite} has no test for the machines");
            }
            self.suites.push(tests);
        }
        self.suites.retain(|tests| !tests.is_empty());
        if self.suites.is_empty() {
            bail!("no test for the machines has {:?} in its name", filter.unwrap_or_default());
        }
        Ok(self)
    }

    /// The script that a machine runs; its status is the machine's.
    fn script(&self) -> String {
        let agent = quoted(&self.agent.to_string_lossy());
        let package = quoted(&self.packages.deb.to_string_lossy());
        let [rpm, next_rpm] = self.packages.rpms.each_ref().map(|package| quoted(&package.to_string_lossy()));
        let tests = quoted(&self.tests.to_string_lossy());
        let mut script = format!(
            "export METADATA_AGENT_BIN={agent} METADATA_AGENT_PACKAGE={package}\n\
             export METADATA_AGENT_RPM={rpm} METADATA_AGENT_NEXT_RPM={next_rpm}\nstatus=0\n"
        );
        for suite in &self.suites {
            let names = suite.join(" ");
            // One test at a time: the machine is slow, and one can use the chassis of another.
            script += &format!(
                "{tests} --ignored --test-threads=1 --show-output --color=never --exact {names} || status=$?\n"
            );
        }
        script + "exit $status\n"
    }
}

fn run_on(
    name: &str,
    installed: &kernel::Installed,
    cache: &Path,
    program: &Program,
    arguments: &str,
) -> Outcome {
    let started = Instant::now();
    say(&format!("kernel {name}"));
    let run = || {
        let initramfs = initramfs::Initramfs::write(installed, cache, &program.script())?;
        machine::run(name, installed, &initramfs, arguments)
    };
    let failure = run().err().map(|error| format!("{error:#}"));
    let kernel = format!("{name} ({})", installed.release);
    if let Some(failure) = &failure {
        say(&format!("kernel {kernel} failed: {failure}"));
    }
    Outcome { kernel, failure, time: started.elapsed() }
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

fn report(outcomes: &[Outcome]) -> anyhow::Result<()> {
    println!();
    for Outcome { kernel, failure, time } in outcomes {
        let verdict = if failure.is_none() { "pass" } else { "FAIL" };
        println!("{verdict}  {:>4.0} s  {kernel}", time.as_secs_f64());
    }
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    if failed > 0 {
        bail!("{failed} of {} kernels failed", outcomes.len());
    }
    Ok(())
}

/// As a word of a shell script.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
