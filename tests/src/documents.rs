//! Documents, held against the sources: the tests that ARCHITECTURE.md's invariants name are there, and so are the metrics of
//! the docs, of the alert rules and of the dashboard, whose expressions Prometheus' own tool reads.
use std::{collections::BTreeSet, fs, path::Path, process::Command};

use crate::{command::run, dashboard::Dashboard, prometheus::program};

/// Tests by file, as the rows of a table name them: a file, and its tests behind it.
fn named(rows: &str) -> Vec<(&str, &str)> {
    let mut file = "";
    let quoted = rows.lines().filter_map(|row| row.rsplit('|').nth(1)).flat_map(|cell| {
        // What is between two marks is every second part.
        cell.split('`').skip(1).step_by(2)
    });
    let mut tests = Vec::new();
    for word in quoted {
        if word.ends_with(".rs") {
            file = word;
        } else {
            tests.push((file, word));
        }
    }
    tests
}

/// True if a source has that function, and as a test.
fn has_test(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}(")) else { return false };
    // Its attributes stand behind the end of the item before it.
    let before = source[..at].rsplit("}\n").next().unwrap_or_default();
    before.contains("#[test]") || before.contains("#[tokio::test]")
}

#[test]
fn invariants_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("\n## Invariants\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: String = section
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .fold(String::new(), |rows, line| rows + line + "\n");
    let tests = named(&rows);
    assert!(tests.len() >= rows.lines().count() && rows.lines().count() > 10, "{rows}");
    for (file, test) in tests {
        let source = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(has_test(&source, test), "{file} has no test {test}");
    }
}

#[test]
fn what_is_no_test_is_none() {
    let source = "#[test]\n#[ignore]\nfn one() {\n    two();\n}\n\nfn two() {}\n";
    assert!(has_test(source, "one") && !has_test(source, "two") && !has_test(source, "three"));
    let rows = "| a | `x.rs` `one`, `two`; `y.rs` `three` |\n| b `c` | `z.rs` `four` |\n";
    assert_eq!(named(rows), [("x.rs", "one"), ("x.rs", "two"), ("y.rs", "three"), ("z.rs", "four")]);
}

/// Names of the agent's metrics in a text, as they are registered: without what all begin and counters end with.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter_map(|word| word.strip_prefix("metadata_"));
    names.map(|name| name.strip_suffix("_total").unwrap_or(name)).collect()
}

/// Fails for a metric that the agent does not register.
fn are_registered(named: &BTreeSet<&str>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let source = |file| fs::read_to_string(root.join("metadata-agent/src").join(file)).unwrap();
    let sources = ["metrics.rs", "metrics/databases.rs", "proxy/metrics.rs"].map(source).concat();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        // Those of databases are registered together, under a prefix; kinds add to the names.
        let registered = name.strip_prefix("ovsdb_").unwrap_or(name);
        let registered = registered.trim_end_matches("_bucket").trim_end_matches("_info");
        assert!(sources.contains(&format!("\"{registered}\"")), "no metric is registered as {name}");
    }
}

#[test]
fn alert_rules_are_about_metrics_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    are_registered(&metrics(&fs::read_to_string(root.join("packaging/prometheus/alerts.yml")).unwrap()));
}

/// Names under which a source registers metrics.
fn registered(file: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let source = fs::read_to_string(root.join("metadata-agent/src").join(file)).unwrap();
    let calls = source.split("register(").skip(1).filter_map(|call| call.trim_start().strip_prefix('"'));
    calls.filter_map(|call| Some(call.split_once('"')?.0.to_owned())).collect()
}

#[test]
fn the_metrics_of_the_docs_are_those_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/metrics.md")).unwrap();
    let table: String = text.lines().filter(|line| line.starts_with("| metadata_")).collect();
    let named = metrics(&table);
    are_registered(&named);
    let databases = registered("metrics/databases.rs").into_iter().map(|name| format!("ovsdb_{name}"));
    let all = databases.chain(registered("metrics.rs")).chain(registered("proxy/metrics.rs"));
    for name in all {
        let kinds = [name.clone(), format!("{name}_info")];
        assert!(kinds.iter().any(|kind| named.contains(kind.as_str())), "docs/metrics.md has no {name}");
    }
}

/// Expressions of the dashboard's panels, with values for Grafana's variables.
fn expressions() -> Vec<String> {
    let panels = Dashboard::packaged().unwrap().panels;
    panels.iter().flat_map(|panel| &panel.targets).map(|target| target.expression("5m")).collect()
}

#[test]
fn the_dashboard_is_about_metrics_that_there_are() {
    are_registered(&metrics(&expressions().join("\n")));
}

#[test]
fn the_dashboards_expressions_are_prometheus() {
    let rules = expressions()
        .iter()
        .enumerate()
        .fold("groups:\n- name: panels\n  rules:\n".to_owned(), |rules, (number, text)| {
            rules + &format!("  - record: panel:{number}\n    expr: '{text}'\n")
        });
    let file = std::env::temp_dir().join(format!("metadata-panels-{}.yml", std::process::id()));
    fs::write(&file, rules).unwrap();
    let said = run(Command::new(program("promtool").unwrap()).args(["check", "rules"]).arg(&file));
    fs::remove_file(file).unwrap();
    let said = said.unwrap();
    assert!(said.contains("SUCCESS") && !said.contains("$"), "{said}");
}

#[test]
fn alert_rules_are_rules_and_fire_as_their_cases_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let promtool = program("promtool").unwrap();
    for (task, file) in [("check", "alerts.yml"), ("test", "alerts_test.yml")] {
        let mut command = Command::new(&promtool);
        command.args([task, "rules", file]).current_dir(root.join("packaging/prometheus"));
        let said = run(&mut command).unwrap();
        assert!(said.contains("SUCCESS"), "{said}");
    }
}
