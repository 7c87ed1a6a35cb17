//! Samples of the agent, the table that they make, and the verdict on them.

use anyhow::{Result, bail};
use metadata_tests::{
    cloud::Cloud,
    ovn::Lab,
    process::{descriptors, family, memory_of},
    spread::{Spread, milliseconds, percentile},
};

use crate::{PERIOD, load::Outcomes};

/// Growth of a process' memory that is none, in kB a minute: a page is 4.
const FLAT: f64 = 50.0;
/// Descriptors that a process may have more at the end: connections to Nova come and go.
const KEPT: f64 = 16.0;

/// The agent's state at the end of a period, control plane and guest-facing process, and what became of requests in it.
#[derive(Debug)]
pub(crate) struct Sample {
    /// In bytes.
    pub(crate) memory: [u64; 2],
    pub(crate) descriptors: [usize; 2],
    pub(crate) good: usize,
    pub(crate) refused: usize,
    pub(crate) failed: usize,
    /// In milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Taps that went and came.
    pub(crate) taps: usize,
    pub(crate) happened: Vec<&'static str>,
}

/// The processes that are looked at, which must not be replaced.
#[derive(Debug)]
pub(crate) struct Watch {
    processes: [u32; 2],
}

impl Watch {
    pub(crate) fn of(cloud: &Cloud<Lab>) -> Result<Self> {
        match family(cloud.agent.id()?)?[..] {
            [control, guests] => Ok(Self { processes: [control, guests] }),
            ref others => bail!("the agent's processes are {others:?}"),
        }
    }

    pub(crate) fn sample(
        &self,
        requests: Outcomes,
        (taps, happened): (usize, Vec<&'static str>),
    ) -> Result<Sample> {
        let [control, guests] = self.processes;
        Ok(Sample {
            memory: [memory_of(control)?, memory_of(guests)?],
            descriptors: [descriptors(control)?, descriptors(guests)?],
            good: requests.times.len(),
            refused: requests.refused,
            failed: requests.failed,
            p50: milliseconds(percentile(requests.times.iter().copied(), 50)),
            p99: milliseconds(percentile(requests.times, 99)),
            taps,
            happened,
        })
    }
}

/// One line for each minute: what was counted in it, and medians of what was measured.
pub(crate) fn print(samples: &[Sample]) {
    println!(
        "| minute | memory (PSS), MB | descriptors | good answers/s | p50, ms | p99, ms | Nova not there | no answer | taps replaced |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let in_minute = (60 / PERIOD.as_secs()) as usize;
    for (minute, samples) in samples.chunks(in_minute).enumerate() {
        let middle = |of: fn(&Sample) -> f64| Spread::of(samples.iter().map(of)).middle;
        let sum = |of: fn(&Sample) -> usize| samples.iter().map(of).sum::<usize>();
        println!(
            "| {} | {:.1}, {:.1} | {:.0}, {:.0} | {:.0} | {:.2} | {:.2} | {} | {} | {} |",
            minute + 1,
            middle(|sample| sample.memory[0] as f64 / 1e6),
            middle(|sample| sample.memory[1] as f64 / 1e6),
            middle(|sample| sample.descriptors[0] as f64),
            middle(|sample| sample.descriptors[1] as f64),
            middle(|sample| sample.good as f64 / PERIOD.as_secs_f64()),
            middle(|sample| sample.p50),
            middle(|sample| sample.p99),
            sum(|sample| sample.refused),
            sum(|sample| sample.failed),
            sum(|sample| sample.taps),
        );
    }
}

/// Says of each process whether its memory grew, and whether it lost descriptors, after the first quarter of the time.
pub(crate) fn judge(samples: &[Sample]) {
    let settled = &samples[samples.len() / 4..];
    println!("\n| after the first quarter | measured | limit | |\n| --- | --- | --- | --- |");
    for (which, name) in [(0, "control plane"), (1, "guest-facing process")] {
        let memory: Vec<_> = settled.iter().map(|sample| sample.memory[which] as f64 / 1e3).collect();
        let growth = slope(&memory) * 60.0 / PERIOD.as_secs_f64();
        verdict(&format!("memory of the {name}, kB a minute"), growth, FLAT);
        let third = settled.len().div_ceil(3);
        let middle = |samples: &[Sample]| {
            Spread::of(samples.iter().map(|sample| sample.descriptors[which] as f64)).middle
        };
        let more = middle(&settled[settled.len() - third..]) - middle(&settled[..third]);
        verdict(&format!("descriptors of the {name}, last third less first"), more, KEPT);
    }
}

fn verdict(what: &str, measured: f64, limit: f64) {
    let word = if measured <= limit { "met" } else { "not met" };
    println!("| {what} | {measured:+.1} | ≤ {limit} | {word} |");
}

/// Growth from one value to the next, by least squares.
fn slope(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let (middle, mean) = ((count - 1.0) / 2.0, values.iter().sum::<f64>() / count);
    let (mut above, mut below) = (0.0, 0.0);
    for (place, value) in values.iter().enumerate() {
        let distance = place as f64 - middle;
        above += distance * (value - mean);
        below += distance * distance;
    }
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_what_values_grow_by() {
        assert_eq!(slope(&[1.0, 3.0, 5.0, 7.0]), 2.0);
        assert_eq!(slope(&[4.0, 4.0]), 0.0);
        assert_eq!(slope(&[4.0]), 0.0);
    }
}
