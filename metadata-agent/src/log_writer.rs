//! Log lines on their way to standard error: gathered, and written by a thread of their own.
//!
//! Whoever logs neither waits for a reader that is stuck nor wakes a thread for each line: a busy agent logs thousands of
//! requests in a second.
#![forbid(unsafe_code)]
use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

/// Time for which lines are gathered into a batch.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes that wait to be written; what comes beyond is lost, and that is said.
const MOST: usize = 1 << 20;
/// Timeout of the last lines when the agent ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Writer of lines, which puts them into the next batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    something: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    lost: u64,
    ending: bool,
}

/// Writes what is left when it is dropped.
#[derive(Debug)]
pub struct LogGuard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts the thread that writes to `out`.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, LogGuard)> {
        let shared: Arc<Shared> = Arc::default();
        let writer = shared.clone();
        let thread = thread::Builder::new().name("log".to_owned()).spawn(move || writer.write_to(out))?;
        Ok((Self(shared.clone()), LogGuard { shared, thread: Some(thread) }))
    }

    /// Writes what waits, now and here: for the last words of a process.
    pub(crate) fn flush_to(&self, mut out: impl Write) {
        let lines = mem::take(&mut self.0.lock().lines);
        // Nobody is left to be told that it failed.
        let _ = out.write_all(&lines);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut out: impl Write) {
        loop {
            let waiting = self.lock();
            let waiting = self
                .something
                .wait_while(waiting, |waiting| waiting.lines.is_empty() && !waiting.ending)
                .unwrap_or_else(PoisonError::into_inner);
            let ending = waiting.ending;
            drop(waiting);
            if !ending {
                thread::sleep(GATHER);
            }
            let (lines, lost) = {
                let mut waiting = self.lock();
                (mem::take(&mut waiting.lines), mem::take(&mut waiting.lost))
            };
            // A log that cannot be written cannot be complained of either.
            let _ = out.write_all(&lines);
            if lost > 0 {
                let _ = writeln!(out, "{lost} lines of the log were lost: nobody read them in time");
            }
            if ending {
                return;
            }
        }
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.something.notify_one();
        let deadline = Instant::now() + FAREWELL;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Takes one line at a time, as the formatting layer gives them.
impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        if waiting.lines.len() + line.len() > MOST {
            waiting.lost += 1;
            return Ok(line.len());
        }
        let was_empty = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if was_empty {
            self.0.something.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes nothing until it is let.
    struct Stuck {
        gate: Option<mpsc::Receiver<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(gate) = self.gate.take() {
                gate.recv().unwrap();
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_that_is_stuck() {
        let (open, gate) = mpsc::channel();
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (log, guard) = LogWriter::start(Stuck { gate: Some(gate), written: written.clone() }).unwrap();
        (&log).write_all(b"first\n").unwrap();
        while !log.0.lock().lines.is_empty() {
            thread::yield_now();
        }
        let line = [b'x'; 1024];
        for _ in 0..MOST / line.len() + 3 {
            (&log).write_all(&line).unwrap();
        }
        assert!(written.lock().unwrap().is_empty());
        open.send(()).unwrap();
        drop(guard);
        let written = written.lock().unwrap();
        assert!(written.starts_with(b"first\nx"));
        let end = String::from_utf8_lossy(&written[written.len() - 70..]).into_owned();
        assert!(end.ends_with("3 lines of the log were lost: nobody read them in time\n"), "{end}");
    }
}
