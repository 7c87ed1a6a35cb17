//! Figures of several rounds: their median and quartiles, and percentiles of times.

use std::{fmt, time::Duration};

/// Median and quartiles.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub middle: f64,
    pub quartiles: [f64; 2],
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            // Between two values in proportion.
            let place = (values.len() - 1) * quarters;
            let (below, above) = (values[place / 4], values[place.div_ceil(4)]);
            below + (above - below) * (place % 4) as f64 / 4.0
        };
        Self { middle: at(2), quartiles: [at(1), at(3)] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let [low, high] = self.quartiles;
        write!(f, "{:.digits$} ({low:.digits$}–{high:.digits$})", self.middle)
    }
}

/// The time that so many percent of some do not exceed.
pub fn percentile(times: impl IntoIterator<Item = Duration>, percent: usize) -> Duration {
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort();
    times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}

/// In milliseconds, for a table.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_between_values() {
        let of = |values: &[f64]| {
            let Spread { middle, quartiles: [low, high] } = Spread::of(values.iter().copied());
            [low, middle, high]
        };
        assert_eq!(of(&[3.0, 1.0, 2.0]), [1.5, 2.0, 2.5]);
        assert_eq!(of(&[1.0, 2.0, 3.0, 4.0, 5.0]), [2.0, 3.0, 4.0]);
        assert_eq!(of(&[7.0]), [7.0; 3]);
        let times = (1..=100).map(Duration::from_millis);
        assert_eq!(percentile(times, 99), Duration::from_millis(99));
    }
}
