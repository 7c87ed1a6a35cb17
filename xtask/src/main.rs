//! `cargo xtask`: set up a machine, build, run, test and show the metadata service.
#![forbid(unsafe_code)]
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod ci;
mod command;
mod counts;
mod debian;
mod dependencies;
mod dist;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "shared with metadata-agent's build script, which uses the rest"
)]
mod ebpf;
mod setup;
mod test;
mod vm;

#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "Everything there is to do with this repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what building and testing need: Debian packages, a toolchain with core's source, bpf-linker.
    Setup,
    /// Build the agent, eBPF programs included.
    Build(build::Options),
    /// Build, then load the datapath and run the agent with the arguments after `--`.
    Run(build::RunOptions),
    /// Two tenants with the same address get their own answers, in front of your eyes.
    Demo(test::DemoOptions),
    /// Run all tests; end-to-end tests need root.
    Test(test::TestOptions),
    /// Run the agent on Debian's kernels, in virtual machines, with Open vSwitch's kernel datapath; needs root.
    VmTest(vm::Options),
    /// Debian with cloud-init, booted in a virtual machine on Open vSwitch's taps and on Open vSwitch with DPDK.
    CloudGuest,
    /// Make what is given to others: packages, a container image, debug symbols, a bill of materials, sources, checksums.
    Dist(dist::Options),
    /// Make a container image of the agent as it is now, for the tests.
    Image,
    /// Measure, and print what was measured.
    Bench(bench::Options),
    /// A region's agents against a Southbound of three servers: what each thing that happens costs them.
    Simulate(bench::SimulateOptions),
    /// Check licences, bans and sources of dependencies against `deny.toml`.
    Dependencies,
    /// Everything that must hold for a change to land: format, lints, documentation, demonstration, tests.
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => setup::everything(),
        Task::Build(options) => build::build(&options).map(drop),
        Task::Run(options) => build::run(&options),
        Task::Demo(options) => test::demo(&options),
        Task::Test(options) => test::test(&options).map(|counts| println!("{counts}")),
        Task::VmTest(options) => vm::test(&options),
        Task::CloudGuest => vm::cloud_guest::test(),
        Task::Dist(options) => dist::dist(&options),
        Task::Image => test::image().map(|image| println!("{}", image.display())),
        Task::Bench(options) => bench::bench(&options),
        Task::Simulate(options) => bench::simulate(&options),
        Task::Dependencies => dependencies::check(),
        Task::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
