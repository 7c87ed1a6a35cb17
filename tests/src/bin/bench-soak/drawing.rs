//! The curves as an SVG: memory, descriptors and latency over the time, with what happened.

use std::fmt::Write as _;

use crate::{PERIOD, sample::Sample};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 60.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 44.0;
const COLOURS: [&str; 2] = ["#1f6feb", "#d1571a"];

/// A panel: its title, and each of its lines with a name.
type Panel<'a> = (&'a str, [(&'a str, Vec<f64>); 2]);

pub(crate) fn curves(samples: &[Sample]) -> String {
    let of = |value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<_>>();
    let panels: [Panel; 3] = [
        (
            "memory (PSS), MB",
            [
                ("control plane", of(|sample| sample.memory[0] as f64 / 1e6)),
                ("guest-facing process", of(|sample| sample.memory[1] as f64 / 1e6)),
            ],
        ),
        (
            "open descriptors",
            [
                ("control plane", of(|sample| sample.descriptors[0] as f64)),
                ("guest-facing process", of(|sample| sample.descriptors[1] as f64)),
            ],
        ),
        ("a request, ms", [("p50", of(|sample| sample.p50)), ("p99", of(|sample| sample.p99))]),
    ];
    let height = GAP + panels.len() as f64 * (PANEL + GAP);
    let total = LEFT + WIDTH + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        draw(&mut svg, GAP + number as f64 * (PANEL + GAP), panel, samples);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, top: f64, (title, lines): &Panel<'_>, samples: &[Sample]) {
    let most = lines.iter().flat_map(|(_, values)| values).copied().fold(f64::MIN_POSITIVE, f64::max);
    let top_value = ceiling(most);
    let step = WIDTH / samples.len() as f64;
    let x = |place: usize| LEFT + step * (place as f64 + 0.5);
    let y = |value: f64| top + PANEL * (1.0 - value / top_value);
    let mut add = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    for (place, _) in samples.iter().enumerate().filter(|(_, sample)| !sample.happened.is_empty()) {
        let (left, right) = (LEFT + step * place as f64, step);
        add(format!(
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{right:.1}\" height=\"{PANEL}\" fill=\"#eee\"><title>{}</title></rect>",
            samples[place].happened.join(", ")
        ));
    }
    for quarter in 0..=4 {
        let value = top_value * f64::from(quarter) / 4.0;
        let (height, right) = (y(value), LEFT + WIDTH);
        add(format!(
            "<line x1=\"{LEFT}\" y1=\"{height:.1}\" x2=\"{right}\" y2=\"{height:.1}\" stroke=\"#ccc\"/>"
        ));
        add(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            height + 4.0,
            (value * 100.0).round() / 100.0
        ));
    }
    add(format!("<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>", top - 10.0));
    for (number, (name, values)) in lines.iter().enumerate() {
        let mut points = String::new();
        for (place, value) in values.iter().enumerate() {
            let _ = write!(points, "{:.1},{:.1} ", x(place), y(*value));
        }
        let colour = COLOURS[number];
        add(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            points.trim_end()
        ));
        add(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\" text-anchor=\"end\">{name}</text>",
            LEFT + WIDTH - 150.0 * (1 - number) as f64,
            top - 10.0
        ));
    }
    let per_minute = 60 / PERIOD.as_secs() as usize;
    for minute in 0..=samples.len() / per_minute {
        add(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            LEFT + step * (minute * per_minute) as f64,
            top + PANEL + 16.0,
            if minute == 0 { "0 min".to_owned() } else { minute.to_string() }
        ));
    }
}

/// The next round number.
fn ceiling(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|round| *round >= value)
        .unwrap_or(value)
}
