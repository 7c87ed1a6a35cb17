//! Building the agent, and running it.
use std::{path::PathBuf, process::Command};

use clap::Args;

use crate::{
    command::{self, cargo, root},
    setup,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// With optimisations.
    #[arg(long)]
    pub(crate) release: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    build: Options,
    /// Arguments of `metadata-agent`, such as `run --config-file FILE`.
    #[arg(last = true, required = true)]
    arguments: Vec<String>,
}

/// Builds the agent; returns the program.
pub(crate) fn build(options: &Options) -> anyhow::Result<PathBuf> {
    setup::for_build()?;
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "metadata-agent"]);
    if options.release {
        command.arg("--release");
    }
    command::run(&mut command)?;
    Ok(target().join(if options.release { "release" } else { "debug" }).join("metadata-agent"))
}

/// Builds the agent and runs it.
pub(crate) fn run(options: &RunOptions) -> anyhow::Result<()> {
    let agent = build(&options.build)?;
    command::run(Command::new(agent).args(&options.arguments))
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
