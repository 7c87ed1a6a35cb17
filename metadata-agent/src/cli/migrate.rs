//! `migrate`: has this node change hands between Neutron's own metadata agent and this one.
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde_json::Value;
use tokio::runtime;

use super::{config_files::ConfigFiles, remove_all, show, tell_to_leave};
use crate::{
    config::{Config, SourceOptions},
    migration::{Commands, Host, Ports, Unfinished, back, carry_out, forward},
};

/// This agent's unit, and the other one's.
const OWN_UNIT: &str = "metadata-agent.service";
const OTHER_UNIT: &str = "neutron-ovn-metadata-agent.service";

/// Direction, and whether it is meant.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// From this agent to the other one.
    #[arg(long)]
    back: bool,
    /// Do it. Without this option nothing is changed.
    #[arg(long)]
    apply: bool,
    /// Begin although some ports are not served by this agent, or the other agent is not seen to run.
    #[arg(long)]
    force: bool,
    /// Command that stops the other agent for good, where it is no service of systemd's: a line for sh.
    #[arg(long, value_name = "COMMAND", requires = "start")]
    stop: Option<String>,
    /// Command that starts it.
    #[arg(long, value_name = "COMMAND", requires = "stop")]
    start: Option<String>,
    #[command(flatten)]
    files: ConfigFiles,
}

impl Migrate {
    /// Looks, tells, and does it if that is meant.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let config = self.files.read()?;
        let SourceOptions::Ovn { ovs, .. } = &config.source else {
            bail!("there is nothing to migrate without OVN: [metadata_ebpf] inventory is set");
        };
        let leave = || leave(&config);
        let ports = || ports(&config).map_err(|error| format!("{error:#}"));
        let host = Host {
            ovs: (**ovs).clone(),
            ports: &ports,
            leave: &leave,
            // Whoever read it may have hung up, and what was begun has to be undone all the same.
            tell: &|line| drop(writeln!(io::stdout(), "{line}")),
            runtime: runtime::Builder::new_current_thread().enable_all().build()?,
        };
        let told = ports().map_err(|error| anyhow!(error)).context(
            "this agent does not serve here: start it first, beside the other one (systemctl enable --now metadata-agent)",
        )?;
        let found = host.find().map_err(|error| anyhow!(error))?;
        let commands = Commands { stop: self.stop, start: self.start };
        let plan = match self.back {
            false => forward(&found, &told, &commands),
            true => back(&found, &told, &commands, systemctl(&["cat", OTHER_UNIT])),
        };
        for agent in &found.agents {
            println!("found: {} (process {})", agent.program, agent.process);
        }
        for left in &plan.left {
            println!("left as it is: {left}");
        }
        for problem in plan.problems.iter().chain(&plan.doubts) {
            eprintln!("problem: {problem}");
        }
        if !plan.problems.is_empty() {
            bail!("nothing was changed: the above is in the way");
        }
        if !plan.doubts.is_empty() && !self.force {
            bail!(
                "nothing was changed: guests may have metadata from the other agent, and would lose it; --force ignores that"
            );
        }
        if plan.steps.is_empty() {
            println!("there is nothing to do");
        } else if self.apply {
            carry_out(&plan, &host)?;
            (host.tell)(format_args!("done"));
        } else {
            for step in &plan.steps {
                println!("would {step}");
            }
            println!("nothing was changed; --apply does it");
        }
        Ok(())
    }
}

/// The ports of the running agent, which has to be ready.
fn ports(config: &Config) -> anyhow::Result<Ports> {
    let ask = |target| {
        let socket = show::connect(&config.run_dir);
        let socket = socket.with_context(|| format!("no agent answers in {}", config.run_dir.display()))?;
        show::ask(socket, "GET", target)
    };
    if let (false, missing) = ask("/ready")? {
        bail!("it is not ready: {}", missing.trim_end());
    }
    let (_, listed) = ask("/ports")?;
    let listed: Value = serde_json::from_str(&listed)?;
    let mut ports = Ports::default();
    for port in listed.as_array().into_iter().flatten() {
        let text = |field: &str| port[field].as_str().unwrap_or_default();
        if text("state") == "known" && text("reason").is_empty() {
            ports.networks.insert(text("network").to_owned());
        } else {
            ports.unserved.push((text("port").to_owned(), text("reason").to_owned()));
        }
    }
    Ok(ports)
}

/// Ends this agent for good.
fn leave(config: &Config) -> Result<(), Unfinished> {
    let lock = tell_to_leave(&config.run_dir).map_err(|error| Unfinished::Stays(format!("{error:#}")))?;
    if systemctl(&["--quiet", "is-enabled", OWN_UNIT]) && !systemctl(&["--quiet", "disable", OWN_UNIT]) {
        // As above: nobody may read it.
        drop(writeln!(
            io::stderr(),
            "warning: {OWN_UNIT} cannot be disabled, and would serve again after the next boot: run `systemctl disable \
             {OWN_UNIT}`"
        ));
    }
    remove_all(config, lock).map_err(|error| {
        Unfinished::LeftOver(format!(
            "{error:#} (what is left over goes with `metadata-agent cleanup`, with the configuration files of this command)"
        ))
    })
}

/// True if systemd is there, and answers so.
fn systemctl(arguments: &[&str]) -> bool {
    let quiet = std::process::Stdio::null;
    let mut command = std::process::Command::new("systemctl");
    command.args(arguments).stdin(quiet()).stdout(quiet()).stderr(quiet());
    PathBuf::from("/run/systemd/system").is_dir() && command.status().is_ok_and(|status| status.success())
}
