//! A bill of materials of the program in CycloneDX: the crates that are linked into it, as cargo resolves them.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Release, deb::ARCHITECTURE};
use crate::command::{cargo, output};

/// The crate whose program it is.
const PROGRAM: &str = "metadata-agent";

/// Writes the document into a folder.
pub(super) fn write(folder: &Path, release: &Release) -> anyhow::Result<PathBuf> {
    let mut ask = cargo();
    ask.args(["metadata", "--locked", "--format-version=1", "--filter-platform"]);
    let metadata: Value = serde_json::from_str(&output(ask.arg(target()))?)?;
    let document = document(&metadata, release)?;
    let file = folder.join(format!("metadata-agent_{}_{ARCHITECTURE}.cdx.json", release.version));
    fs::write(&file, format!("{document:#}\n"))?;
    Ok(file)
}

/// As Rust calls what we build for.
fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn document(metadata: &Value, release: &Release) -> anyhow::Result<Value> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<_, _> =
        array(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    // What is linked: neither tests nor build scripts.
    let is_linked =
        |dependency: &Value| array(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
    let links: BTreeMap<_, BTreeSet<_>> = array(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let linked = array(&node["deps"]).into_iter().filter(is_linked);
            (text(&node["id"]), linked.map(|dependency| text(&dependency["pkg"])).collect())
        })
        .collect();
    let root = packages.iter().find(|(_, package)| package["name"] == PROGRAM).map(|(id, _)| id.clone());
    let root = root.context("cargo knows no metadata-agent")?;
    let (mut seen, mut next) = (BTreeSet::new(), vec![root.clone()]);
    while let Some(id) = next.pop() {
        if seen.insert(id.clone()) {
            next.extend(links.get(&id).into_iter().flatten().cloned());
        }
    }
    // Ids of crates of this repository are paths of this machine.
    let reference = |id: &String| {
        let package = &packages[id];
        format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
    };
    let component = |id: &String| {
        let package = &packages[id];
        let mut component = json!({
            "type": if *id == root { "application" } else { "library" },
            "bom-ref": reference(id),
            "name": package["name"],
            "version": package["version"],
            "purl": reference(id),
            // Old ones have a slash for `OR`.
            "licenses": [{ "expression": text(&package["license"]).replace('/', " OR ") }],
        });
        if package["source"].is_null() && *id == root {
            component["version"] = release.version.clone().into();
        }
        component
    };
    let dependencies = seen.iter().map(|id| {
        let on: BTreeSet<_> = links.get(id).into_iter().flatten().map(&reference).collect();
        json!({ "ref": reference(id), "dependsOn": on })
    });
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "timestamp": release.created()?, "component": component(&root) },
        "components": seen.iter().filter(|id| **id != root).map(component).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    }))
}
