//! The packages' dashboard: its panels in Grafana's grid, and the queries of each.

use anyhow::{Context as _, Result};
use serde::Deserialize;

const FILE: &str = include_str!("../../packaging/grafana/metadata-agent.json");

#[derive(Debug, Deserialize)]
pub struct Dashboard {
    pub title: String,
    pub panels: Vec<Panel>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Panel {
    pub id: u32,
    #[serde(rename = "type")]
    pub kind: Kind,
    pub title: String,
    pub grid_pos: Grid,
    /// None for a row, which is a heading.
    #[serde(default)]
    pub targets: Vec<Target>,
    #[serde(default)]
    field_config: FieldConfig,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Row,
    Stat,
    Timeseries,
}

/// Place in the grid, which has 24 columns.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Grid {
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
}

/// One query of a panel.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    expr: String,
    legend_format: String,
}

#[derive(Debug, Default, Deserialize)]
struct FieldConfig {
    defaults: Field,
}

#[derive(Debug, Default, Deserialize)]
struct Field {
    unit: Option<String>,
    thresholds: Option<Thresholds>,
}

#[derive(Debug, Deserialize)]
struct Thresholds {
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    color: String,
    /// None for the lowest one.
    value: Option<f64>,
}

impl Dashboard {
    /// The one that the packages have.
    pub fn packaged() -> Result<Self> {
        serde_json::from_str(FILE).context("packaging/grafana/metadata-agent.json")
    }
}

impl Panel {
    /// Grafana's name of the unit of its values.
    pub fn unit(&self) -> Option<&str> {
        self.field_config.defaults.unit.as_deref()
    }

    /// Colour of a value, where the panel has thresholds.
    pub fn colour(&self, value: f64) -> Option<&str> {
        let steps = &self.field_config.defaults.thresholds.as_ref()?.steps;
        let reached = |step: &&Step| step.value.is_none_or(|least| value >= least);
        steps.iter().rfind(reached).map(|step| step.color.as_str())
    }
}

impl Target {
    /// The query for all nodes, with rates over that interval.
    pub fn expression(&self, rate_interval: &str) -> String {
        self.expr.replace("$__rate_interval", rate_interval).replace("$instance", ".*")
    }

    /// Name of a series by its labels.
    pub fn legend<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> String {
        let mut parts = self.legend_format.split("{{");
        let mut legend = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
            legend += label(name).unwrap_or_default();
            legend += rest;
        }
        legend
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path, process::Command};

    use anyhow::ensure;
    use serde_json::{Value, json};

    use super::*;
    use crate::cloud_init::fetched;

    const SCHEMA: &str = include_str!("dashboard.ts");

    /// Errors of each dashboard by Grafana's types, as TypeScript's compiler names them.
    fn errors(dashboards: &BTreeMap<String, Value>) -> Result<BTreeMap<String, String>> {
        let modules = fetched("grafana")?;
        let compiler = modules.join("node_modules/typescript/bin/tsc");
        ensure!(compiler.exists(), "there is no {} (`cargo xtask setup` fetches it)", compiler.display());
        // Imports are looked for in the folders above.
        let folder = modules.join(format!("check-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let said = compile(&compiler, &folder, dashboards);
        fs::remove_dir_all(&folder)?;
        let mut errors = BTreeMap::<_, String>::new();
        for line in said?.lines() {
            let (name, error) = line.split_once(".ts(").with_context(|| format!("tsc says {line}"))?;
            *errors.entry(name.to_owned()).or_default() += error;
        }
        Ok(errors)
    }

    fn compile(compiler: &Path, folder: &Path, dashboards: &BTreeMap<String, Value>) -> Result<String> {
        fs::write(folder.join("dashboard.ts"), SCHEMA)?;
        let mut command = Command::new("node");
        command.arg(compiler).args(["--noEmit", "--strict", "--module", "nodenext", "--pretty", "false"]);
        for (name, dashboard) in dashboards {
            let file = format!("{name}.ts");
            let literal = serde_json::to_string(dashboard)?;
            let text = format!(
                "import type {{ Dashboard }} from \"./dashboard\";\nexport const it: Dashboard = {literal};\n"
            );
            fs::write(folder.join(&file), text)?;
            command.arg(file);
        }
        let output = command.current_dir(folder).output().context("cannot run node")?;
        ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        // What continues an error's text is indented.
        let said = String::from_utf8(output.stdout)?.replace("\n ", " ");
        ensure!(output.status.success() == said.is_empty(), "{}: {said}", output.status);
        Ok(said)
    }

    /// Change that Grafana would not read: its name, and a word of the error that it must be.
    type Broken = (&'static str, fn(&mut Value), &'static str);

    #[rustfmt::skip]
    const BROKEN: &[Broken] = &[
        ("unknown_key", |all| all["refreshes"] = json!("1m"), "refreshes"),
        ("unknown_key_of_a_panel", |all| all["panels"][1]["fieldconfig"] = json!({}), "fieldconfig"),
        ("unknown_key_of_a_query", |all| all["panels"][1]["targets"][0]["expression"] = json!("up"), "expression\""),
        ("unknown_option", |all| all["panels"][1]["options"]["colourMode"] = json!("value"), "colourMode"),
        ("unknown_kind", |all| all["panels"][1]["type"] = json!("statistic"), "\"statistic\""),
        ("unknown_unit", |all| all["panels"][6]["fieldConfig"]["defaults"]["unit"] = json!("requests"), "\"requests\""),
        ("word_that_is_none", |all| all["panels"][3]["options"]["legend"]["placement"] = json!("below"), "\"below\""),
        ("options_of_another_kind", |all| all["panels"][1]["options"] = all["panels"][3]["options"].clone(), "graphMode"),
        ("text_for_a_number", |all| all["panels"][1]["gridPos"]["h"] = json!("8"), "'number'"),
        ("number_out_of_an_enumeration", |all| all["graphTooltip"] = json!(7), "7"),
        ("query_without_expression", |all| all["panels"][1]["targets"] = json!([{ "refId": "A" }]), "expr"),
        ("no_variables", |all| drop(all.as_object_mut().map(|all| all.remove("templating"))), "'templating'"),
        ("variable_of_no_kind", |all| all["templating"]["list"][0]["type"] = json!("source"), "\"source\""),
    ];

    #[test]
    fn it_is_what_grafana_reads_and_a_broken_one_is_not() {
        let ours: Value = serde_json::from_str(FILE).unwrap();
        let mut dashboards = BTreeMap::from([("ours".to_owned(), ours.clone())]);
        for (name, change, _) in BROKEN {
            let mut broken = ours.clone();
            change(&mut broken);
            assert_ne!(broken, ours, "{name}");
            dashboards.insert((*name).to_owned(), broken);
        }
        let errors = errors(&dashboards).unwrap();
        assert_eq!(errors.get("ours"), None);
        assert_eq!(errors.get("dashboard"), None, "the schema itself");
        for (name, _, word) in BROKEN {
            let error = errors.get(*name).unwrap_or_else(|| panic!("{name} is taken for good"));
            assert!(error.contains(word), "{name}: {error}");
        }
    }

    #[test]
    fn panels_do_not_overlap_and_stay_in_the_grid() {
        let panels = Dashboard::packaged().unwrap().panels;
        for (place, panel) in panels.iter().enumerate() {
            let Grid { x, y, w, h } = panel.grid_pos;
            assert!(x + w <= 24 && w > 0 && h > 0, "{}", panel.title);
            for other in &panels[place + 1..] {
                let its = other.grid_pos;
                let beside = x + w <= its.x || its.x + its.w <= x || y + h <= its.y || its.y + its.h <= y;
                assert!(beside, "{} and {} overlap", panel.title, other.title);
                assert_ne!(panel.id, other.id, "{} and {} have one id", panel.title, other.title);
            }
        }
    }

    #[test]
    fn a_legend_is_written_from_labels() {
        let target = Target { expr: String::new(), legend_format: "by {{by}}, {{status}}".to_owned() };
        assert_eq!(target.legend(|name| (name == "by").then_some("nova")), "by nova, ");
    }
}
