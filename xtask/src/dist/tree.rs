//! The files of a package, as they will be on a machine.
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::manual;
use crate::command::{output, root, run_quietly};

/// Path of the program.
pub(super) const PROGRAM: &str = "usr/bin/metadata-agent";

/// The files of a package.
#[derive(Debug)]
pub(super) struct Tree(PathBuf);

impl Tree {
    pub(super) fn new(folder: PathBuf) -> anyhow::Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// Folder of the tree.
    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// The program without symbols, and what goes with it on a machine with systemd. `scratch` is a folder for what is on
    /// its way.
    pub(super) fn lay_out(&self, program: &Path, scratch: &Path) -> anyhow::Result<()> {
        let packaging = root().join("packaging");
        self.strip(program)?;
        self.copy(
            &packaging.join("metadata-agent.service"),
            "usr/lib/systemd/system/metadata-agent.service",
        )?;
        self.copy(&packaging.join("metadata-agent.sysusers"), "usr/lib/sysusers.d/metadata-agent.conf")?;
        self.copy(&packaging.join("metadata-agent.conf"), "etc/metadata-agent.conf")?;
        for file in ["prometheus/alerts.yml", "grafana/metadata-agent.json"] {
            self.copy(&packaging.join(file), &format!("usr/share/metadata-agent/{file}"))?;
        }
        let manual_pages = scratch.join("manual");
        manual(&manual_pages)?;
        self.compress(&manual_pages.join("metadata-agent.8"), "usr/share/man/man8/metadata-agent.8.gz")?;
        for (file, place) in [
            ("metadata-agent.bash", "bash-completion/completions/metadata-agent"),
            ("_metadata-agent", "zsh/vendor-completions/_metadata-agent"),
            ("metadata-agent.fish", "fish/vendor_completions.d/metadata-agent.fish"),
        ] {
            self.copy(&manual_pages.join(file), &format!("usr/share/{place}"))?;
        }
        Ok(fs::remove_dir_all(&manual_pages)?)
    }

    /// The program, without symbols.
    pub(super) fn strip(&self, program: &Path) -> anyhow::Result<()> {
        run_quietly(Command::new("strip").arg("-o").arg(self.place(PROGRAM)?).arg(program))
    }

    /// Path of that file, in a folder that is there.
    pub(super) fn place(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        Ok(path)
    }

    pub(super) fn copy(&self, from: &Path, name: &str) -> anyhow::Result<()> {
        let read = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(fs::write(self.place(name)?, read)?)
    }

    pub(super) fn text(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.place(name)?, text)?)
    }

    /// Without name and time, which gzip adds.
    pub(super) fn compress(&self, from: &Path, name: &str) -> anyhow::Result<()> {
        let plain = self.place(name.trim_end_matches(".gz"))?;
        fs::copy(from, &plain).with_context(|| format!("cannot read {}", from.display()))?;
        run_quietly(Command::new("gzip").args(["-9", "-n"]).arg(plain))
    }

    /// Sums of all files but those of the package itself, sorted.
    pub(super) fn sums(&self) -> anyhow::Result<String> {
        let find = "find * -path DEBIAN -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum";
        output(Command::new("sh").args(["-c", find]).current_dir(&self.0))
    }

    /// As Debian has them, whatever mask this process has.
    pub(super) fn set_modes(&self, executable: &[&str]) -> anyhow::Result<()> {
        let all = output(Command::new("find").arg(&self.0).args(["-not", "-type", "l"]))?;
        for path in all.lines().map(Path::new) {
            let is_program = executable.iter().any(|name| path == self.0.join(name));
            let mode = if path.is_dir() || is_program { 0o755 } else { 0o644 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}
