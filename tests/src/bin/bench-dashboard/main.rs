//! Picture of the packages' dashboard, from real data: an agent on a real OVN lives through four minutes, a real Prometheus
//! scrapes it each second, and is then asked each panel's own queries.
//!
//! A panel that shows nothing of what happened is an error.
#![forbid(unsafe_code)]

mod drawing;
mod story;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::Parser;
use metadata_tests::{
    dashboard::{Dashboard, Kind, Panel},
    prometheus::{Prometheus, now},
    world,
};
use story::Node;

const SCRAPES: Duration = Duration::from_secs(1);
/// Seconds between two points of a line.
const STEP: f64 = 2.0;
/// Interval of rates that Grafana would take: four scrapes at least.
const RATES: &str = "4s";
/// Name of the only node.
const NODE: &str = "compute-1";

#[derive(Debug, Parser)]
struct Arguments {
    /// File that the dashboard is drawn into.
    #[arg(long, default_value = "dashboard.svg")]
    svg: PathBuf,
}

/// A line of a panel.
#[derive(Debug)]
struct Line {
    legend: String,
    /// Values, each with the seconds since the beginning.
    points: Vec<(f64, f64)>,
}

/// An event, and the seconds at which it began.
#[derive(Debug)]
struct Event {
    second: f64,
    name: &'static str,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    world::enter()?;
    let dashboard = Dashboard::packaged()?;
    let mut node = Node::start()?;
    let prometheus = Prometheus::start(&node.cloud.chassis, NODE, SCRAPES)?;
    let started = now()?;
    let events = node.live()?;
    let seconds = now()? - started;
    let lines = dashboard
        .panels
        .iter()
        .map(|panel| lines(&prometheus, panel, started, seconds))
        .collect::<Result<Vec<_>>>()?;
    std::fs::write(&arguments.svg, drawing::picture(&dashboard, &lines, &events, seconds))?;
    println!("The dashboard is drawn in {}.", arguments.svg.display());
    Ok(())
}

/// Lines of a panel, of which one must be other than 0.
fn lines(prometheus: &Prometheus, panel: &Panel, started: f64, seconds: f64) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for target in &panel.targets {
        for series in prometheus.range(&target.expression(RATES), started, seconds, STEP)? {
            let legend = target.legend(|label| series.labels.get(label).map(String::as_str));
            // A quantile of nothing is no number.
            let values = series.values.into_iter().filter(|(_, value)| value.is_finite());
            let points: Vec<_> = values.map(|(time, value)| (time - started, value)).collect();
            lines.push(Line { legend, points });
        }
    }
    let has_shown = lines.iter().flat_map(|line| &line.points).any(|(_, value)| *value > 0.0);
    ensure!(panel.kind == Kind::Row || has_shown, "{} shows nothing: {lines:?}", panel.title);
    Ok(lines)
}
