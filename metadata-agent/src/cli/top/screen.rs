//! The screen of `top`: the node's totals, and a line for each port, within 80 columns.
use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Cell, Paragraph, Row as Line2, Table as Lines},
};

use super::table::{Column, Row, Table};

/// Headings of the columns, in the order of [`Column::ALL`], and their widths. With a space between two they take 79.
const COLUMNS: [(&str, u16); 8] = [
    ("TAP", 24),
    ("CONN", 5),
    ("REQ/S", 7),
    ("REQUESTS", 9),
    ("REFUSED", 8),
    ("BYTES", 7),
    ("NOVA S", 7),
    ("DROPS", 5),
];

pub(super) fn draw(frame: &mut Frame<'_>, table: &mut Table) {
    let [top, trouble, body, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(!table.trouble.is_empty())),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let total = table.total();
    let unserved =
        if table.unserved > 0 { format!(", {} not served", table.unserved) } else { String::new() };
    let totals = format!(
        "{} ports{unserved}  {} conn  {:.1} req/s  {} requests  {} refused  {}B",
        table.len(),
        total.connections,
        total.rate,
        total.requests,
        total.refused,
        short(total.bytes),
    );
    frame.render_widget(Paragraph::new(totals).style(Style::new().add_modifier(Modifier::BOLD)), top);
    let missing = table.trouble.join("; ");
    frame.render_widget(Paragraph::new(missing).style(Style::new().fg(Color::Red)), trouble);

    let rows = table.rows();
    let room = usize::from(body.height.saturating_sub(1));
    let offset = table.offset.min(rows.len().saturating_sub(room));
    let lines: Vec<Line2<'_>> = rows.iter().skip(offset).take(room).map(|row| line(row)).collect();
    let head = Column::ALL.iter().zip(COLUMNS).map(|(column, (name, width))| {
        let style =
            if *column == table.sort { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        let name =
            if *column == Column::Tap { name.to_owned() } else { format!("{name:>0$}", usize::from(width)) };
        Cell::new(name).style(style)
    });
    let widths = COLUMNS.map(|(_, width)| Constraint::Length(width));
    frame.render_widget(Lines::new(lines, widths).header(Line2::new(head)).column_spacing(1), body);
    let help = if table.is_typing {
        format!("filter: {}_", table.filter)
    } else if table.filter.is_empty() {
        "q quit  left/right sort  r reverse  / filter  up/down scroll".to_owned()
    } else {
        format!("only {:?}  q quit  left/right sort  r reverse  / filter", table.filter)
    };
    frame.render_widget(Line::from(help).style(Style::new().add_modifier(Modifier::DIM)), bottom);
    table.offset = offset;
}

fn line(row: &Row) -> Line2<'_> {
    let numbers = [
        row.connections.to_string(),
        format!("{:.1}", row.rate),
        row.requests.to_string(),
        row.refused.to_string(),
        short(row.bytes),
        format!("{:.2}", row.nova_us as f64 / 1e6),
        short(row.dropped),
    ];
    let numbers = numbers.into_iter().zip(&COLUMNS[1..]);
    let cells = numbers.map(|(text, (_, width))| Cell::new(format!("{text:>0$}", usize::from(*width))));
    Line2::new([Cell::new(row.tap.as_str())].into_iter().chain(cells))
}

/// A number in five characters.
fn short(number: u64) -> String {
    let mut rest = number as f64;
    for unit in ["", "k", "M", "G", "T"] {
        if rest < 1000.0 {
            return if unit.is_empty() { format!("{number}") } else { format!("{rest:.1}{unit}") };
        }
        rest /= 1000.0;
    }
    format!("{rest:.0}P")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_within_80_columns() {
        let mut table = Table::new(Column::Requests, String::new());
        table.take(
            &json!({ "missing": ["OVN_Southbound: away"], "unserved": 2, "complete": true, "ports": [
                { "port": "a", "tap": "tap2f0e4d5a-51", "connections": 12, "requests": 123_456, "refused": 7,
                  "bytes": 12_345_678, "nova_us": 4_200_000, "dropped": 1_500 },
            ]}),
            Instant::now(),
        );
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &mut table)).unwrap();
        let text = terminal.backend().to_string();
        for words in [
            "1 ports, 2 not served  12 conn  0.0 req/s  123456 requests  7 refused  12.3MB",
            "OVN_Southbound: away",
            "TAP                       CONN   REQ/S  REQUESTS  REFUSED   BYTES  NOVA S DROPS",
            "tap2f0e4d5a-51              12     0.0    123456        7   12.3M    4.20  1.5k",
            "q quit",
        ] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
    }
}
