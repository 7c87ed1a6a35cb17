//! Running other programs: they are shown, and a failure names the command.
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::ebpf::cargo_home;

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs us, for work in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Prints what is about to happen.
pub(crate) fn say(what: &str) {
    eprintln!("xtask: {what}");
}

/// Runs a command to its end, output shown; an error if it fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let text = line(command);
    say(&text);
    let status = command.status().with_context(|| format!("cannot run {text}"))?;
    if !status.success() {
        bail!("{text}: {status}");
    }
    Ok(())
}

/// Runs a command that says much when all is well: its output is shown only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> anyhow::Result<()> {
    let text = line(command);
    say(&text);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {text}"))?;
    if !output.status.success() {
        bail!(
            "{text}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Runs a command for what it prints; what it says besides is shown.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let text = line(command);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {text}"))?;
    if !output.status.success() {
        bail!("{text}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Path of a program on `PATH`, or where cargo, or Debian for administrators, keeps it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = [cargo_home().join("bin"), "/usr/sbin".into(), "/sbin".into()];
    env::split_paths(&path).chain(more).map(|folder| folder.join(program)).find(|file| file.exists())
}

/// True if we are root.
pub(crate) fn is_root() -> bool {
    let uid = Command::new("id").arg("-u").output();
    uid.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
