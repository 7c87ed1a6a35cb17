//! Fuzzing with a budget of time, in ordinary tests: inputs are broken versions of good ones, made by a generator with a
//! known seed.
//!
//! `FUZZ_SECONDS` (2) is for each target. `FUZZ_SEED` begins with that input: a failure tells the seed of its own, and
//! `FUZZ_SEED=<seed> FUZZ_SECONDS=0` repeats just that one.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "it is part of tests, and a failed test is what it is for"
)]

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// For one input, which takes some milliseconds on a busy machine.
const HANG: Duration = Duration::from_secs(10);
/// Bytes by which the whole process may grow: other tests run in it, and an allocator keeps what it had.
const GROWTH: u64 = 256 << 20;
/// Inputs between two looks at the clock of the watchdog and at the memory.
const STRETCH: u64 = 256;

/// Gives inputs to `target` until the time is over. What goes wrong is a panic, a hang, or memory that grows.
pub fn fuzz(name: &'static str, mut target: impl FnMut(&mut Random)) {
    let budget = Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(2));
    let seed = variable("FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(name));
    println!("fuzz::{name}: FUZZ_SEED={seed}");
    let mut seeds = Random(seed);
    let current = Current { name, seed: Arc::new(AtomicU64::new(seed)) };
    current.watch();
    let (began, memory) = (Instant::now(), resident());
    let mut inputs = 0u64;
    loop {
        target(&mut Random(current.seed.load(Ordering::Relaxed)));
        inputs += 1;
        if inputs.is_multiple_of(STRETCH) {
            let growth = resident().saturating_sub(memory);
            assert!(growth < GROWTH, "{growth} bytes more after {inputs} inputs");
        }
        if began.elapsed() >= budget {
            break;
        }
        current.seed.store(seeds.next_number(), Ordering::Relaxed);
    }
    println!("fuzz::{name}: {inputs} inputs in {:?}", began.elapsed());
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value:?}")))
}

/// The memory of this process, in bytes.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Tells which input it was, if one is the last.
struct Current {
    name: &'static str,
    seed: Arc<AtomicU64>,
}

impl Current {
    /// Ends the process when an input takes too long: a test that hangs says nothing by itself.
    fn watch(&self) {
        let (name, seed) = (self.name, Arc::downgrade(&self.seed));
        thread::spawn(move || {
            let mut last = (None, Instant::now());
            while let Some(seed) = seed.upgrade().map(|seed| seed.load(Ordering::Relaxed)) {
                if last.0 != Some(seed) {
                    last = (Some(seed), Instant::now());
                } else if last.1.elapsed() > HANG {
                    eprintln!("fuzz::{name}: FUZZ_SEED={seed} hangs");
                    std::process::abort();
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("fuzz::{}: it was FUZZ_SEED={}", self.name, self.seed.load(Ordering::Relaxed));
        }
    }
}

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The generator with that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_number() % end.max(1) as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of some.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// A part of `length` bytes, mostly short.
    pub fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.once_in(8) { length } else { 12 };
        start..length.min(start + self.below(most + 1))
    }

    /// Breaks `bytes` in a few places, with `words` that mean something where they are read.
    pub fn damage(&mut self, bytes: &mut Vec<u8>, words: &[&str]) {
        for _ in 0..1 + self.below(6) {
            let range = self.range(bytes.len());
            let at = range.start;
            match self.below(7) {
                0 => drop(bytes.drain(range)),
                1 => {
                    let copy = bytes[range].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                2 => bytes.truncate(at),
                3 => {
                    let byte = self.next_number() as u8;
                    bytes.insert(at, byte);
                }
                4 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                5 => {
                    let count = 1 << self.below(11);
                    let word = self.pick(words).repeat(count.min(2000));
                    bytes.splice(at..at, word.into_bytes());
                }
                _ => {
                    let word = self.pick(words);
                    bytes.splice(range, word.bytes());
                }
            }
        }
    }
}
