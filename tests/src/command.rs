//! Programs that run to their end: one call that waits, checks the status and quotes what failed.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Arguments written as one line of text.
pub trait Words {
    fn words(&mut self, text: impl AsRef<str>) -> &mut Self;
}

impl Words for Command {
    fn words(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.args(text.as_ref().split_whitespace())
    }
}

/// Runs a command and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        bail!("{command:?}: {}\n{}{}", output.status, stdout, stderr.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{command:?} printed something that is not text"))
}

/// Fails, naming what is missing, unless we are root and every program is installed.
pub fn require(programs: &[&str]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: network namespaces and eBPF programs are made here");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let found = |program: &&&str| path.split(':').any(|folder| Path::new(folder).join(program).is_file());
    let missing: Vec<_> = programs.iter().filter(|program| !found(program)).copied().collect();
    if !missing.is_empty() {
        bail!("not found in PATH: {} (`cargo xtask setup` installs what the tests need)", missing.join(", "));
    }
    Ok(())
}
