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
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    build,
    command::{cargo, output, say},
    dist, setup,
    test::need_root,
};

/// What the end-to-end tests' crate calls the programs of tests that run in the machines.
const TESTS: &[&str] = &["vm", "tapless", "systemd"];
/// Those that take an emulated machine minutes besides, and are not run for each change.
const LONG_TESTS: &[&str] = &["migration"];

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
    /// Without those that take long.
    #[arg(skip)]
    is_short: bool,
}

impl Options {
    /// These kernels, as they were fetched, and the tests of each change.
    pub(crate) fn only(kernels: &[&str]) -> Self {
        Self {
            kernels: kernels.iter().map(|name| (*name).to_owned()).collect(),
            refresh: false,
            filter: None,
            is_short: true,
        }
    }
}

/// What one kernel's run came to.
struct Outcome {
    /// Name and release of the kernel.
    kernel: String,
    /// Why it failed, if it did.
    failure: Option<String>,
    time: Duration,
}

/// Runs the tests on each kernel; all are tried whatever fails.
pub(crate) fn test(options: &Options) -> anyhow::Result<()> {
    need_root("virtual machines see this machine's files as root")?;
    let kernels = kernel::choose(&options.kernels)?;
    setup::for_vm_tests()?;
    let agent = build::build(&build::Options { release: false })?;
    let program = Program {
        package: dist::package_of(&agent)?.canonicalize()?,
        agent,
        tests: build_tests(if options.is_short { &[] } else { LONG_TESTS })?,
        filter: options.filter.clone(),
    };
    program.check()?;
    let cache = cache()?;

    let mut outcomes = Vec::new();
    for kernel in kernels {
        let started = Instant::now();
        say(&format!("kernel {}", kernel.name));
        let mut name = kernel.name.to_owned();
        let result = run_on(kernel, &cache, options.refresh, &program, &mut name);
        let failure = result.err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            say(&format!("kernel {name} failed: {failure}"));
        }
        outcomes.push(Outcome { kernel: name, failure, time: started.elapsed() });
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

/// What runs in the machines.
struct Program {
    agent: PathBuf,
    /// The same, as a package.
    package: PathBuf,
    tests: Vec<PathBuf>,
    filter: Option<String>,
}

impl Program {
    /// A machine in which no test runs would pass.
    fn check(&self) -> anyhow::Result<()> {
        for tests in &self.tests {
            let mut list = Command::new(tests);
            list.args(["--ignored", "--list", "--format=terse"]).args(&self.filter);
            if output(&mut list)?.lines().any(|line| line.ends_with(": test")) {
                return Ok(());
            }
        }
        bail!("no test for the machines has {:?} in its name", self.filter.as_deref().unwrap_or_default())
    }

    /// The script that a machine runs; its status is the machine's.
    fn script(&self) -> String {
        let filter = self.filter.as_deref().map(quoted).unwrap_or_default();
        let agent = quoted(&self.agent.to_string_lossy());
        let package = quoted(&self.package.to_string_lossy());
        let mut script =
            format!("export METADATA_AGENT_BIN={agent} METADATA_AGENT_PACKAGE={package}\nstatus=0\n");
        for tests in &self.tests {
            let tests = quoted(&tests.to_string_lossy());
            // One test at a time: the machine is slow, and one can use the chassis of another.
            script += &format!(
                "{tests} --ignored --test-threads=1 --show-output --color=never {filter} || status=$?\n"
            );
        }
        script + "exit $status\n"
    }
}

fn run_on(
    kernel: &kernel::Kernel,
    cache: &Path,
    refresh: bool,
    program: &Program,
    name: &mut String,
) -> anyhow::Result<()> {
    let installed = kernel.install(cache, refresh)?;
    *name = format!("{} ({})", kernel.name, installed.release);
    let initramfs = initramfs::Initramfs::write(&installed, cache, &program.script())?;
    machine::run(&installed, &initramfs)
}

/// Builds the programs of tests that run in the machines.
fn build_tests(more: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let tests = [TESTS, more].concat();
    let mut build = cargo();
    build.args(["test", "--locked", "--package", "metadata-tests", "--no-run"]);
    build.args(tests.iter().flat_map(|name| ["--test", name]));
    let messages = output(build.arg("--message-format=json-render-diagnostics"))?;
    let program = |name: &&str| {
        // A program that belongs to the package is built with its tests.
        let (kind, name) = (r#""kind":["test"]"#, format!(r#""name":"{name}""#));
        let built = messages.lines().find(|line| line.contains(kind) && line.contains(&name));
        let (_, rest) = built?.split_once(r#""executable":""#)?;
        rest.split('"').next().map(PathBuf::from)
    };
    let programs: Option<Vec<_>> = tests.iter().map(program).collect();
    programs.context("cargo does not say where it put the tests")
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
