//! Steps that must pass for a change to land.
use std::time::Instant;

use anyhow::Context as _;

use crate::{
    command::{self, cargo, say},
    counts::Counts,
    dependencies, setup, test, vm,
};

/// A named step, with the tests that it ran.
type Step = (&'static str, fn() -> anyhow::Result<Counts>);

const STEPS: &[Step] = &[
    ("setup", setup),
    ("format", format),
    ("dependencies", dependencies),
    ("lints", lints),
    ("documentation", documentation),
    ("demonstration", demonstration),
    ("tests", tests),
    ("kernels", kernels),
];

/// All steps in their order; the first failure ends it.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut times = Vec::new();
    let mut total = Counts::default();
    for (name, step) in STEPS {
        say(&format!("step {name}"));
        let started = Instant::now();
        total += step().with_context(|| format!("step {name} failed"))?;
        times.push(format!("{name} {:.0} s", started.elapsed().as_secs_f64()));
    }
    say(&format!("all steps passed: {}", times.join(", ")));
    println!("{total}");
    Ok(())
}

fn setup() -> anyhow::Result<Counts> {
    setup::for_checks()?;
    Ok(Counts::default())
}

fn format() -> anyhow::Result<Counts> {
    command::run(cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Counts::default())
}

fn dependencies() -> anyhow::Result<Counts> {
    dependencies::check()?;
    Ok(Counts::default())
}

fn lints() -> anyhow::Result<Counts> {
    command::run(cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    Ok(Counts::default())
}

fn documentation() -> anyhow::Result<Counts> {
    let mut doc = cargo();
    doc.args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"]);
    command::run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Counts::default())
}

fn demonstration() -> anyhow::Result<Counts> {
    for ovn in [false, true] {
        test::demo(&test::DemoOptions { ovn, keep: false })?;
    }
    Ok(Counts::default())
}

/// The oldest and the newest of Debian's stable kernels: without TCX and with it.
fn kernels() -> anyhow::Result<Counts> {
    vm::test_change()?;
    // Its tests ran elsewhere, and are those that the step before could not run.
    Ok(Counts::default())
}

fn tests() -> anyhow::Result<Counts> {
    test::test(&test::TestOptions { filter: None, fuzz: Some(15), compare: Some(20), isolate: Some(40) })
}
