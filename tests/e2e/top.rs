//! `top` on a real terminal: a pseudo-terminal of 80 columns, whose screen is read as a terminal shows it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{agent::Agent, check::own_identity, cloud::Cloud, wait::until};
use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, Termios, tcgetattr},
    },
    unistd::Pid,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// The command on a terminal, with the screen that the terminal shows.
struct Terminal {
    child: Child,
    keys: File,
    /// Kept open: how the terminal is set says who has left it how.
    slave: OwnedFd,
    before: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let OpenptyResult { master, slave } = openpty(Some(&SIZE), None)?;
        let before = tcgetattr(&slave)?;
        // Its terminal from then on, so that its size can be asked for.
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(agent.program())
            .arg("top")
            .args(arguments)
            .arg("--run-dir")
            .arg(agent.run_dir())
            .env("TERM", "xterm-256color");
        let end = || -> Result<Stdio> { Ok(slave.try_clone()?.into()) };
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        let child = command.spawn()?;
        let screen = Arc::new(Mutex::new(vt100::Parser::new(SIZE.ws_row, SIZE.ws_col, 0)));
        let said = Arc::new(Mutex::new(Vec::new()));
        let keys = File::from(master);
        let (mut out, shown, all) = (keys.try_clone()?, screen.clone(), said.clone());
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut bytes) {
                if let (Ok(mut shown), Ok(mut all)) = (shown.lock(), all.lock()) {
                    shown.process(&bytes[..count]);
                    all.extend_from_slice(&bytes[..count]);
                }
            }
        });
        Ok(Self { child, keys, slave, before, screen, said })
    }

    fn text(&self) -> Result<String> {
        Ok(self.screen.lock().ok().context("the reader panicked")?.screen().contents())
    }

    /// Waits for a line with all of these.
    fn wait(&self, words: &[&str]) -> Result<String> {
        until(&format!("the screen has a line with {words:?}"), SOON, || {
            let text = self.text()?;
            let found = text.lines().find(|line| words.iter().all(|word| line.contains(word)));
            found.map(str::to_owned).with_context(|| format!("the screen is\n{text}"))
        })
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    /// Waits until it has ended, and left the terminal as it was.
    fn end(mut self) -> Result<()> {
        let status = until("it ends", SOON, || self.child.try_wait()?.context("it goes on"))?;
        ensure!(status.success(), "it ended with {status}");
        let after = tcgetattr(self.slave.as_fd())?;
        ensure!(after.local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON), "{after:?}");
        ensure!(after.local_flags == self.before.local_flags && after.input_flags == self.before.input_flags);
        until("the screen is the one of before, with its cursor", SOON, || {
            let said = self.said.lock().ok().context("the reader panicked")?;
            let text = String::from_utf8_lossy(&said);
            ensure!(text.contains("\u{1b}[?1049h") && text.contains("\u{1b}[?1049l"), "{text:?}");
            let screen = self.screen.lock().ok().context("the reader panicked")?;
            ensure!(!screen.screen().alternate_screen() && !screen.screen().hide_cursor(), "{text:?}");
            Ok(())
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ports_are_shown_live_and_the_terminal_is_given_back() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    // Each time it asks twice.
    for _ in 0..3 {
        own_identity(&guest)?;
    }
    own_identity(&other)?;
    let mut terminal = Terminal::start(&cloud.agent, &[])?;
    terminal.wait(&["2 ports", " 8 requests", "0 refused"])?;
    let (one, two) = (guest.port.tap.as_str(), other.port.tap.as_str());
    terminal.wait(&[one, " 6 "])?;
    terminal.wait(&[two, " 2 "])?;
    let order = |terminal: &Terminal| -> Result<Vec<bool>> {
        let text = terminal.text()?;
        Ok(text
            .lines()
            .filter(|line| line.contains(one) || line.contains(two))
            .map(|line| line.contains(one))
            .collect())
    };
    ensure!(order(&terminal)? == [true, false], "by requests: {}", terminal.text()?);
    ensure!(terminal.text()?.lines().all(|line| line.chars().count() <= 80));

    // What happens meanwhile.
    let held = other.connect()?;
    for _ in 0..5 {
        own_identity(&other)?;
    }
    terminal.wait(&[two, " 12 "])?;
    terminal.wait(&["2 ports", " 1 conn"])?;
    until("whoever asks most is first", SOON, || {
        ensure!(order(&terminal)? == [false, true], "{}", terminal.text()?);
        Ok(())
    })?;
    terminal.press("r")?;
    until("the order is turned round", SOON, || {
        ensure!(order(&terminal)? == [true, false], "{}", terminal.text()?);
        Ok(())
    })?;
    terminal.press("/")?;
    terminal.press(two)?;
    terminal.wait(&["filter: ", two])?;
    until("only one is shown", SOON, || {
        ensure!(!terminal.text()?.contains(one), "{}", terminal.text()?);
        Ok(())
    })?;
    terminal.press("\rq")?;
    terminal.end()?;
    drop(held);

    // By a signal as well.
    let terminal = Terminal::start(&cloud.agent, &["--sort", "bytes", "--filter", one])?;
    terminal.wait(&[one])?;
    kill(Pid::from_raw(terminal.child.id().cast_signed()), Signal::SIGTERM)?;
    terminal.end()?;

    let (status, text) = cloud.agent.tells(&["top", "--json"])?;
    let told: Value = serde_json::from_str(&text)?;
    let ports = told["ports"].as_array().context("ports")?;
    let of = |tap: &str, field: &str| {
        ports.iter().find(|port| port["tap"] == tap).and_then(|port| port[field].as_u64())
    };
    ensure!(status == 0 && told["complete"] == true, "{text}");
    ensure!((of(one, "requests"), of(two, "requests")) == (Some(6), Some(12)), "{text}");
    ensure!(
        of(one, "nova_us") > Some(0) && of(one, "bytes") > Some(0) && of(one, "refused") == Some(0),
        "{text}"
    );
    let (status, text) = cloud.agent.tells(&["top"])?;
    ensure!(status == 1 && text.contains("needs a terminal"), "{status}: {text}");
    Ok(())
}

/// An agent that is not there for a while is told of, and is shown again when it is back.
#[test]
fn an_agent_that_is_away_is_told_of() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _other] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let mut terminal = Terminal::start(&cloud.agent, &[])?;
    terminal.wait(&["2 ports", " 2 requests"])?;
    cloud.agent.stop()?;
    terminal.wait(&["no agent answers"])?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    terminal.wait(&["2 ports", " 0 requests"])?;
    terminal.press("\u{3}")?;
    terminal.end()
}
