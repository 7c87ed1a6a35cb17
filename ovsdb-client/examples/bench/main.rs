//! Measures clients of OVSDB against each other, on a Southbound database of a region's size.
//!
//! `bench southbound --rows N` measures the server instead, by how clients of all hosts ask for their ports.
//!
//! `bench [--rows N] [--runs N]`. Each client is a process of its own, measured from its start to the moment when it
//! holds all rows, or has printed them. `cargo xtask bench ovsdb` installs what it needs and runs it.

mod client;
mod contender;
mod region;
mod report;
mod southbound;
mod subscriber;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use contender::{Contender, Usage};
use region::Region;

/// The ports of one host, those of the conditional subscription.
const HOST: usize = 200;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [client::COMMAND, remote, rest @ ..] => client::run(remote, rest.first().copied()),
        ["southbound", "--rows", rows] => rows.parse().context("--rows").and_then(|rows: usize| {
            ensure!(
                rows >= southbound::STORM * HOST,
                "at least {} rows are needed",
                southbound::STORM * HOST
            );
            southbound::bench(rows)
        }),
        options => bench(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &[&str]) -> Result<()> {
    let (mut rows, mut runs) = (100_000, 3);
    for pair in options.chunks(2) {
        match pair {
            ["--rows", number] => rows = number.parse().context("--rows")?,
            ["--runs", number] => runs = number.parse().context("--runs")?,
            other => bail!("what is {other:?}? usage: bench [--rows N] [--runs N]"),
        }
    }
    ensure!(rows >= HOST && runs > 0, "at least {HOST} rows and one run are needed");
    eprintln!("making a Southbound of {rows} ports");
    let region = Region::create(rows)?;
    for (title, contenders) in
        [("all rows", contender::full(&region)?), ("the rows of one host", contender::conditional(&region)?)]
    {
        let usages = measure(&contenders, runs)?;
        report::table(&format!("{title}: {} of {rows}", contenders[0].rows), &contenders, &usages);
        report::goals(&contenders, &usages);
    }
    Ok(())
}

/// The median of some runs of each. They take turns, so that what else the machine does hits all alike.
fn measure(contenders: &[Contender], runs: usize) -> Result<Vec<Usage>> {
    let mut usages = vec![Vec::new(); contenders.len()];
    for run in 0..runs {
        for (contender, usages) in contenders.iter().zip(&mut usages) {
            eprintln!("run {} of {runs}: {}", run + 1, contender.name);
            usages.push(contender.measure().with_context(|| contender.name.to_owned())?);
        }
    }
    Ok(usages.iter().map(|usages| Usage::median(usages)).collect())
}
