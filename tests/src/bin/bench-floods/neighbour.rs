//! The neighbour: a guest with a TCP of its own that asks on a kept connection, and on a new one for each request, at rates
//! that its limits allow. One that asked as fast as it can would measure its own limit: the kernel sends a SYN that was dropped
//! again after a second.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_tests::{
    guest::{Guest, METADATA},
    http::{self, Connection},
    spread::percentile,
};

/// Between two requests on a kept connection.
const KEPT: Duration = Duration::from_millis(5);
/// Between two connections: 60 a second, where a port's limit is 100.
const NEW: Duration = Duration::from_micros(16_667);
const TARGET: &str = "/latest/meta-data/instance-id";
/// Patience after which a request has failed.
const LIMIT: Duration = Duration::from_secs(5);
const SLOW: Duration = Duration::from_millis(900);

/// Times of the answers, failed ones left out.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    kept: Vec<Duration>,
    new: Vec<Duration>,
    failed: usize,
}

impl Asked {
    pub(crate) fn p50_new(&self) -> f64 {
        percentile(self.new.iter().copied(), 50).as_secs_f64()
    }

    pub(crate) fn p99_new(&self) -> f64 {
        percentile(self.new.iter().copied(), 99).as_secs_f64()
    }

    pub(crate) fn p50_kept(&self) -> f64 {
        percentile(self.kept.iter().copied(), 50).as_secs_f64()
    }

    pub(crate) fn p99_kept(&self) -> f64 {
        percentile(self.kept.iter().copied(), 99).as_secs_f64()
    }

    /// Number of requests that failed, or took longer than 900 ms.
    pub(crate) fn bad(&self) -> usize {
        self.failed + self.kept.iter().chain(&self.new).filter(|time| **time > SLOW).count()
    }

    pub(crate) fn all(&self) -> usize {
        self.failed + self.kept.len() + self.new.len()
    }
}

/// Both ways at once, for that long.
pub(crate) fn ask(guest: &Guest, time: Duration) -> Result<Asked> {
    let (kept, new) = thread::scope(|scope| {
        let kept = scope.spawn(|| guest.netns.run(|| ask_on_kept(time)));
        let new = guest.netns.run(|| ask_on_new(time));
        (kept.join(), new)
    });
    let (kept, failed) = kept.ok().context("the asking thread panicked")??;
    let (new, failed_too) = new?;
    Ok(Asked { kept, new, failed: failed + failed_too })
}

/// So many connections, the next one as soon as the one before was answered.
pub(crate) fn ask_at_once(guest: &Guest, count: usize) -> Result<Asked> {
    guest.netns.run(|| {
        let mut asked = Asked::default();
        for _ in 0..count {
            match ask_on_one() {
                Some(time) => asked.new.push(time),
                None => asked.failed += 1,
            }
        }
        asked
    })
}

fn connect() -> http::Result<Connection<TcpStream>> {
    Ok(Connection::new(http::connect_from(None, METADATA, LIMIT)?))
}

fn request(connection: &mut Connection<TcpStream>, headers: &[(&str, &str)]) -> bool {
    connection.request("GET", TARGET, headers, b"").is_ok_and(|answer| answer.status == 200)
}

fn ask_on_kept(time: Duration) -> (Vec<Duration>, usize) {
    let (mut times, mut failed, mut kept) = (Vec::new(), 0, None);
    paced(time, KEPT, || {
        if kept.is_none() {
            kept = connect().ok();
        }
        let asked = Instant::now();
        if kept.as_mut().is_some_and(|connection| request(connection, &[])) {
            times.push(asked.elapsed());
        } else {
            (failed, kept) = (failed + 1, None);
        }
    });
    (times, failed)
}

fn ask_on_new(time: Duration) -> (Vec<Duration>, usize) {
    let (mut times, mut failed) = (Vec::new(), 0);
    paced(time, NEW, || match ask_on_one() {
        Some(time) => times.push(time),
        None => failed += 1,
    });
    (times, failed)
}

/// Time of a request on a connection of its own, if it was answered.
fn ask_on_one() -> Option<Duration> {
    let asked = Instant::now();
    let mut connection = connect().ok()?;
    request(&mut connection, &[("Connection", "close")]).then(|| asked.elapsed())
}

/// Does `once` at that interval. What took longer is not made up for, which would be more at once than is allowed.
fn paced(time: Duration, interval: Duration, mut once: impl FnMut()) {
    let started = Instant::now();
    while started.elapsed() < time {
        let began = Instant::now();
        once();
        thread::sleep(interval.saturating_sub(began.elapsed()));
    }
}
