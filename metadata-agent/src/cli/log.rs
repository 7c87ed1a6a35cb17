//! `log`: changes what a running agent logs.

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};

use super::{
    agent_place::AgentPlace,
    show::{self, ask, print},
};
use crate::admin;

/// Filter of the log, and where the agent is.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// Filter of both processes' logs, as in RUST_LOG: debug, info, warn, or with parts: info,access=off
    #[arg(long, value_name = "FILTER", conflicts_with = "datapath", required_unless_present = "datapath")]
    level: Option<String>,
    /// Turn on or off a line for each frame that is the agent's, with its outcome.
    #[arg(long)]
    datapath: Option<Switch>,
    /// Frames of one tap, port or instance only.
    #[arg(long, value_name = "WHAT", requires = "datapath")]
    port: Option<String>,
    /// For so many seconds; 60 where nothing is said.
    #[arg(long, value_name = "NUMBER", requires = "datapath")]
    seconds: Option<u64>,
    #[command(flatten)]
    place: AgentPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Log {
    /// Tells the agent.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let run_dir = self.place.run_dir()?;
        let path = run_dir.join(admin::SOCKET);
        let socket = show::connect(&run_dir)
            .with_context(|| format!("no agent answers at {}: is it running?", path.display()))?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(level) = &self.level {
            query.append_pair("level", level);
        }
        if let Some(switch) = self.datapath {
            query.append_pair("datapath", if switch == Switch::On { "on" } else { "off" });
        }
        if let Some(port) = &self.port {
            query.append_pair("port", port);
        }
        if let Some(seconds) = self.seconds {
            query.append_pair("seconds", &seconds.to_string());
        }
        let (is_ok, text) = ask(socket, "PUT", &format!("/log?{}", query.finish()))?;
        ensure!(is_ok, "{}", text.trim_end());
        print(&text)
    }
}
