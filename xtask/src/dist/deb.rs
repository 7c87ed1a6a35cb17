//! A package for Debian, laid out by hand: one program, a unit, a user and a file of options.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{MAINTAINER, Release, tree::Tree};
use crate::command::{output, root, run_quietly};

/// As Debian calls what we build for.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE: &str = "arm64";

const DOC: &str = "usr/share/doc/metadata-agent";

/// Writes the package of that program into a folder.
pub(super) fn write(program: &Path, folder: &Path, release: &Release) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(folder.join("tree"))?;
    tree.lay_out(program, folder)?;
    tree.compress(&root().join("CHANGELOG.md"), &format!("{DOC}/CHANGELOG.md.gz"))?;
    let entry = folder.join("changelog");
    fs::write(&entry, changelog(release)?)?;
    tree.compress(&entry, &format!("{DOC}/changelog.gz"))?;
    fs::remove_file(entry)?;
    tree.copy(
        &root().join("packaging/debian/lintian-overrides"),
        "usr/share/lintian/overrides/metadata-agent",
    )?;
    let packaging = root().join("packaging");
    let licence = indented(&fs::read_to_string(root().join("LICENSES/MIT.txt"))?);
    let copyright =
        fs::read_to_string(packaging.join("debian/copyright"))?.replace("@MIT@", licence.trim_end());
    tree.text(&format!("{DOC}/copyright"), &copyright)?;

    let size = output(Command::new("du").args(["-k", "-s", "--apparent-size"]).arg(tree.folder()))?;
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
    build.args(["--build", "--root-owner-group", "-Zxz"]).arg(tree.folder()).arg(&package);
    run_quietly(build.env("SOURCE_DATE_EPOCH", &release.time))?;
    fs::remove_dir_all(tree.folder())?;
    Ok(package)
}

/// The package's own changelog, in Debian's form.
fn changelog(release: &Release) -> anyhow::Result<String> {
    let day = output(Command::new("date").args(["-u", "-R", "-d"]).arg(format!("@{}", release.time)))?;
    let version = &release.version;
    Ok(format!(
        "metadata-agent ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md.gz has what changed.\n\n -- {MAINTAINER}  {}\n",
        day.trim()
    ))
}

/// The oldest C library that has all symbols which the program wants of it.
fn glibc(program: &Path) -> anyhow::Result<String> {
    let symbols = output(Command::new("objdump").arg("-T").arg(program))?;
    let numbers = |version: &str| version.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>().ok();
    let versions = symbols.split(['(', ')', ' ']).filter_map(|word| word.strip_prefix("GLIBC_"));
    let newest = versions.filter_map(|version| Some((numbers(version)?, version))).max();
    newest.map(|(_, version)| version.to_owned()).context("the program wants nothing of the C library")
}

/// As a paragraph of `copyright`.
fn indented(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") }).collect()
}
