//! Somebody else who writes to the Southbound all the time: how long that takes tells what agents do to others.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ovsdb_client::Config;
use tokio::runtime;

use super::{Region, inserted, noted, writer::Writer};

/// Between two transactions.
const PAUSE: Duration = Duration::from_millis(20);

/// A thread with a connection to any of the servers, which writes one row, again and again.
#[derive(Debug)]
pub struct Bystander {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    times: Mutex<Vec<Duration>>,
    /// Time at which the transaction under way was begun.
    began: Mutex<Option<Instant>>,
    stop: AtomicBool,
}

/// Times that its transactions took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    pub median: Duration,
    pub longest: Duration,
}

impl Bystander {
    pub fn start(southbound: Config, region: &Region) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (theirs, row) = (shared.clone(), region.of_no_concern());
        let run = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let writer = Writer::connect(southbound).await?;
                let row = inserted(writer.write(vec![row]).await?)?[0];
                for number in 0.. {
                    if theirs.stop.load(Relaxed) {
                        break;
                    }
                    let began = Instant::now();
                    set(&theirs.began, Some(began))?;
                    writer.insist(vec![noted(row, number)]).await?;
                    set(&theirs.began, None)?;
                    theirs.times.lock().ok().context("a panic")?.push(began.elapsed());
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            })
        };
        let thread = thread::Builder::new().name("bystander".to_owned()).spawn(run)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Times that transactions took since this was last asked, the one under way included.
    pub fn take(&self) -> Result<Waits> {
        let mut times = std::mem::take(&mut *self.shared.times.lock().ok().context("a panic")?);
        times.extend(self.shared.began.lock().ok().context("a panic")?.map(|began| began.elapsed()));
        times.sort_unstable();
        let longest = times.last().copied().unwrap_or_default();
        Ok(Waits { median: times.get(times.len() / 2).copied().unwrap_or_default(), longest })
    }

    /// Fails if one of its transactions has.
    pub fn stop(mut self) -> Result<()> {
        self.shared.stop.store(true, Relaxed);
        let thread = self.thread.take().context("it is stopped")?;
        thread.join().ok().context("the bystander panicked")?.context("the bystander")
    }
}

fn set(began: &Mutex<Option<Instant>>, to: Option<Instant>) -> Result<()> {
    *began.lock().ok().context("a panic")? = to;
    Ok(())
}
