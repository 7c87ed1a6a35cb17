//! The sources as they are committed, with all crates that they need, to build without a registry.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Release;
use crate::command::{cargo, output, root, run_quietly};

/// Writes the archive into a folder.
pub(super) fn write(folder: &Path, release: &Release) -> anyhow::Result<PathBuf> {
    let name = format!("metadata-ebpf-{}", release.version);
    let tree = folder.join(&name);
    fs::create_dir_all(&tree)?;
    let archive = folder.join("head.tar");
    run_quietly(Command::new("git").args(["archive", "HEAD", "--output"]).arg(&archive).current_dir(root()))?;
    run_quietly(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&tree))?;
    fs::remove_file(archive)?;
    let mut vendor = cargo();
    vendor.args(["vendor", "--locked", "--quiet", "--versioned-dirs"]).arg(tree.join("vendor"));
    vendor.arg("--manifest-path").arg(tree.join("Cargo.toml"));
    output(&mut vendor)?;
    let configuration = tree.join(".cargo/config.toml");
    fs::create_dir_all(tree.join(".cargo"))?;
    let own = fs::read_to_string(&configuration).unwrap_or_default();
    let replaced =
        "\n[source.crates-io]\nreplace-with = \"vendored\"\n\n[source.vendored]\ndirectory = \"vendor\"\n";
    fs::write(configuration, own + replaced)?;
    let file = folder.join(format!("{name}.tar.xz"));
    let mut pack = Command::new("tar");
    pack.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u+rw,go+r,go-w"]);
    pack.arg(format!("--mtime=@{}", release.time)).arg("-C").arg(folder).arg("-cf").arg(&file);
    // As many threads as there are would make other blocks.
    run_quietly(pack.args(["-I", "xz -3 -T1"]).arg(&name))?;
    fs::remove_dir_all(tree)?;
    Ok(file)
}
