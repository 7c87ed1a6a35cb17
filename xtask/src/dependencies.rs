//! Rules for dependencies: licences, bans and sources of `deny.toml`, held by each run of CI.
//!
//! cargo-deny reads the same file and knows more (duplicates, advisories), but takes minutes to compile.
use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::command::{cargo, output, root};

/// The part of `deny.toml` that is held here.
#[derive(Debug, Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

/// Licences that one crate may have besides.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

/// Registries that crates may be from. What is in no field here is not held, and an error.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Sources {
    #[expect(dead_code, reason = "has one value")]
    unknown_registry: Unknown,
    #[expect(dead_code, reason = "has one value")]
    unknown_git: Unknown,
    allow_registry: BTreeSet<String>,
}

/// Lint level of a source that is not named: warnings would be read by nobody.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Unknown {
    Deny,
}

/// Output of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None for crates of this repository.
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

/// Names everything that breaks a rule.
pub(crate) fn check() -> anyhow::Result<()> {
    let rules = fs::read_to_string(root().join("deny.toml")).context("cannot read deny.toml")?;
    let rules: Rules = toml::from_str(&rules).context("deny.toml")?;
    ensure!(!rules.graph.targets.is_empty(), "deny.toml has no targets");
    let metadata = output(cargo().args(["metadata", "--locked", "--format-version=1"]))?;
    let metadata: Metadata = serde_json::from_str(&metadata)?;
    let mut used = BTreeSet::new();
    for target in &rules.graph.targets {
        // Metadata has what any feature could ask for; the tree has what is compiled.
        let mut ask = cargo();
        ask.args([
            "tree",
            "--workspace",
            "--locked",
            "--edges=normal,build,dev",
            "--prefix=none",
            "--format={p}",
        ]);
        used.extend(packages(&output(ask.args(["--target", target]))?));
    }
    let problems = problems_of(&rules, &metadata, &used);
    if !problems.is_empty() {
        bail!("deny.toml forbids: {}", problems.join("; "));
    }
    Ok(())
}

/// Name and version of each line: `name v1.2.3 (where it is)`.
fn packages(tree: &str) -> impl Iterator<Item = (String, String)> {
    tree.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    })
}

fn problems_of(rules: &Rules, metadata: &Metadata, used: &BTreeSet<(String, String)>) -> Vec<String> {
    let mut problems = Vec::new();
    let is_used = |package: &&Package| used.contains(&(package.name.clone(), package.version.clone()));
    for package in metadata.packages.iter().filter(is_used) {
        let mut problem =
            |text: String| problems.push(format!("{} {}: {text}", package.name, package.version));
        if let Err(text) = licence(&rules.licenses, package) {
            problem(text);
        }
        if rules.bans.deny.iter().any(|banned| banned.name == package.name) {
            problem("it is banned".to_owned());
        }
        match &package.source {
            Some(source) if is_allowed(&rules.sources, source) => {}
            Some(source) => problem(format!("it is from {source}")),
            None => {
                let any = package.dependencies.iter().filter(|on| on.req == "*" && on.path.is_none());
                any.for_each(|on| problem(format!("it takes any version of {}", on.name)));
            }
        }
    }
    problems
}

/// True for a crate of a registry that is named.
fn is_allowed(rules: &Sources, source: &str) -> bool {
    let registry = source.strip_prefix("registry+").or_else(|| source.strip_prefix("sparse+"));
    registry.is_some_and(|registry| rules.allow_registry.contains(registry))
}

/// An error unless the licence is one of those that are allowed.
fn licence(rules: &Licenses, package: &Package) -> Result<(), String> {
    let Some(text) = &package.license else { return Err("it tells no licence".to_owned()) };
    // Old crates have a slash for `OR`.
    let expression =
        Expression::parse_mode(text, ParseMode::LAX).map_err(|error| format!("{text}: {error}"))?;
    let excepted = |name: &str| {
        rules
            .exceptions
            .iter()
            .any(|exception| exception.name == package.name && exception.allow.contains(name))
    };
    let is_allowed = expression.evaluate(|requirement| {
        let name = requirement.to_string();
        rules.allow.contains(&name) || excepted(&name)
    });
    if is_allowed { Ok(()) } else { Err(format!("its licence is {text}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        [graph]
        targets = ["x"]
        [licenses]
        allow = ["MIT", "Apache-2.0"]
        exceptions = [{ crate = "odd", allow = ["ISC"] }]
        [bans]
        deny = [{ crate = "banned" }]
        [sources]
        unknown-registry = "deny"
        unknown-git = "deny"
        allow-registry = ["https://index/x", "https://index/y/"]"#;

    fn problems(packages: &str) -> Vec<String> {
        let packages: Vec<_> = packages
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| {
                let [name, license, source, on] = line.split('|').map(str::trim).collect::<Vec<_>>()[..]
                else {
                    panic!("{line}")
                };
                serde_json::json!({
                    "name": name, "version": "1.0.0",
                    "license": Some(license).filter(|license| !license.is_empty()),
                    "source": Some(source).filter(|source| !source.is_empty()),
                    "dependencies": [{ "name": "other", "req": on, "path": null }],
                })
            })
            .collect();
        let metadata: Metadata = serde_json::from_value(serde_json::json!({ "packages": packages })).unwrap();
        let tree: Vec<_> =
            metadata.packages.iter().map(|package| format!("{} v1.0.0", package.name)).collect();
        let used = super::packages(&tree.join("\n")).filter(|(name, _)| name != "unused").collect();
        problems_of(&toml::from_str(RULES).unwrap(), &metadata, &used)
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        assert_eq!(
            problems(
                "good | MIT/Apache-2.0 | registry+https://index/x | ^1
                 both | MIT AND GPL-3.0-only | registry+https://index/x | ^1
                 odd | ISC | registry+https://index/x | ^1
                 even | ISC | registry+https://index/x | ^1
                 none |  | registry+https://index/x | ^1
                 banned | MIT | registry+https://index/x | ^1
                 unused |  | git+https://index/x | ^1
                 elsewhere | MIT | git+https://index/x | *
                 ours | MIT OR Apache-2.0 |  | *"
            ),
            [
                "both 1.0.0: its licence is MIT AND GPL-3.0-only",
                "even 1.0.0: its licence is ISC",
                "none 1.0.0: it tells no licence",
                "banned 1.0.0: it is banned",
                "elsewhere 1.0.0: it is from git+https://index/x",
                "ours 1.0.0: it takes any version of other",
            ]
        );
    }

    #[test]
    fn registries_that_are_not_named_are_none() {
        assert_eq!(
            problems(
                "good | MIT | registry+https://index/x | ^1
                 sparse | MIT | sparse+https://index/y/ | ^1
                 longer | MIT | registry+https://index/xx | ^1
                 below | MIT | registry+https://index/x/more | ^1
                 other | MIT | registry+https://other/x | ^1
                 local | MIT | local-registry+file:///index/x | ^1
                 git | MIT | git+https://index/x?branch=main#0123456 | ^1"
            ),
            [
                "longer 1.0.0: it is from registry+https://index/xx",
                "below 1.0.0: it is from registry+https://index/x/more",
                "other 1.0.0: it is from registry+https://other/x",
                "local 1.0.0: it is from local-registry+file:///index/x",
                "git 1.0.0: it is from git+https://index/x?branch=main#0123456",
            ]
        );
    }

    #[test]
    fn rules_that_are_not_held_are_an_error() {
        for (line, other) in [
            ("unknown-git = \"deny\"", "unknown-git = \"warn\""),
            ("unknown-registry = \"deny\"", "unknown-registry = \"allow\""),
            ("unknown-git = \"deny\"", "unknown-git = \"deny\"\nallow-git = [\"https://index/x\"]"),
            ("allow-registry", "# allow-registry"),
        ] {
            let rules = RULES.replace(line, other);
            assert_ne!(rules, RULES, "{line}");
            toml::from_str::<Rules>(&rules).unwrap_err();
        }
    }

    #[test]
    fn the_repositorys_own_rules_name_one_registry() {
        let rules = fs::read_to_string(root().join("deny.toml")).unwrap();
        let rules: Rules = toml::from_str(&rules).unwrap();
        let registries: Vec<_> = rules.sources.allow_registry.into_iter().collect();
        assert_eq!(registries, ["https://github.com/rust-lang/crates.io-index"]);
    }
}
