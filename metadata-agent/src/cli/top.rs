//! `top`: the ports, by what their guests ask for, on a terminal.
//!
//! ```text
//! table    numbers of two moments, sorted and filtered     screen   how they are drawn
//! ```
mod screen;
mod table;

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use self::table::{Column, Table};
use super::{
    agent_place::AgentPlace,
    show::{self, ask, print},
};
use crate::admin;

/// Interval at which keys and signals are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Order and filter of the ports, and where the agent is.
#[derive(Debug, Args)]
pub(super) struct Top {
    /// Seconds between two looks.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Column to sort the ports by.
    #[arg(long, value_enum, default_value_t = Column::Requests)]
    sort: Column,
    /// Only ports whose tap, port or instance has these characters in it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// The numbers once, as the agent says them.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: AgentPlace,
}

/// Step that a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    GoOn,
    End,
}

impl Top {
    /// Shows the numbers until somebody has had enough.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let run_dir = self.place.run_dir()?;
        let look = || -> anyhow::Result<String> {
            let path = run_dir.join(admin::SOCKET);
            let socket = show::connect(&run_dir)
                .with_context(|| format!("no agent answers at {}: is it running?", path.display()))?;
            let (is_ok, text) = ask(socket, "GET", "/top")?;
            ensure!(is_ok, "the agent says: {}", text.trim_end());
            Ok(text)
        };
        if self.json {
            return print(&look()?);
        }
        ensure!(std::io::stdout().is_terminal(), "`top` needs a terminal; programs read `top --json`");
        let mut table = Table::new(self.sort, self.filter.clone());
        // An agent that is not there is told of before the terminal is another one.
        table.take(&parse(&look()?)?, Instant::now());
        let mut ends = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            ends.add(signal);
        }
        ends.thread_block().context("signals cannot be waited for")?;
        let ends = SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
        let shown = self.show(&mut terminal, &mut table, &ends, look);
        ratatui::restore();
        shown
    }

    fn show(
        &self,
        terminal: &mut ratatui::DefaultTerminal,
        table: &mut Table,
        ends: &SignalFd,
        look: impl Fn() -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let mut next = Instant::now() + Duration::from_secs(self.interval);
        loop {
            terminal.draw(|frame| screen::draw(frame, table))?;
            while event::poll(LOOK.min(next.saturating_duration_since(Instant::now())))? {
                if let Event::Key(key) = event::read()?
                    && step(key, table) == Step::End
                {
                    return Ok(());
                }
                terminal.draw(|frame| screen::draw(frame, table))?;
            }
            if ends.read_signal()?.is_some() {
                return Ok(());
            }
            if Instant::now() >= next {
                match look().and_then(|text| parse(&text)) {
                    Ok(numbers) => table.take(&numbers, Instant::now()),
                    // It may be started again, or another one take over.
                    Err(error) => table.lose(format!("{error:#}")),
                }
                next = Instant::now() + Duration::from_secs(self.interval);
            }
        }
    }
}

fn parse(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).context("the agent's numbers cannot be read")
}

fn step(key: KeyEvent, table: &mut Table) -> Step {
    if key.kind == KeyEventKind::Release {
        return Step::GoOn;
    }
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if is_control => return Step::End,
        KeyCode::Char(character) if table.is_typing => table.filter.push(character),
        KeyCode::Backspace if table.is_typing => drop(table.filter.pop()),
        KeyCode::Esc if table.is_typing => {
            table.filter.clear();
            table.is_typing = false;
        }
        KeyCode::Enter => table.is_typing = false,
        KeyCode::Char('q') | KeyCode::Esc => return Step::End,
        KeyCode::Char('/') => table.is_typing = true,
        KeyCode::Right | KeyCode::Tab => table.sort = table.sort.next(),
        KeyCode::Left | KeyCode::BackTab => table.sort = table.sort.previous(),
        KeyCode::Char('r') => table.is_reversed = !table.is_reversed,
        KeyCode::Down | KeyCode::Char('j') => table.offset = table.offset.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => table.offset = table.offset.saturating_sub(1),
        KeyCode::PageDown => table.offset = table.offset.saturating_add(10),
        KeyCode::PageUp => table.offset = table.offset.saturating_sub(10),
        KeyCode::Home => table.offset = 0,
        _ => {}
    }
    Step::GoOn
}
