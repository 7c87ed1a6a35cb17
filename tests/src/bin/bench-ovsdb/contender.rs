//! The clients that are compared, each as a command, and what one run of it costs.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use metadata_tests::region;

use super::{Setting, client, client::COLUMNS};

/// Debian's Python, for which its packages are.
const PYTHON: &str = "/usr/bin/python3";
const IDL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/bench-ovsdb/idl.py");
/// Whoever takes longer has failed.
const LIMIT: Duration = Duration::from_secs(300);
/// Interval at which the memory of a process that ends by itself is looked at.
const SAMPLE: Duration = Duration::from_millis(2);

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// The rows that it has to get.
    pub(crate) rows: usize,
    program: String,
    arguments: Vec<String>,
    done: Done,
}

/// Sign by which a client is known to have everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    /// It prints the number of rows, and is killed then.
    Number,
    /// It prints this many lines, and is killed then.
    Lines(usize),
    /// It ends by itself.
    End,
}

/// Cost of a run.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) wall: Duration,
    /// User and system time of the client alone.
    pub(crate) cpu: Duration,
    /// The most memory that it had, in bytes.
    pub(crate) peak: u64,
}

impl Usage {
    pub(crate) fn median(usages: &[Self]) -> Self {
        fn middle<T: Ord + Copy>(usages: &[Usage], of: impl Fn(&Usage) -> T) -> T {
            let mut values: Vec<T> = usages.iter().map(of).collect();
            values.sort_unstable();
            values[values.len() / 2]
        }
        Self {
            wall: middle(usages, |usage| usage.wall),
            cpu: middle(usages, |usage| usage.cpu),
            peak: middle(usages, |usage| usage.peak),
        }
    }
}

/// Clients that get everything. Ours comes first, then the one that the goals name.
pub(crate) fn full(setting: &Setting, rows: usize) -> Result<Vec<Contender>> {
    let remote = setting.servers.remotes();
    let find = [
        "--no-leader-only",
        &format!("--db={remote}"),
        &format!("--columns={COLUMNS}"),
        "find",
        "Port_Binding",
    ];
    Ok(vec![
        ours(rows, &[&remote])?,
        Contender {
            done: Done::Lines(rows + 1),
            ..other("ovsdb-client monitor-cond (C)", rows, "ovsdb-client", &monitor(&remote, "[true]"))
        },
        other("ovsdb-client dump (C)", rows, "ovsdb-client", &dump(&remote)),
        // A column that no row has: everything is replicated by the IDL in C, and nothing printed.
        other("ovn-sbctl find (IDL in C)", rows, "ovn-sbctl", &[&find[..], &["logical_port=none"]].concat()),
        python(rows, &[&remote, COLUMNS]),
    ])
}

/// Clients that get the rows of one host.
pub(crate) fn conditional(setting: &Setting) -> Result<Vec<Contender>> {
    let (ports, remote) = (setting.ports(0), setting.servers.remotes());
    let file = setting.sandbox.path("ports");
    fs::write(&file, ports.join("\n") + "\n")?;
    let clauses: Vec<_> = ports.iter().map(|port| format!(r#"["logical_port","==","{port}"]"#)).collect();
    let condition = format!("[{}]", clauses.join(","));
    let (rows, file) = (ports.len(), file.display().to_string());
    Ok(vec![
        ours(rows, &[&remote, &file])?,
        Contender {
            done: Done::Lines(rows + 1),
            ..other("ovsdb-client monitor-cond (C)", rows, "ovsdb-client", &monitor(&remote, &condition))
        },
        python(rows, &[&remote, COLUMNS, &file]),
    ])
}

fn ours(rows: usize, arguments: &[&str]) -> Result<Contender> {
    let program = std::env::current_exe()?.display().to_string();
    let arguments = [&[client::COMMAND], arguments].concat();
    Ok(Contender { done: Done::Number, ..other("this crate", rows, &program, &arguments) })
}

fn python(rows: usize, arguments: &[&str]) -> Contender {
    let arguments = [&[IDL, region::SCHEMA], arguments].concat();
    Contender { done: Done::Number, ..other("python3-openvswitch's IDL", rows, PYTHON, &arguments) }
}

fn other(name: &'static str, rows: usize, program: &str, arguments: &[&str]) -> Contender {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Contender { name, rows, program: program.to_owned(), arguments, done: Done::End }
}

fn monitor<'a>(remote: &'a str, condition: &'a str) -> [&'a str; 7] {
    ["--format=csv", "monitor-cond", remote, "OVN_Southbound", condition, "Port_Binding", COLUMNS]
}

fn dump(remote: &str) -> Vec<&str> {
    let mut arguments = vec!["--format=csv", "dump", remote, "OVN_Southbound", "Port_Binding"];
    arguments.extend(COLUMNS.split(','));
    arguments
}

impl Contender {
    pub(crate) fn measure(&self) -> Result<Usage> {
        let cpu_before = children_cpu()?;
        let began = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, finished) = mpsc::channel();
        let done = self.done;
        // Who waits for it may have given up.
        thread::spawn(move || drop(sender.send(read_until(stdout, done))));
        let memory = Path::new("/proc").join(child.id().to_string()).join("status");
        let mut peak = 0;
        let output = loop {
            match finished.recv_timeout(SAMPLE) {
                Ok(output) => break output,
                Err(RecvTimeoutError::Timeout) if began.elapsed() < LIMIT => {}
                Err(error) => break Err(error.into()),
            }
            peak = peak.max(high_water(&memory).unwrap_or(0));
        };
        let ends = done == Done::End && output.is_ok();
        let status = if ends { Some(child.wait()?) } else { None };
        let wall = began.elapsed();
        peak = peak.max(high_water(&memory).unwrap_or(0));
        if !ends {
            child.kill()?;
            child.wait()?;
        }
        let output = output?;
        ensure!(status.is_none_or(|status| status.success()), "it ended with {status:?}");
        ensure!(done != Done::Number || output.trim() == self.rows.to_string(), "it has {output:?} rows");
        Ok(Usage { wall, cpu: children_cpu()?.saturating_sub(cpu_before), peak })
    }
}

/// Reads to the sign that everything is there; gives what was printed if that is the number of rows.
fn read_until(mut stdout: ChildStdout, done: Done) -> Result<String> {
    let mut buffer = vec![0; 1 << 16];
    let mut lines = 0;
    let mut number = String::new();
    loop {
        let length = stdout.read(&mut buffer)?;
        let read = &buffer[..length];
        lines += read.iter().filter(|byte| **byte == b'\n').count();
        if done == Done::Number {
            number.push_str(&String::from_utf8_lossy(read));
        }
        match done {
            Done::Number if lines > 0 => return Ok(number),
            Done::Lines(wanted) if lines >= wanted => return Ok(number),
            Done::End if length == 0 => return Ok(number),
            _ => ensure!(length > 0, "it ended after {lines} lines"),
        }
    }
}

/// The CPU time of all children that were waited for.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(microseconds.unsigned_abs()))
}

fn high_water(status: &Path) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}
