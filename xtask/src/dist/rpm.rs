//! A package for distributions of rpm, by rpmbuild from files that are laid out already.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{MAINTAINER, Release, tree::Tree};
use crate::command::{output, root, run_quietly};

/// A release of one version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edition {
    number: u32,
    /// Lines that the options of the release have besides.
    pub(super) options: &'static str,
    /// Level of compression.
    level: u32,
}

/// The one that is given to others.
pub(super) const FIRST: Edition = Edition { number: 1, options: "", level: 19 };
/// Others for tests: the same, and an upgrade with other options by default.
pub(super) const TRIAL: Edition = Edition { level: 1, ..FIRST };
pub(super) const NEXT: Edition =
    Edition { number: 2, options: "# The next release has another line.\n", ..TRIAL };

/// Writes the package of that program into a folder.
pub(super) fn write(
    program: &Path,
    folder: &Path,
    release: &Release,
    edition: Edition,
) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(folder.join("tree"))?;
    tree.lay_out(program, folder)?;
    let sample = fs::read_to_string(root().join("packaging/metadata-agent.conf"))?;
    tree.text("etc/metadata-agent.conf", &(sample + edition.options))?;
    // As Fedora and its relatives have it.
    fs::create_dir_all(tree.folder().join("usr/share/zsh/site-functions"))?;
    fs::rename(
        tree.folder().join("usr/share/zsh/vendor-completions/_metadata-agent"),
        tree.folder().join("usr/share/zsh/site-functions/_metadata-agent"),
    )?;
    fs::remove_dir(tree.folder().join("usr/share/zsh/vendor-completions"))?;
    for licence in ["MIT.txt", "Apache-2.0.txt", "GPL-2.0-only.txt"] {
        tree.copy(
            &root().join("LICENSES").join(licence),
            &format!("usr/share/licenses/metadata-agent/{licence}"),
        )?;
    }
    tree.set_modes(&[super::tree::PROGRAM])?;
    let day = output(
        Command::new("date")
            .args(["-u", "+%a %b %d %Y", "-d"])
            .arg(format!("@{}", release.time))
            .env("LC_ALL", "C"),
    )?;
    let spec = fs::read_to_string(root().join("packaging/rpm/metadata-agent.spec"))?;
    let spec = [
        ("@VERSION@", release.version.as_str()),
        ("@RELEASE@", &edition.number.to_string()),
        ("@LEVEL@", &edition.level.to_string()),
        ("@MAINTAINER@", MAINTAINER),
        ("@DAY@", day.trim()),
    ]
    .iter()
    .fold(spec, |spec, (name, value)| spec.replace(name, value));
    build(&spec, tree.folder(), folder, &release.time)
}

/// Has rpmbuild make a package of files that are laid out, which are gone then, and puts it into a folder.
pub(super) fn build(spec: &str, tree: &Path, folder: &Path, time: &str) -> anyhow::Result<PathBuf> {
    let (file, top) = (folder.join("package.spec"), folder.join("rpmbuild"));
    fs::write(&file, spec)?;
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--quiet"]).arg("--buildroot").arg(top.join("root"));
    for (name, value) in [
        ("_topdir", top.display().to_string().as_str()),
        ("_tree", &tree.display().to_string()),
        ("_buildhost", "localhost"),
        ("use_source_date_epoch_as_buildtime", "1"),
        ("clamp_mtime_to_source_date_epoch", "1"),
        // The program is stripped already, and its symbols are apart.
        ("debug_package", "%{nil}"),
        ("__os_install_post", "%{nil}"),
        ("_build_id_links", "none"),
    ] {
        build.arg("--define").arg(format!("{name} {value}"));
    }
    run_quietly(build.arg(&file).env("SOURCE_DATE_EPOCH", time))?;
    let built = output(Command::new("find").arg(top.join("RPMS")).args(["-name", "*.rpm"]))?;
    let built = PathBuf::from(built.lines().next().context("rpmbuild has made nothing")?);
    let package = folder.join(built.file_name().context("no name")?);
    fs::rename(built, &package)?;
    fs::remove_dir_all(top)?;
    fs::remove_dir_all(tree)?;
    fs::remove_file(file)?;
    Ok(package)
}
