//! The place of the running agent that a command asks: its run directory, or the configuration that names it.
use std::path::PathBuf;

use clap::Args;

use super::config_files::ConfigFiles;

/// The run directory that agents have by default.
const RUN_DIR: &str = "/run/metadata-agent";

/// The place, as the command line tells it.
#[derive(Debug, Default, Args)]
pub(super) struct AgentPlace {
    /// The agent's run directory (/run/metadata-agent). With configuration files, it is theirs.
    #[arg(long, value_name = "FOLDER")]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    files: ConfigFiles,
}

impl AgentPlace {
    /// The run directory of the agent that is meant.
    pub(super) fn run_dir(&self) -> anyhow::Result<PathBuf> {
        Ok(match &self.run_dir {
            Some(run_dir) => run_dir.clone(),
            None if self.files.are_named() => self.files.read()?.run_dir,
            None => RUN_DIR.into(),
        })
    }
}
