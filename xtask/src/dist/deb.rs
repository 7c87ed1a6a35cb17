//! A package for Debian, laid out by hand: one program, a unit, a user and a file of options.
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{Release, manual};
use crate::command::{output, root, run_quietly};

/// As Debian calls what we build for.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE: &str = "arm64";

const MAINTAINER: &str = "The maintainers of metadata-ebpf <maintainers@metadata-ebpf.invalid>";
const DOC: &str = "usr/share/doc/metadata-agent";

/// Writes the package of that program into a folder.
pub(super) fn write(program: &Path, folder: &Path, release: &Release) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(folder.join("tree"))?;
    let packaging = root().join("packaging");
    run_quietly(Command::new("strip").arg("-o").arg(tree.place("usr/bin/metadata-agent")?).arg(program))?;
    tree.copy(&packaging.join("metadata-agent.service"), "usr/lib/systemd/system/metadata-agent.service")?;
    tree.copy(&packaging.join("metadata-agent.sysusers"), "usr/lib/sysusers.d/metadata-agent.conf")?;
    tree.copy(&packaging.join("metadata-agent.conf"), "etc/metadata-agent.conf")?;
    let manual_pages = folder.join("manual");
    manual(&manual_pages)?;
    tree.compress(&manual_pages.join("metadata-agent.8"), "usr/share/man/man8/metadata-agent.8.gz")?;
    tree.copy(
        &manual_pages.join("metadata-agent.bash"),
        "usr/share/bash-completion/completions/metadata-agent",
    )?;
    tree.copy(&manual_pages.join("_metadata-agent"), "usr/share/zsh/vendor-completions/_metadata-agent")?;
    tree.copy(
        &manual_pages.join("metadata-agent.fish"),
        "usr/share/fish/vendor_completions.d/metadata-agent.fish",
    )?;
    fs::remove_dir_all(&manual_pages)?;
    tree.compress(&root().join("CHANGELOG.md"), &format!("{DOC}/changelog.gz"))?;
    let licence = indented(&fs::read_to_string(root().join("LICENSES/MIT.txt"))?);
    let copyright =
        fs::read_to_string(packaging.join("debian/copyright"))?.replace("@MIT@", licence.trim_end());
    tree.text(&format!("{DOC}/copyright"), &copyright)?;

    let size = output(Command::new("du").args(["-k", "-s", "--apparent-size"]).arg(&tree.0))?;
    let size = size.split_whitespace().next().context("du says nothing")?;
    let control = fs::read_to_string(packaging.join("debian/control"))?;
    let control = [
        ("@VERSION@", release.version.as_str()),
        ("@ARCHITECTURE@", ARCHITECTURE),
        ("@MAINTAINER@", MAINTAINER),
        ("@SIZE@", size),
        ("@GLIBC@", &glibc(program)?),
    ]
    .iter()
    .fold(control, |control, (name, value)| control.replace(name, value));
    tree.text("DEBIAN/control", &control)?;
    tree.text("DEBIAN/conffiles", "/etc/metadata-agent.conf\n")?;
    for script in ["postinst", "prerm", "postrm"] {
        tree.copy(&packaging.join("debian").join(script), &format!("DEBIAN/{script}"))?;
    }
    tree.text("DEBIAN/md5sums", &tree.sums()?)?;
    tree.set_modes(&["usr/bin/metadata-agent", "DEBIAN/postinst", "DEBIAN/prerm", "DEBIAN/postrm"])?;
    let package = folder.join(format!("metadata-agent_{}_{ARCHITECTURE}.deb", release.version));
    let mut build = Command::new("dpkg-deb");
    build.args(["--build", "--root-owner-group", "-Zxz"]).arg(&tree.0).arg(&package);
    run_quietly(build.env("SOURCE_DATE_EPOCH", &release.time))?;
    fs::remove_dir_all(&tree.0)?;
    Ok(package)
}

/// The oldest C library that has all symbols which the program wants of it.
fn glibc(program: &Path) -> anyhow::Result<String> {
    let symbols = output(Command::new("objdump").arg("-T").arg(program))?;
    let numbers = |version: &str| version.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>().ok();
    let versions = symbols.split(['(', ')', ' ']).filter_map(|word| word.strip_prefix("GLIBC_"));
    let newest = versions.filter_map(|version| Some((numbers(version)?, version))).max();
    newest.map(|(_, version)| version.to_owned()).context("the program wants nothing of the C library")
}

/// The files of a package.
struct Tree(PathBuf);

impl Tree {
    fn new(folder: PathBuf) -> anyhow::Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// Where that file goes, in a folder that is there.
    fn place(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        Ok(path)
    }

    fn copy(&self, from: &Path, name: &str) -> anyhow::Result<()> {
        let read = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(fs::write(self.place(name)?, read)?)
    }

    fn text(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.place(name)?, text)?)
    }

    /// Without name and time, which gzip adds.
    fn compress(&self, from: &Path, name: &str) -> anyhow::Result<()> {
        let plain = self.place(name.trim_end_matches(".gz"))?;
        fs::copy(from, &plain).with_context(|| format!("cannot read {}", from.display()))?;
        run_quietly(Command::new("gzip").args(["-9", "-n"]).arg(plain))
    }

    /// Sums of all files but those of the package itself, sorted.
    fn sums(&self) -> anyhow::Result<String> {
        let find = "find * -path DEBIAN -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum";
        output(Command::new("sh").args(["-c", find]).current_dir(&self.0))
    }

    /// As Debian has them, whatever mask this process has.
    fn set_modes(&self, executable: &[&str]) -> anyhow::Result<()> {
        let all = output(Command::new("find").arg(&self.0))?;
        for path in all.lines().map(Path::new) {
            let is_program = executable.iter().any(|name| path == self.0.join(name));
            let mode = if path.is_dir() || is_program { 0o755 } else { 0o644 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// As a paragraph of `copyright`.
fn indented(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") }).collect()
}
