//! The table, and the same as bars.

use metadata_tests::{
    chart::{self, Picture},
    spread::Spread,
};

const SIDES: [&str; 2] = ["neutron-ovn-metadata-agent + haproxy", "this agent"];
const COLOURS: [&str; 2] = [chart::COLOURS[1], chart::COLOURS[0]];
const NAMES: f64 = 470.0;
const BARS: f64 = 380.0;
const VALUES: f64 = 90.0;
const BAR: f64 = 11.0;
const ROW: f64 = 32.0;
const TOP: f64 = 40.0;

/// Direction of the better one of two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// A figure of both, theirs first, with what lies between them in each round.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    values: [f64; 2],
    ratio: Spread,
    digits: usize,
    unit: &'static str,
    better: Better,
}

impl Row {
    pub(crate) fn new(
        name: String,
        rounds: Vec<[f64; 2]>,
        digits: usize,
        unit: &'static str,
        better: Better,
    ) -> Self {
        let values = [0, 1].map(|side| Spread::of(rounds.iter().map(|round| round[side])).middle);
        let ratio = Spread::of(rounds.iter().map(|[theirs, ours]| match better {
            Better::More => ours / theirs,
            Better::Less => theirs / ours,
        }));
        Self { name, values, ratio, digits, unit, better }
    }

    fn value(&self, side: usize) -> String {
        let value = self.values[side];
        if !value.is_finite() {
            return "none".to_owned();
        }
        format!("{:.*} {}", self.digits, value, self.unit).trim_end().to_owned()
    }

    /// The ratio of the rounds, where each had good answers on both sides.
    fn better_by(&self) -> String {
        let Spread { middle, quartiles: [low, high] } = self.ratio;
        let is_known = [low, middle, high].iter().all(|ratio| ratio.is_finite());
        if is_known { format!("{:.1}", self.ratio) } else { "–".to_owned() }
    }
}

/// The table so far. A line is printed as soon as it is known.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    /// Prints the head of the table.
    pub(crate) fn begin(version: &str) -> Self {
        println!("| | neutron-ovn-metadata-agent {version} + haproxy | this agent | better by |");
        println!("| --- | --- | --- | --- |");
        Self::default()
    }

    pub(crate) fn add(&mut self, row: Row) {
        println!("| {} | {} | {} | {} |", row.name, row.value(0), row.value(1), row.better_by());
        self.0.push(row);
    }

    /// Row of words or counts, theirs and ours.
    pub(crate) fn note(&self, name: &str, [theirs, ours]: [String; 2]) {
        println!("| {name} | {theirs} | {ours} | |");
    }

    /// Two bars for each figure, of which the longer one is as long as there is room.
    pub(crate) fn drawing(&self) -> String {
        let height = TOP + ROW * self.0.len() as f64 + 10.0;
        let mut picture = Picture::new(NAMES + BARS + VALUES, height);
        for ((side, name), colour) in SIDES.iter().enumerate().zip(COLOURS) {
            let left = NAMES + side as f64 * 290.0;
            picture.text(left, 20.0, &format!("fill=\"{colour}\" font-weight=\"bold\""), name);
        }
        for (number, row) in self.0.iter().enumerate() {
            let top = TOP + ROW * number as f64;
            let most = row.values[0].max(row.values[1]);
            let arrow = if row.better == Better::More { "more" } else { "less" };
            let name = format!("{} ({arrow} is better)", row.name);
            picture.text(NAMES - 8.0, top + BAR + 4.0, "text-anchor=\"end\"", &name);
            for (side, (value, colour)) in row.values.iter().zip(COLOURS).enumerate() {
                // The least is also that of no value at all.
                let (top, length) = (top + side as f64 * (BAR + 1.0), (BARS * value / most).max(1.0));
                picture.rectangle([NAMES, top], [length, BAR], &format!("fill=\"{colour}\""));
                picture.text(NAMES + length + 5.0, top + BAR - 1.5, "font-size=\"11\"", &row.value(side));
            }
        }
        picture.finish()
    }
}
