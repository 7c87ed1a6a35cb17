//! A package for distributions of rpm, by rpmbuild from files that are laid out already.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{Release, tree::Tree};
use crate::command::{output, root, run_quietly};

/// Writes the package of that program into a folder.
pub(super) fn write(program: &Path, folder: &Path, release: &Release) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(folder.join("tree"))?;
    tree.lay_out(program, folder)?;
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
    let spec = folder.join("metadata-agent.spec");
    let text = fs::read_to_string(root().join("packaging/rpm/metadata-agent.spec"))?;
    fs::write(&spec, text.replace("@VERSION@", &release.version))?;
    let top = folder.join("rpmbuild");
    let buildroot = top.join("root");
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--quiet"]).arg("--buildroot").arg(&buildroot);
    let tree_at = tree.folder().display().to_string();
    for (name, value) in [
        ("_topdir", top.display().to_string().as_str()),
        ("_tree", &tree_at),
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
    run_quietly(build.arg(&spec).env("SOURCE_DATE_EPOCH", &release.time))?;
    let built = output(Command::new("find").arg(top.join("RPMS")).args(["-name", "*.rpm"]))?;
    let built = PathBuf::from(built.lines().next().context("rpmbuild has made nothing")?);
    let package = folder.join(built.file_name().context("no name")?);
    fs::rename(built, &package)?;
    fs::remove_dir_all(top)?;
    fs::remove_dir_all(tree.folder())?;
    fs::remove_file(spec)?;
    Ok(package)
}
