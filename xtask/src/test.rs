//! Tests and the demonstration, with the agent they need built before.
use std::{num::NonZero, path::PathBuf, process::Command, thread};

use anyhow::bail;
use clap::Args;

use crate::{
    build,
    command::{cargo, is_root, run},
    counts::{Counts, run_tests},
    dist, setup,
};

#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// On a real OVN and Open vSwitch, with DHCP from OVN.
    #[arg(long)]
    pub(crate) ovn: bool,
    /// Leave everything running until interrupted, and say how to enter a guest.
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Default, Args)]
pub(crate) struct TestOptions {
    /// Only tests whose name contains this.
    pub(crate) filter: Option<String>,
    /// Seconds for which each fuzzing target is given broken inputs; 2 if not told.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) fuzz: Option<u64>,
    /// Seconds for which random transactions are compared with what OVSDB clients hold; 5 if not told.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) compare: Option<u64>,
    /// Seconds for which taps change hands while what arrives in the guests is looked at; 10 if not told.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) isolate: Option<u64>,
}

/// Suites that are run once more with the other way to attach programs, which older kernels have.
const ATTACHMENT_SUITES: &[&str] =
    &["datapath", "handover", "identity", "lifecycle", "restart", "takeover", "trunk", "upkeep"];

/// Shows the service at work.
pub(crate) fn demo(options: &DemoOptions) -> anyhow::Result<()> {
    need_root("the demonstration makes network namespaces and loads eBPF programs")?;
    setup::for_tests()?;
    let agent = build::build(&build::Options { release: false })?;
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "--package", "metadata-tests", "--bin", "demo", "--"]);
    command.args(options.ovn.then_some("--ovn")).args(options.keep.then_some("--keep"));
    run(command.env("METADATA_AGENT_BIN", agent))
}

/// Makes the container image that the tests run.
pub(crate) fn image() -> anyhow::Result<PathBuf> {
    dist::image_of(&build::build(&build::Options { release: false })?)
}

/// Runs the tests of all crates; the end-to-end ones against the agent as it is now.
pub(crate) fn test(options: &TestOptions) -> anyhow::Result<Counts> {
    need_root("the end-to-end tests make network namespaces and load eBPF programs")?;
    setup::for_tests()?;
    let agent = build::build(&build::Options { release: false })?;
    dist::image_of(&agent)?;
    let mut command = cargo_test();
    command.args(["--workspace"]);
    command.args(options.filter.as_slice());
    command.envs(options.fuzz.map(|seconds| ("FUZZ_SECONDS", seconds.to_string())));
    command.envs(options.compare.map(|seconds| ("DIFFERENTIAL_SECONDS", seconds.to_string())));
    command.envs(options.isolate.map(|seconds| ("METADATA_TEST_ISOLATION", seconds.to_string())));
    let mut counts = run_tests(command.env("METADATA_AGENT_BIN", &agent))?;
    if options.filter.is_some() {
        return Ok(counts);
    }
    let mut command = cargo_test();
    command.args(["--package", "metadata-tests", "--test", "e2e", "--"]);
    command.args(ATTACHMENT_SUITES.iter().map(|suite| format!("{suite}::")));
    counts += run_tests(command.env("METADATA_AGENT_BIN", agent).env("METADATA_TEST_ATTACH", "clsact"))?;
    Ok(counts)
}

/// Tests wait for others most of the time: three for each processor.
fn cargo_test() -> Command {
    let threads = 3 * thread::available_parallelism().map_or(1, NonZero::get);
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]).env("RUST_TEST_THREADS", threads.to_string());
    command
}

/// An error unless we are root.
pub(crate) fn need_root(why: &str) -> anyhow::Result<()> {
    if !is_root() {
        bail!("{why}: run this as root");
    }
    Ok(())
}
