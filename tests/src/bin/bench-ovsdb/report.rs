//! Report of the measurements, as a table for people and for README.md, and a verdict against the goals.

use std::time::Duration;

use super::contender::{Contender, Usage};

const MEGABYTE: f64 = 1e6;

/// The first contender is ours, with which the others are compared.
pub(crate) fn table(title: &str, contenders: &[Contender], usages: &[Usage]) {
    println!("\n{title}\n");
    println!("| client | wall s | CPU s | peak MB | wall | CPU | peak |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (contender, usage) in contenders.iter().zip(usages) {
        let ours = usages[0];
        println!(
            "| {} | {:.3} | {:.3} | {:.1} | {} | {} | {} |",
            contender.name,
            usage.wall.as_secs_f64(),
            usage.cpu.as_secs_f64(),
            usage.peak as f64 / MEGABYTE,
            times(usage.wall.as_secs_f64(), ours.wall.as_secs_f64()),
            times(usage.cpu.as_secs_f64(), ours.cpu.as_secs_f64()),
            times(usage.peak as f64, ours.peak as f64),
        );
    }
    println!();
}

fn times(theirs: f64, ours: f64) -> String {
    format!("{:.1} ×", theirs / ours)
}

/// The goals of the crate: against C's client and Python's IDL for all rows, absolute for the rows of a host.
pub(crate) fn goals(contenders: &[Contender], usages: &[Usage]) {
    let (ours, c, python) = (usages[0], usages[1], usages[usages.len() - 1]);
    if contenders[0].rows > super::HOST {
        goal("all rows in no more time than ovsdb-client monitor-cond takes", ours.wall <= c.wall);
        goal("all rows with less than a tenth of the CPU time of Python's IDL", ours.cpu * 10 < python.cpu);
    } else {
        goal("a host's rows with less than 50 ms of CPU time", ours.cpu < Duration::from_millis(50));
        goal("a host's rows in less than 10 MB", (ours.peak as f64) < 10.0 * MEGABYTE);
    }
}

fn goal(text: &str, holds: bool) {
    println!("{} {text}", if holds { "holds:       " } else { "DOES NOT HOLD:" });
}
