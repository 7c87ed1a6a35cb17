//! Servers that are killed, one at a time, and come back.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::Server;

/// Time for which all servers are there.
const UP: Duration = Duration::from_secs(2);

/// A thread that kills servers, and starts them again: those that crash on their own as well, as ovsdb-server 3.1.0 does
/// now and then.
pub struct Failures {
    target: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Failures {
    /// Each time one is away for `down`; the first of them unless another is pointed at.
    pub fn start(mut servers: Vec<Server>, down: Duration) -> Self {
        let (target, done) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (failing, ended) = (Arc::clone(&target), Arc::clone(&done));
        let thread = thread::spawn(move || {
            let (mut away, mut next, mut losses) = (None, Instant::now() + UP, 0);
            while !ended.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
                for server in servers.iter_mut().filter(|server| server.is_running()) {
                    if let Some(status) = server.crashed() {
                        println!("a server crashed: {status}");
                        server.restart();
                    }
                }
                if Instant::now() < next {
                    continue;
                }
                match away.take() {
                    Some(index) => {
                        Server::restart(&mut servers[index]);
                        next = Instant::now() + UP;
                    }
                    None => {
                        let index = failing.load(Ordering::Relaxed);
                        servers[index].stop();
                        (away, losses, next) = (Some(index), losses + 1, Instant::now() + down);
                    }
                }
            }
            losses
        });
        Self { target, done, thread: Some(thread) }
    }

    /// Has the server with this index fail from now on.
    pub fn point_at(&self, index: usize) {
        self.target.store(index, Ordering::Relaxed);
    }

    /// Ends the servers; how many were killed.
    pub fn stop(mut self) -> usize {
        self.end().unwrap()
    }

    fn end(&mut self) -> Option<usize> {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.end();
    }
}
