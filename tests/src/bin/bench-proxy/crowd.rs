//! One guest's requests beside others that take all they can get, within the limits that there are by default.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Options,
    cloud::Cloud,
    guest::{Guest, METADATA},
    http,
    stage::Stage,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{SockFilter, SockRef};

const GUESTS: usize = 66;
const TARGET: &str = "/latest/meta-data/instance-id";
const USER_DATA: &str = "/latest/user-data";
/// Of the guest that is measured, each on a connection of its own.
const REQUESTS: usize = 600;
const PAUSE: Duration = Duration::from_millis(15);
const LIMIT: Duration = Duration::from_secs(5);
/// Interval at which it is looked whether a guest has lost connections.
const LOOK: Duration = Duration::from_millis(10);
const SAMPLE: Duration = Duration::from_millis(100);
/// Time for which connections are opened before the measurement begins.
const BEGIN: Duration = Duration::from_secs(4);

/// Behaviour of the other guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crowd {
    Idle,
    StalledBodies,
    Unacknowledged,
    SlowReaders,
}

impl Crowd {
    const ALL: [Self; 4] = [Self::Idle, Self::StalledBodies, Self::Unacknowledged, Self::SlowReaders];

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "66 guests with 125 idle connections each",
            Self::StalledBodies => "1056 bodies of 64 kB that stall, of 33 guests",
            Self::Unacknowledged => "100 answers of 40 kB a second that are never acknowledged",
            Self::SlowReaders => "32 guests that take nothing of 48 kB on 64 connections each",
        }
    }

    /// Number of guests, of connections of each at most, and of those made in a second.
    fn extent(self) -> (usize, usize, u32) {
        match self {
            Self::Idle => (66, 125, 4000),
            Self::StalledBodies => (33, 32, 2000),
            Self::Unacknowledged => (1, usize::MAX, 100),
            Self::SlowReaders => (32, 64, 2000),
        }
    }

    fn open(self) -> Result<TcpStream> {
        let mut stream = http::connect_from(None, METADATA, LIMIT)?;
        match self {
            Self::Idle => {
                let head = http::request_head("GET", TARGET, &[], 0);
                stream.write_all(&head)?;
                ensure!(stream.read(&mut [0; 4096])? > 0, "no answer");
            }
            Self::StalledBodies => {
                stream.write_all(&http::request_head("POST", TARGET, &[], 65_536))?;
                stream.write_all(&[b'x'; 65_000])?;
            }
            Self::Unacknowledged => {
                // From now on it hears nothing, and so acknowledges nothing.
                let nothing = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
                SockRef::from(&stream).attach_filter(&[nothing])?;
                // Nor shall its own kernel wait for the other's, when it has gone.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                let close = [("Connection", "close")];
                stream.write_all(&http::request_head("GET", USER_DATA, &close, 0))?;
            }
            Self::SlowReaders => {
                setsockopt(&stream, sockopt::RcvBuf, &2048)?;
                stream.write_all(&http::request_head("GET", USER_DATA, &[], 0))?;
            }
        }
        Ok(stream)
    }

    /// Opens connections until told to stop, and in place of each that the other side has ended another one.
    fn take(self, guests: &[Guest], stop: &AtomicBool) -> Result<usize> {
        let (count, most, rate) = self.extent();
        let mut held: Vec<Vec<TcpStream>> = (0..count).map(|_| Vec::new()).collect();
        let mut opened = 0;
        for number in (0..count).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
            let began = Instant::now();
            let (guest, held) = (&guests[number], &mut held[number]);
            if held.len() >= most {
                held.retain(is_open);
            }
            // Those that are there already need less looking after.
            let mut pause = LOOK;
            if held.len() < most {
                pause = Duration::from_secs(1) / rate;
                // One that is refused has lost nothing by it.
                if let Ok(stream) = guest.netns.run(|| self.open())? {
                    stream.set_nonblocking(true)?;
                    held.push(stream);
                    opened += 1;
                }
            }
            thread::sleep(pause.saturating_sub(began.elapsed()));
        }
        Ok(opened)
    }
}

/// As far as can be seen without reading what came.
fn is_open(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// TCP's state on the whole machine.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    orphans: u64,
    bytes: u64,
}

impl Kernel {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/net/sockstat")?;
        let line = text.lines().find_map(|line| line.strip_prefix("TCP: ")).context("no line of TCP")?;
        let words: Vec<_> = line.split(' ').collect();
        let value = |name: &str| -> Result<u64> {
            let at = words.iter().position(|word| *word == name).with_context(|| format!("no {name}"))?;
            Ok(words.get(at + 1).context("no value")?.parse()?)
        };
        Ok(Self { orphans: value("orphan")?, bytes: value("mem")? * 4096 })
    }
}

/// The times of so many of a guest's requests, in order, and how many failed.
fn ask(guest: &Guest, requests: usize) -> (Vec<Duration>, usize) {
    let (mut times, mut failed) = (Vec::new(), 0);
    for _ in 0..requests {
        let asked = Instant::now();
        match guest.get(TARGET) {
            Ok(response) if response.status == 200 => times.push(asked.elapsed()),
            other => {
                eprintln!("failed: {other:?}");
                failed += 1;
            }
        }
        thread::sleep(PAUSE);
    }
    times.sort();
    (times, failed)
}

pub(crate) fn bench() -> Result<()> {
    let more = vec![
        ("metadata_ebpf", "request_rate = 100".to_owned()),
        ("metadata_haproxy", "timeout_http_request = 30".to_owned()),
        ("metadata_haproxy", "timeout_http_keep_alive = 30".to_owned()),
    ];
    let mut cloud = Cloud::on(Stage::start()?, &Options { more, ..Options::default() })?;
    cloud.quiet = true;
    let guests: [Guest; GUESTS + 1] = cloud.guests()?;
    let (neighbour, crowd) = guests.split_first().context("there are some")?;
    for guest in &crowd[..1] {
        cloud.nova.set_user_data(&guest.port, vec![b'x'; 40_000]);
    }
    for guest in &crowd[1..] {
        cloud.nova.set_user_data(&guest.port, vec![b'x'; 48_000]);
    }
    println!("\n| beside | p99 : quiet | failed | TCP memory | orphans |\n| --- | --- | --- | --- | --- |");
    println!("| goal | ≤ 2 | 0 | < 64 MB | < 300 |");
    let all = Crowd::ALL.map(|crowd| vec![crowd]).into_iter().chain([Crowd::ALL.to_vec()]);
    for crowds in all {
        cloud.agent.settled_counters()?;
        let p99 = |times: &[Duration]| times[times.len() * 99 / 100].as_secs_f64();
        // Before and after, since this machine may have other things to do, too.
        let (mut quiet, _) = ask(neighbour, REQUESTS / 2);
        let before = Kernel::now()?;
        let stop = AtomicBool::new(false);
        let (noisy, failed, opened, most) = thread::scope(|scope| -> Result<_> {
            let taking: Vec<_> = crowds.iter().map(|what| scope.spawn(|| what.take(crowd, &stop))).collect();
            let watching = scope.spawn(|| -> Result<Kernel> {
                let mut most = before;
                while !stop.load(Ordering::Relaxed) {
                    let now = Kernel::now()?;
                    most.orphans = most.orphans.max(now.orphans);
                    most.bytes = most.bytes.max(now.bytes);
                    thread::sleep(SAMPLE);
                }
                Ok(most)
            });
            thread::sleep(BEGIN);
            let (noisy, failed) = ask(neighbour, REQUESTS);
            stop.store(true, Ordering::Relaxed);
            let mut opened = 0;
            for taking in taking {
                opened += taking.join().ok().context("a crowd panicked")??;
            }
            Ok((noisy, failed, opened, watching.join().ok().context("the watch panicked")??))
        })?;
        ensure!(!noisy.is_empty(), "no request was answered");
        // Everybody has gone before the next.
        thread::sleep(2 * LIMIT);
        quiet.extend(ask(neighbour, REQUESTS / 2).0);
        quiet.sort();
        let name = if crowds.len() > 1 { "all of them" } else { crowds[0].name() };
        println!(
            "| {name} | {:.2} | {failed} of {REQUESTS} | +{:.1} MB | +{} |",
            p99(&noisy) / p99(&quiet),
            (most.bytes - before.bytes) as f64 / 1e6,
            most.orphans - before.orphans
        );
        eprintln!("{name}: {opened} connections were made, {before:?} before, {most:?} at most");
        eprintln!("{}", cloud.agent.admin("GET", "/ready")?.text());
        cloud.agent.discard_log()?;
    }
    Ok(())
}
