//! The dashboard as an SVG: each panel at its place in Grafana's grid, with its lines, axes, units and legend.

use metadata_tests::{
    chart::{COLOURS, Picture, Plot, ceiling},
    dashboard::{Dashboard, Kind, Panel},
};

use crate::{Event, Line};

/// Size of a cell of the grid.
const CELL: [f64; 2] = [52.0, 29.0];
const COLUMNS: f64 = 24.0;
const GAP: f64 = 8.0;
/// Room for the title and the events.
const TOP: f64 = 64.0;
/// Room of a panel beside its plot.
const LABELS: f64 = 74.0;
const TITLE: f64 = 48.0;
const TIMES: f64 = 24.0;
/// A line of a legend.
const LEGEND: f64 = 16.0;
/// Width of a letter, on average.
const LETTER: f64 = 6.1;
const MARK: f64 = 22.0;
const MINUTE: f64 = 60.0;

/// Rectangle of a panel.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

pub(crate) fn picture(dashboard: &Dashboard, lines: &[Vec<Line>], events: &[Event], seconds: f64) -> String {
    let rows = dashboard.panels.iter().map(|panel| panel.grid_pos.y + panel.grid_pos.h).max();
    let height = TOP + f64::from(rows.unwrap_or(0)) * CELL[1] + GAP;
    let mut picture = Picture::new(COLUMNS * CELL[0] + GAP, height);
    picture.text(GAP, 24.0, "font-size=\"18\" font-weight=\"bold\"", &dashboard.title);
    let names = events.iter().enumerate().map(|(number, event)| format!("{} {}", number + 1, event.name));
    picture.text(GAP, 48.0, "fill=\"#555\"", &names.collect::<Vec<_>>().join("  ·  "));
    for (panel, lines) in dashboard.panels.iter().zip(lines) {
        let grid = panel.grid_pos;
        let frame = Frame {
            left: f64::from(grid.x) * CELL[0] + GAP,
            top: TOP + f64::from(grid.y) * CELL[1] + GAP,
            width: f64::from(grid.w) * CELL[0] - GAP,
            height: f64::from(grid.h) * CELL[1] - GAP,
        };
        match panel.kind {
            Kind::Row => picture.text(
                frame.left,
                frame.top + 15.0,
                "font-size=\"15\" font-weight=\"bold\"",
                &panel.title,
            ),
            Kind::Stat => stat(&mut picture, frame, panel, lines, seconds),
            Kind::Timeseries => timeseries(&mut picture, frame, panel, lines, events, seconds),
        }
    }
    picture.finish()
}

fn outline(picture: &mut Picture, frame: Frame, title: &str) {
    let place = [frame.left, frame.top];
    picture.rectangle(place, [frame.width, frame.height], "fill=\"none\" stroke=\"#ccc\" rx=\"3\"");
    picture.text(frame.left + 10.0, frame.top + 20.0, "font-size=\"13\" font-weight=\"bold\"", title);
}

/// Last value in the colour of its threshold, above its line.
fn stat(picture: &mut Picture, frame: Frame, panel: &Panel, lines: &[Line], seconds: f64) {
    outline(picture, frame, &panel.title);
    let Some(line) = lines.first() else { return };
    let value = line.points.last().map_or(0.0, |(_, value)| *value);
    let colour = panel.colour(value).unwrap_or(COLOURS[0]);
    let middle = frame.left + frame.width / 2.0;
    let attributes =
        format!("font-size=\"56\" font-weight=\"bold\" text-anchor=\"middle\" fill=\"{colour}\"");
    picture.text(middle, frame.top + frame.height * 0.55, &attributes, &label(value, panel.unit()));
    let plot = Plot {
        left: frame.left,
        top: frame.top + frame.height * 0.7,
        width: frame.width,
        height: frame.height * 0.3,
        highest: highest(lines) * 1.1,
        longest: seconds,
    };
    plot.area(picture, &line.points, colour);
    plot.line(picture, line.points.iter().copied(), colour);
}

fn timeseries(
    picture: &mut Picture,
    frame: Frame,
    panel: &Panel,
    lines: &[Line],
    events: &[Event],
    seconds: f64,
) {
    outline(picture, frame, &panel.title);
    let legend = wrapped(lines, frame.width - 20.0);
    let plot = Plot {
        left: frame.left + LABELS,
        top: frame.top + TITLE,
        width: frame.width - LABELS - 14.0,
        height: frame.height - TITLE - TIMES - LEGEND * legend.len() as f64 - 4.0,
        highest: highest(lines),
        longest: seconds,
    };
    for (number, event) in events.iter().enumerate() {
        let x = plot.x(event.second);
        picture.stroke(
            [x, plot.top],
            [x, plot.top + plot.height],
            "stroke=\"#999\" stroke-dasharray=\"3 3\"",
        );
        let attributes = "font-size=\"10\" fill=\"#777\" text-anchor=\"middle\"";
        picture.text(x, plot.top - 4.0, attributes, &(number + 1).to_string());
    }
    let steps = steps(plot.highest, panel.unit() == Some("none"));
    plot.values(picture, steps, |value| label(value, panel.unit()));
    let minutes = (0..=(seconds / MINUTE) as u32).map(|minute| {
        let label = if minute == 0 { "0 min".to_owned() } else { minute.to_string() };
        (f64::from(minute) * MINUTE, label)
    });
    plot.times(picture, minutes);
    for (number, line) in lines.iter().enumerate() {
        for part in line.points.chunk_by(|(before, _), (after, _)| after - before < 1.5 * crate::STEP) {
            plot.line(picture, part.iter().copied(), COLOURS[number % COLOURS.len()]);
        }
    }
    let mut y = plot.top + plot.height + TIMES + 12.0;
    for row in legend {
        let mut x = frame.left + 10.0;
        for (number, name) in row {
            let colour = COLOURS[number % COLOURS.len()];
            let attributes = format!("stroke=\"{colour}\" stroke-width=\"3\"");
            picture.stroke([x, y - 4.0], [x + 12.0, y - 4.0], &attributes);
            picture.text(x + 16.0, y, "font-size=\"11\"", name);
            x += entry_width(name);
        }
        y += LEGEND;
    }
}

/// Value at the top of the axis.
fn highest(lines: &[Line]) -> f64 {
    let values = lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    ceiling(values.fold(f64::MIN_POSITIVE, f64::max))
}

/// Steps of an axis, between whole numbers where values are counts.
fn steps(highest: f64, is_count: bool) -> u32 {
    let is_whole = |steps: &u32| !is_count || (highest / f64::from(*steps)).fract() == 0.0;
    [4, 5, 2].into_iter().find(is_whole).unwrap_or(1)
}

fn entry_width(name: &str) -> f64 {
    MARK + name.chars().count() as f64 * LETTER + 8.0
}

/// Rows of the legend: each entry with the number of its line.
fn wrapped(lines: &[Line], width: f64) -> Vec<Vec<(usize, &str)>> {
    let mut rows: Vec<Vec<(usize, &str)>> = Vec::new();
    let mut left = 0.0;
    for (number, line) in lines.iter().enumerate() {
        let needed = entry_width(&line.legend);
        match rows.last_mut() {
            Some(row) if needed <= left => row.push((number, &line.legend)),
            _ => {
                rows.push(vec![(number, &line.legend)]);
                left = width;
            }
        }
        left -= needed;
    }
    rows
}

/// A value with its unit, as Grafana writes it.
fn label(value: f64, unit: Option<&str>) -> String {
    let number = |value: f64| ((value * 1000.0).round() / 1000.0).to_string();
    match unit {
        Some("s") if value == 0.0 => "0 s".to_owned(),
        Some("s") if value < 1e-3 => format!("{} µs", number(value * 1e6)),
        Some("s") if value < 1.0 => format!("{} ms", number(value * 1e3)),
        Some("s") => format!("{} s", number(value)),
        Some("reqps") => format!("{} req/s", number(value)),
        Some("ops") => format!("{} ops/s", number(value)),
        Some("pps") => format!("{} p/s", number(value)),
        _ => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_whole_steps() {
        assert_eq!([1.0, 2.0, 8.0, 50.0].map(|highest| steps(highest, true)), [1, 2, 4, 5]);
        assert_eq!(steps(1.0, false), 4);
    }

    #[test]
    fn a_legend_that_is_too_long_goes_on_in_the_next_row() {
        let line = |legend: &str| Line { legend: legend.to_owned(), points: Vec::new() };
        let lines = [line("a"), line("b"), line("a name")];
        let rows = wrapped(&lines, 2.0 * entry_width("a"));
        assert_eq!(rows, [vec![(0, "a"), (1, "b")], vec![(2, "a name")]]);
    }

    #[test]
    fn values_have_their_units() {
        let units = [("s", 0.0123), ("s", 2.5), ("reqps", 12.5), ("none", 3.0)];
        assert_eq!(
            units.map(|(unit, value)| label(value, Some(unit))),
            ["12.3 ms", "2.5 s", "12.5 req/s", "3"]
        );
    }
}
