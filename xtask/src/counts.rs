//! Counts of the tests that ran, and of those that did not with the reason, told from what `cargo test` prints.
use std::{
    collections::BTreeMap,
    env, fmt,
    io::{BufRead as _, BufReader},
    ops::AddAssign,
    process::{Command, Stdio},
    thread::available_parallelism,
};

use anyhow::{Context as _, bail};

use crate::command::{line, say};

/// Tests by how they ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Number of the ignored ones by reason: for what they are, and what runs them.
    reasons: BTreeMap<String, u32>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored)?;
        self.reasons.iter().try_for_each(|(reason, count)| write!(f, "\n  skipped {count} {reason}"))
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
    }
}

impl Counts {
    /// From the closing line of one test program: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn of(line: &str) -> Option<Self> {
        let (_, rest) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let mut parts = rest.split("; ").filter_map(|part| part.split_once(' '));
            parts.find(|(_, name)| *name == what)?.0.parse().ok()
        };
        let [passed, failed, ignored] = [count("passed")?, count("failed")?, count("ignored")?];
        Some(Self { passed, failed, ignored, ..Self::default() })
    }

    /// Reason for which a test was skipped, from its line: `test name ... ignored, for another machine: how to have
    /// it`. ignored, for another machine: how to have it`.
    fn reason(line: &str) -> Option<&str> {
        line.trim().strip_prefix("test ")?.split_once(" ... ignored, ").map(|(_, reason)| reason)
    }
}

/// Runs a command that runs tests, its output shown; an error if it fails, or if it ran no test.
pub(crate) fn run_tests(command: &mut Command) -> anyhow::Result<Counts> {
    // Most tests wait most of the time: two of them for each processor, unless told otherwise.
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let processors = available_parallelism().map_or(1, usize::from);
        command.env("RUST_TEST_THREADS", (2 * processors).to_string());
    }
    let text = line(command);
    say(&text);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {text}"))?;
    let mut total = Counts::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.with_context(|| format!("cannot read what {text} prints"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if let Some(counts) = Counts::of(&line) {
                total += counts;
            }
            if let Some(reason) = Counts::reason(&line) {
                *total.reasons.entry(reason.to_owned()).or_default() += 1;
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{text}: {status} ({total})");
    }
    if total.passed == 0 {
        bail!("{text} ran no test");
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        let counts = Counts::of(line).unwrap();
        assert_eq!((counts.passed, counts.failed, counts.ignored), (12, 3, 4));
        assert_eq!(Counts::of("test counters ... ok"), None);
    }

    #[test]
    fn what_is_skipped_says_how_it_is_run() {
        let reason = "for another machine: cargo xtask vm-test";
        assert_eq!(Counts::reason(&format!("test a::b ... ignored, {reason}")), Some(reason));
        assert_eq!(Counts::reason("test a::b ... ignored"), None);
        let mut total = Counts { passed: 1, ignored: 1, ..Counts::default() };
        for _ in 0..2 {
            total += Counts { ignored: 1, reasons: [(reason.to_owned(), 1)].into(), ..Counts::default() };
        }
        let text = format!("1 passed, 0 failed, 3 skipped\n  skipped 2 {reason}");
        assert_eq!(total.to_string(), text);
    }
}
