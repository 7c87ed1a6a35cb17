//! A container image of the program and the C library that it was built with, and nothing else: no shell, no base.
//!
//! It is an archive as `podman load`, `docker load` and `skopeo` take them: an OCI layout with Docker's manifest beside it.
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{
    Release,
    deb::ARCHITECTURE,
    tree::{PROGRAM, Tree},
};
use crate::command::{output, root, run_quietly};

/// Authorities of https, as far as no option names others.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Folders that hosts mount something at.
const FOLDERS: &[&str] = &[
    "dev",
    "etc/neutron",
    "proc",
    "run/metadata-agent",
    "run/netns",
    "run/openvswitch",
    "sys",
    "tmp",
    "var/lib/neutron",
];
/// Files that kolla-ansible has written for a service, and the folder that it mounts them in.
const CONFIGURATION: [&str; 2] = ["neutron.conf", "neutron_ovn_metadata_agent.ini"];
const KOLLA: &str = "/var/lib/kolla/config_files";
/// Name under which kolla-ansible asks in a container whether they have changed.
const KOLLA_CHECK: &str = "usr/local/bin/kolla_set_configs";

/// Writes the image of that program into a folder.
pub(super) fn write(program: &Path, folder: &Path, release: &Release) -> anyhow::Result<PathBuf> {
    let image = format!("metadata-agent_{}_{ARCHITECTURE}.oci.tar", release.version);
    let tree = Tree::new(folder.join("tree"))?;
    lay_out(&tree, program)?;
    let archive = Tree::new(folder.join("image"))?;
    let blobs = archive.place("blobs/sha256/x")?;
    let blobs = blobs.parent().context("no folder")?;
    let layer = folder.join("layer.tar");
    pack(tree.folder(), &layer, release)?;
    let difference = sum(&layer)?;
    let (layer, layer_size) = keep(blobs, &layer)?;
    let config = json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "created": release.created()?,
        "config": {
            "Entrypoint": [format!("/{PROGRAM}")],
            "Cmd": arguments(),
            "Env": ["PATH=/usr/bin"],
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "metadata-agent",
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{difference}")] },
        "history": [{ "created": release.created()?, "created_by": "cargo xtask dist" }],
    });
    let (config, config_size) = keep_json(folder, blobs, &config)?;
    let blob = |kind: &str, sum: &str, size: u64| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{sum}"), "size": size });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", &config, config_size),
        "layers": [blob("layer.v1.tar", &layer, layer_size)],
    });
    let (manifest, manifest_size) = keep_json(folder, blobs, &manifest)?;
    // A tag has no plus sign.
    let name = format!("localhost/metadata-agent:{}", release.version.replace('+', "-"));
    let mut entry = blob("manifest.v1+json", &manifest, manifest_size);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    archive.text("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.text("index.json", &json!({ "schemaVersion": 2, "manifests": [entry] }).to_string())?;
    let docker = json!([{
        "Config": format!("blobs/sha256/{config}"),
        "RepoTags": [name],
        "Layers": [format!("blobs/sha256/{layer}")],
    }]);
    archive.text("manifest.json", &docker.to_string())?;
    archive.set_modes(&[])?;
    let file = folder.join(image);
    pack(archive.folder(), &file, release)?;
    fs::remove_dir_all(tree.folder())?;
    fs::remove_dir_all(archive.folder())?;
    Ok(file)
}

/// Arguments of the program where a container is given none.
fn arguments() -> Vec<String> {
    let files =
        CONFIGURATION.into_iter().flat_map(|file| ["--config-file".to_owned(), format!("{KOLLA}/{file}")]);
    ["run".to_owned()].into_iter().chain(files).collect()
}

fn lay_out(tree: &Tree, program: &Path) -> anyhow::Result<()> {
    tree.strip(program)?;
    symlink(format!("/{PROGRAM}"), tree.place(KOLLA_CHECK)?)?;
    let libraries = output(Command::new("ldd").arg(program))?;
    let mut executable = vec![PROGRAM.to_owned()];
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = library.trim_start_matches('/').to_owned();
        tree.copy(Path::new(library), &name)?;
        executable.push(name);
    }
    if executable.len() < 3 {
        bail!("ldd names no libraries of {}:\n{libraries}", program.display());
    }
    tree.copy(Path::new(AUTHORITIES), AUTHORITIES.trim_start_matches('/'))?;
    for package in ["libc6", "libgcc-s1", "ca-certificates"] {
        let copyright = format!("usr/share/doc/{package}/copyright");
        tree.copy(&Path::new("/").join(&copyright), &copyright)?;
    }
    for licence in ["MIT.txt", "Apache-2.0.txt", "GPL-2.0-only.txt"] {
        tree.copy(
            &root().join("LICENSES").join(licence),
            &format!("usr/share/doc/metadata-agent/{licence}"),
        )?;
    }
    tree.text(
        "etc/passwd",
        "root:x:0:0:root:/:/\nmetadata-agent:x:900:900::/:/\nnobody:x:65534:65534::/:/\n",
    )?;
    tree.text("etc/group", "root:x:0:\nmetadata-agent:x:900:\nnogroup:x:65534:\n")?;
    for folder in FOLDERS {
        fs::create_dir_all(tree.folder().join(folder))?;
    }
    tree.set_modes(&executable.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A tar archive of what is in a folder, as everybody's tar makes it.
fn pack(from: &Path, file: &Path, release: &Release) -> anyhow::Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--format=gnu", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    run_quietly(
        tar.arg(format!("--mtime=@{}", release.time)).arg("-C").arg(from).arg("-cf").arg(file).arg("."),
    )
}

/// Moves a file to where its contents are its name; tells that and its size.
fn keep(blobs: &Path, file: &Path) -> anyhow::Result<(String, u64)> {
    let (name, size) = (sum(file)?, fs::metadata(file)?.len());
    fs::rename(file, blobs.join(&name))?;
    Ok((name, size))
}

fn keep_json(folder: &Path, blobs: &Path, value: &Value) -> anyhow::Result<(String, u64)> {
    let file = folder.join("blob.json");
    fs::write(&file, value.to_string())?;
    keep(blobs, &file)
}

fn sum(file: &Path) -> anyhow::Result<String> {
    let line = output(Command::new("sha256sum").arg(file))?;
    Ok(line.split_whitespace().next().context("sha256sum says nothing")?.to_owned())
}
