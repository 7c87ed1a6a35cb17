//! `cargo xtask vm-test`: the agent on Debian's kernels, with Open vSwitch's kernel datapath, in virtual machines.
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
    setup,
    test::need_root,
};

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
}

impl Options {
    /// These kernels, as they were fetched, and all tests.
    pub(crate) fn only(kernels: &[&str]) -> Self {
        Self {
            kernels: kernels.iter().map(|name| (*name).to_owned()).collect(),
            refresh: false,
            filter: None,
        }
    }
}

/// What one kernel's run came to.
struct Outcome {
    /// Name and release of the kernel.
    kernel: String,
    /// Why it failed, if it did.
    failure: Option<String>,
    note: &'static str,
    time: Duration,
}

/// Runs the tests on each kernel; all are tried whatever fails.
pub(crate) fn test(options: &Options) -> anyhow::Result<()> {
    need_root("virtual machines see this machine's files as root")?;
    let kernels = kernel::choose(&options.kernels)?;
    setup::for_vm_tests()?;
    let program = Program {
        agent: build::build(&build::Options { release: false })?,
        tests: build_tests()?,
        filter: options.filter.clone(),
    };
    program.check()?;
    let cache = build::target().join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // The machines see the same files under the same names, so those must be complete.
    let cache = cache.canonicalize()?;

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
        outcomes.push(Outcome { kernel: name, failure, note: kernel.note, time: started.elapsed() });
    }
    report(&outcomes)
}

/// What runs in the machines.
struct Program {
    agent: PathBuf,
    tests: PathBuf,
    filter: Option<String>,
}

impl Program {
    /// A machine in which no test runs would pass.
    fn check(&self) -> anyhow::Result<()> {
        let mut list = Command::new(&self.tests);
        list.args(["--ignored", "--list", "--format=terse"]).args(&self.filter);
        if !output(&mut list)?.lines().any(|line| line.ends_with(": test")) {
            bail!(
                "no test for the machines has {:?} in its name",
                self.filter.as_deref().unwrap_or_default()
            );
        }
        Ok(())
    }

    /// The script that a machine runs; its last command's status is the machine's.
    fn script(&self) -> String {
        // One test at a time: the machine is slow, and one can use the chassis of another.
        let mut script = format!(
            "export METADATA_AGENT_BIN={}\nexec {} --ignored --test-threads=1 --show-output --color=never",
            quoted(&self.agent.to_string_lossy()),
            quoted(&self.tests.to_string_lossy())
        );
        if let Some(filter) = &self.filter {
            script.push(' ');
            script.push_str(&quoted(filter));
        }
        script.push('\n');
        script
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

/// Builds the program of tests that runs in the machines, which the end-to-end tests' crate calls `vm`.
fn build_tests() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--locked", "--package", "metadata-tests", "--test", "vm", "--no-run"]);
    let messages = output(build.arg("--message-format=json-render-diagnostics"))?;
    // A program that belongs to the package is built with its tests.
    let mut built = messages.lines().filter(|message| message.contains(r#""kind":["test"]"#));
    let program = built.find_map(|message| {
        let (_, rest) = message.split_once(r#""executable":""#)?;
        rest.split('"').next()
    });
    program.map(PathBuf::from).context("cargo does not say where it put the tests")
}

fn report(outcomes: &[Outcome]) -> anyhow::Result<()> {
    println!();
    for Outcome { kernel, failure, note, time } in outcomes {
        let verdict = if failure.is_none() { "pass" } else { "FAIL" };
        let line = format!("{verdict}  {:>4.0} s  {kernel}  {note}", time.as_secs_f64());
        println!("{}", line.trim_end());
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
