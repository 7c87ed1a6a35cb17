//! Areas of a proxy's work: samples of stacks, sorted by their function, in microseconds of a request.
use std::collections::BTreeMap;

use crate::WAYS;

/// Areas and the functions by which a stack belongs to one, the first that fits. Those of the kernel are looked for in the whole
/// stack, and user space's in its innermost frame: optimized programs keep no frame pointers.
const AREAS: [(&str, Place, &[&str]); 14] = [
    ("the thread that writes the log", Place::Thread, &["log"]),
    (
        "kernel: sending, up to the receiver's socket",
        Place::Kernel,
        &["__x64_sys_send", "ksys_write", "do_writev"],
    ),
    ("kernel: receiving", Place::Kernel, &["__x64_sys_recv", "ksys_read"]),
    (
        "kernel: waiting, and switching tasks",
        Place::Kernel,
        &["__x64_sys_epoll", "__x64_sys_futex", "schedule"],
    ),
    (
        "kernel: other sockets' calls",
        Place::Kernel,
        &["sockopt", "accept", "connect", "shutdown", "x64_sys_close"],
    ),
    (
        "kernel: filters of system calls",
        Place::Kernel,
        &["seccomp", "secure_computing", "syscall_trace_enter"],
    ),
    ("kernel: other", Place::Kernel, &[""]),
    ("clock", Place::User, &["clock_gettime", "Instant", "Timespec"]),
    (
        "allocator, and moving bytes",
        Place::User,
        &["malloc", "free", "realloc", "memmove", "memcpy", "raw_vec", "bytes::"],
    ),
    (
        "line of the log",
        Place::User,
        &["tracing", "fmt", "LogWriter", "flt2dec", "write_str", "write_char", "AccessEntry"],
    ),
    ("HTTP", Place::User, &["http1", "forward", "try_fold", "GenericShunt"]),
    ("runtime", Place::User, &["tokio", "mio::"]),
    ("conversation", Place::User, &["metadata_agent"]),
    ("user space: other", Place::User, &[""]),
];

/// Part of a stack that tells its area.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Thread,
    Kernel,
    User,
}

/// Frames by which a stack is the kernel's.
const ENTRIES: [&str; 4] = ["entry_SYSCALL", "do_syscall", "asm_", "common_interrupt"];

/// Index of the area of a stack: a thread's name and frames, the innermost last.
fn area(stack: &str) -> usize {
    let frames: Vec<_> = stack.split(';').collect();
    let in_kernel = frames.iter().any(|frame| ENTRIES.iter().any(|entry| frame.starts_with(entry)));
    let fits = |(_, place, names): &(&str, Place, &[&str])| match place {
        Place::Thread => names.contains(&frames[0]),
        Place::Kernel => {
            in_kernel && names.iter().any(|name| frames.iter().any(|frame| frame.contains(name)))
        }
        Place::User => names.iter().any(|name| frames.last().is_some_and(|frame| frame.contains(name))),
    };
    AREAS.iter().position(fits).unwrap_or(AREAS.len() - 1)
}

/// Microseconds of each area for one request, which takes so many in all.
pub(crate) fn spent(stacks: &BTreeMap<String, u64>, cpu: f64) -> Vec<f64> {
    let all: u64 = stacks.values().sum();
    let mut spent = vec![0.0; AREAS.len()];
    for (stack, times) in stacks {
        spent[area(stack)] += cpu * *times as f64 / all as f64;
    }
    spent
}

/// Prints a row for each area, and a column for each way that has a proxy.
pub(crate) fn print(load: &str, spent: &[Vec<f64>]) {
    println!("\n| {load}: µs on processors for each request | {} |", WAYS[1..].join(" | "));
    println!("| --- {}|", "| --- ".repeat(spent.len()));
    let row = |name: &str, of: &dyn Fn(&[f64]) -> f64| {
        let cells: Vec<_> = spent.iter().map(|way| format!("{:.2}", of(way))).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    for (area, (name, ..)) in AREAS.iter().enumerate() {
        if spent.iter().any(|way| way[area] >= 0.005) {
            row(name, &|way| way[area]);
        }
    }
    row("all", &|way| way.iter().sum());
}
