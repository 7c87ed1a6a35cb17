//! Charts as SVG: a picture, a plot with its axes, and lines in it.

use std::fmt::Write as _;

/// Colours of lines, in their order.
pub const COLOURS: [&str; 10] = [
    "#1f6feb", "#d1571a", "#2da44e", "#8250df", "#bf8700", "#cf222e", "#1b9aaa", "#bf3989", "#57606a",
    "#7a5c3e",
];

/// A drawing on white.
#[derive(Debug)]
pub struct Picture(String);

impl Picture {
    pub fn new(width: f64, height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        ))
    }

    /// Text at a place, with attributes of its own.
    pub fn text(&mut self, x: f64, y: f64, attributes: &str, text: &str) {
        let text = escaped(text);
        self.add(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>"));
    }

    /// Rectangle with attributes of its own.
    pub fn rectangle(&mut self, [x, y]: [f64; 2], [width, height]: [f64; 2], attributes: &str) {
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" {attributes}/>"
        ));
    }

    /// Straight line from one place to another.
    pub fn stroke(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], attributes: &str) {
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {attributes}/>"
        ));
    }

    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{element}");
    }
}

/// Place for lines, from 0 to the highest value, and from 0 to the longest time.
#[derive(Debug, Clone, Copy)]
pub struct Plot {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub highest: f64,
    pub longest: f64,
}

impl Plot {
    pub fn x(&self, time: f64) -> f64 {
        self.left + self.width * time / self.longest
    }

    pub fn y(&self, value: f64) -> f64 {
        self.top + self.height * (1.0 - value / self.highest)
    }

    /// Lines at so many equal steps of the values, each with its label at the left.
    pub fn values(&self, picture: &mut Picture, steps: u32, label: impl Fn(f64) -> String) {
        for step in 0..=steps {
            let value = self.highest * f64::from(step) / f64::from(steps);
            let height = self.y(value);
            picture.stroke([self.left, height], [self.left + self.width, height], "stroke=\"#ddd\"");
            picture.text(self.left - 6.0, height + 4.0, "text-anchor=\"end\"", &label(value));
        }
    }

    /// Labels beneath, each at its time.
    pub fn times(&self, picture: &mut Picture, labels: impl IntoIterator<Item = (f64, String)>) {
        for (time, label) in labels {
            picture.text(self.x(time), self.top + self.height + 16.0, "text-anchor=\"middle\"", &label);
        }
    }

    /// Shade between two times, with what it means.
    pub fn shade(&self, picture: &mut Picture, from: f64, to: f64, meaning: &str) {
        let (left, width) = (self.x(from), self.x(to) - self.x(from));
        picture.add(format_args!(
            "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"#eee\"><title>{}</title></rect>",
            self.top,
            self.height,
            escaped(meaning)
        ));
    }

    /// A line through points of time and value.
    pub fn line(&self, picture: &mut Picture, points: impl IntoIterator<Item = (f64, f64)>, colour: &str) {
        let points = self.places(points);
        picture.add(format_args!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        ));
    }

    /// The area below a line, faintly.
    pub fn area(&self, picture: &mut Picture, points: &[(f64, f64)], colour: &str) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let points = self.places([&[(first.0, 0.0)], points, &[(last.0, 0.0)]].concat());
        picture.add(format_args!("<polygon points=\"{points}\" fill=\"{colour}\" fill-opacity=\"0.15\"/>"));
    }

    fn places(&self, points: impl IntoIterator<Item = (f64, f64)>) -> String {
        let points =
            points.into_iter().map(|(time, value)| format!("{:.1},{:.1}", self.x(time), self.y(value)));
        points.collect::<Vec<_>>().join(" ")
    }
}

/// The next round number, of which quarters are round as well.
pub fn ceiling(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|round| *round >= value)
        .unwrap_or(value)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_with_round_numbers() {
        assert_eq!([0.011, 0.9, 1.0, 3.0, 41.0, 820.0].map(ceiling), [0.02, 1.0, 1.0, 4.0, 50.0, 1000.0]);
    }

    #[test]
    fn points_are_placed_from_the_lower_left() {
        let plot = Plot { left: 10.0, top: 20.0, width: 100.0, height: 50.0, highest: 5.0, longest: 10.0 };
        assert_eq!(plot.places([(0.0, 0.0), (10.0, 5.0)]), "10.0,70.0 110.0,20.0");
    }
}
