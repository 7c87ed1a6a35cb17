//! ARCHITECTURE.md, held against the sources: the tests that its invariants name are there.
use std::{fs, path::Path};

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

/// Whether a source has that function, and as a test.
fn has_test(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}(")) else { return false };
    // Its attributes stand behind the end of the item before it.
    let before = source[..at].rsplit("}\n").next().unwrap_or_default();
    before.contains("#[test]")
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
