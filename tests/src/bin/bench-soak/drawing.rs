//! The curves as an SVG: memory, descriptors and latency over the time, with what happened.

use metadata_tests::chart::{COLOURS, Picture, Plot, ceiling};

use crate::{PERIOD, sample::Sample};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 60.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 44.0;

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
    let mut picture = Picture::new(LEFT + WIDTH + 20.0, GAP + panels.len() as f64 * (PANEL + GAP));
    for (number, panel) in panels.iter().enumerate() {
        draw(&mut picture, GAP + number as f64 * (PANEL + GAP), panel, samples);
    }
    picture.finish()
}

/// Draws a panel, whose times are in periods.
fn draw(picture: &mut Picture, top: f64, (title, lines): &Panel<'_>, samples: &[Sample]) {
    let most = lines.iter().flat_map(|(_, values)| values).copied().fold(f64::MIN_POSITIVE, f64::max);
    let plot = Plot {
        left: LEFT,
        top,
        width: WIDTH,
        height: PANEL,
        highest: ceiling(most),
        longest: samples.len() as f64,
    };
    for (place, sample) in samples.iter().enumerate().filter(|(_, sample)| !sample.happened.is_empty()) {
        plot.shade(picture, place as f64, place as f64 + 1.0, &sample.happened.join(", "));
    }
    plot.values(picture, 4, |value| ((value * 100.0).round() / 100.0).to_string());
    picture.text(LEFT, top - 10.0, "font-weight=\"bold\"", title);
    for (number, ((name, values), colour)) in lines.iter().zip(COLOURS).enumerate() {
        let points = values.iter().enumerate().map(|(place, value)| (place as f64 + 0.5, *value));
        plot.line(picture, points, colour);
        let right = LEFT + WIDTH - 150.0 * (1 - number) as f64;
        picture.text(right, top - 10.0, &format!("fill=\"{colour}\" text-anchor=\"end\""), name);
    }
    let per_minute = 60 / PERIOD.as_secs() as usize;
    let minutes = (0..=samples.len() / per_minute).map(|minute| {
        let label = if minute == 0 { "0 min".to_owned() } else { minute.to_string() };
        ((minute * per_minute) as f64, label)
    });
    plot.times(picture, minutes);
}
