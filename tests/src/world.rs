//! A part of the machine for one program: its processes end with it, and nobody else sees its namespaces and files.
//!
//! Neutron's own metadata agent removes namespaces that it does not know when it starts (`ovnmeta-*`), haproxy leaves whoever
//! started it, and a clean-up of the machine's run directories would take those of a program whose processes it cannot see.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::command::require;

const WITHIN: &str = "METADATA_WITHIN_A_WORLD";
/// Script of the world, whose /run is its own. The shell, its first process, reaps whom their parents left.
const FURNISH: &str = "mount -t tmpfs tmpfs /run && mkdir -p /run/netns /run/lock /run/files && export TMPDIR=/run/files && \"$@\"; exit $?";

/// Returns if this program is in a world of its own; if not, it is begun anew in one.
pub fn enter() -> Result<()> {
    if env::var_os(WITHIN).is_some() {
        return Ok(());
    }
    require(&["unshare", "mount"])?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]);
    unshare.args(["sh", "-c", FURNISH, "sh"]).arg(env::current_exe()?).args(env::args_os().skip(1));
    Err(unshare.env(WITHIN, "1").exec()).context("cannot start unshare")
}
