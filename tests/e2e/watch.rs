//! Watching: an operator sees requests and dropped frames as they happen, and holds up nobody.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_tests::{
    agent::{Agent, Options},
    check::{META_DATA, is_identity_of, own_identity},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    stage::Stage,
    wait::until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// The command, and the lines that it prints.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(agent.program());
        command.arg("watch").args(arguments).arg("--run-dir").arg(agent.run_dir());
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        let (tell, lines) = channel();
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Ok(Self { child, lines })
    }

    /// The next line with these words, and how many came before it.
    fn next(&self, words: &[&str]) -> Result<(usize, String)> {
        let (until, mut before) = (Instant::now() + SOON, Vec::new());
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if words.iter().all(|word| line.contains(word)) => return Ok((before.len(), line)),
                Ok(line) => before.push(line),
                Err(RecvTimeoutError::Timeout) => bail!("no line with {words:?} after {before:#?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended after {before:#?}"),
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From 192.0.2.77:4000, which is nobody's, to the service.
const STRAY_RESET: [u8; 40] = [
    0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 77, 169, 254, 169, 254, 0x0f, 0xa0, 0, 80, 0, 0,
    0, 1, 0, 0, 0, 0, 0x50, 4, 0, 0, 0, 0, 0, 0,
];

/// Has the guest ask until it is seen: to watch begins a moment after the command.
fn wait_seen(watching: &Watching, guest: &Guest, words: &[&str]) -> Result<String> {
    until(&format!("a request of {} is seen", guest.port.tap), SOON, || {
        own_identity(guest)?;
        match watching.lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) if words.iter().all(|word| line.contains(word)) => Ok(line),
            other => bail!("{other:?}"),
        }
    })
}

#[test]
fn requests_and_drops_are_seen_as_they_happen() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let watching = Watching::start(&cloud.agent, &["--port", &guest.port.tap])?;
    let source = guest.port.address.to_string();
    wait_seen(&watching, &guest, &[&guest.port.tap, &source, "GET meta-data 200 by nova", " ms, nova "])?;
    own_identity(&other)?;

    // What a guest makes up comes in words of the agent's, and what is dropped with its reason.
    let answer = guest.request("GET\u{1b}[2J", META_DATA, &[], b"")?;
    ensure!(answer.status == 400, "{answer:?}");
    let (_, line) = watching.next(&["400 by agent"])?;
    ensure!(!line.contains('\u{1b}'), "{line:?}");
    guest.send_packet(&STRAY_RESET)?;
    watching.next(&["dropped, unknown_source", "192.0.2.77:4000 > 169.254.169.254:80, TCP RST"])?;

    // For programs, and filtered.
    let refused =
        Watching::start(&cloud.agent, &["--json", "--status", "5xx", "--reason", "nova_unreachable"])?;
    cloud.nova.pause();
    let line = until("a refusal is seen", SOON, || {
        ensure!(guest.get(META_DATA)?.status == 502);
        refused.lines.recv_timeout(Duration::from_millis(500)).context("nothing yet")
    })?;
    cloud.nova.resume(cloud.chassis.host())?;
    let event: Value = serde_json::from_str(&line)?;
    ensure!(
        event["kind"] == "request" && event["status"] == 502 && event["port"] == *guest.port.id,
        "{line}"
    );
    ensure!(event["refusal"] == "nova_unreachable" && event["by"] == "agent", "{line}");

    // It goes on when the other process is another one.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(cloud.agent.guest_process()?.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    while watching.lines.try_recv().is_ok() {}
    wait_seen(&watching, &guest, &["200 by nova"])?;
    let text = watching.lines.try_iter().collect::<Vec<_>>().join("\n");
    ensure!(!text.contains(&other.port.tap), "another's: {text}");

    // Nobody is told of anything any more.
    drop((watching, refused));
    own_identity(&guest)
}

/// Frames of others use up nothing of what is recorded of a port.
#[test]
fn a_flood_of_others_hides_no_dropped_frame_of_a_port() -> Result<()> {
    const FLOOD: usize = 5000;
    let cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let watching = Watching::start(&cloud.agent, &["--json", "--port", &guest.port.id])?;
    wait_seen(&watching, &guest, &["\"request\""])?;
    let before = cloud.agent.counter("unknown_source")?;
    for _ in 0..FLOOD {
        other.send_packet(&STRAY_RESET)?;
    }
    guest.send_packet(&STRAY_RESET)?;
    let (_, line) = watching.next(&["\"drop\""])?;
    let event: Value = serde_json::from_str(&line)?;
    ensure!(event["port"] == *guest.port.id && event["left_out"] == 0, "{line}");
    let dropped = cloud.agent.counter("unknown_source")? - before;
    ensure!(dropped >= FLOOD as u64, "there was no flood: {dropped} frames");
    Ok(())
}

/// One who does not read loses what happens, hears how much it was, and no guest waits for it.
#[test]
fn who_is_slow_loses_events_and_holds_up_nobody() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _other] = cloud.overlapping_guests()?;
    let mut slow = UnixStream::connect(cloud.agent.run_dir().join("admin.sock"))?;
    slow.write_all(b"GET /watch HTTP/1.0\r\n\r\n")?;
    let mut first = [0; 1];
    slow.read_exact(&mut first)?;
    let mut connection = guest.connect()?;
    let ask = |connection: &mut metadata_tests::http::Connection<_>, times| -> Result<()> {
        for _ in 0..times {
            is_identity_of(&guest.port, &connection.request("GET", META_DATA, &[], b"")?)?;
        }
        Ok(())
    };
    ask(&mut connection, 4000)?;
    slow.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut lines = BufReader::new(slow).lines();
    let found = until("the loss is told", SOON, || {
        ask(&mut connection, 1)?;
        let lost = lines.by_ref().map_while(Result::ok).find(|line| line.contains("\"kind\":\"lost\""));
        lost.context("nothing was lost yet")
    })?;
    let event: Value = serde_json::from_str(&found)?;
    ensure!(event["events"].as_u64() > Some(0), "{found}");
    Ok(())
}

/// Of both processes: the one writes of its start, the other of requests.
#[test]
fn the_log_is_json_where_that_is_asked_for() -> Result<()> {
    let more = vec![("metadata_ebpf", "log_format = json".to_owned())];
    let mut cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    let [guest, _] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    cloud.agent.wait_logged(&["\"target\":\"access\""])?;
    cloud.agent.stop()?;
    let log = cloud.agent.log()?;
    let lines: Vec<Value> =
        log.lines().map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| log.clone())?;
    let of =
        |message: &str| lines.iter().find(|line| line["message"] == message).with_context(|| log.clone());
    ensure!(of("starting")?["level"] == "INFO" && of("starting")?["version"].is_string(), "{log}");
    let request = of("request")?;
    ensure!(request["port"] == guest.port.id && request["tap"] == guest.port.tap, "{request}");
    ensure!(request["status"] == 200 && request["bytes"].is_u64() && request["ms"].is_f64(), "{request}");
    Ok(())
}
