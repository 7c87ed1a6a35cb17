//! Network namespaces: named, deleted when dropped, entered by threads and processes of their own.
#![allow(unsafe_code, reason = "what happens between fork and exec")]

use std::{
    ffi::OsStr,
    fs::File,
    net::{SocketAddrV4, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use crate::{
    command::{Words as _, run},
    kernel,
    sandbox::Sandbox,
    wait::until,
};

const BIND: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Namespace {
    name: String,
    owned: bool,
}

impl Namespace {
    /// A namespace with its loopback up and no IPv6 chatter.
    pub fn create(sandbox: &Sandbox, role: &str) -> Result<Self> {
        let name = format!("{}-{role}", sandbox.prefix());
        run(Command::new("ip").words("netns add").arg(&name))?;
        let namespace = Self { name, owned: true };
        namespace.ip("link set lo up")?;
        if kernel::has_ipv6() {
            for scope in ["all", "default"] {
                namespace.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1")?;
            }
        }
        Ok(namespace)
    }

    /// The machine's own, under a name for as long as this lives.
    pub fn of_machine(sandbox: &Sandbox) -> Result<Self> {
        let name = format!("{}-machine", sandbox.prefix());
        run(Command::new("ip").words("netns attach").arg(&name).arg("1"))?;
        Ok(Self { name, owned: true })
    }

    /// One that somebody else made and will delete.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), owned: false }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` inside the namespace, on a thread made for it: a namespace belongs to a thread, and no other
    /// code must ever find itself on a thread that is in the wrong one.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = open(&self.path())?;
        let inside = move || -> Result<T> {
            setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            Ok(work())
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A command that will run inside the namespace. Mounts stay the host's, unlike with `ip netns exec`, which
    /// would hide a bpffs that the command mounts.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        command_in(&self.path(), program)
    }

    /// `ip -n <namespace> ...`
    pub fn ip(&self, arguments: impl AsRef<str>) -> Result<String> {
        run(Command::new("ip").arg("-n").arg(&self.name).words(arguments))
    }

    pub fn ifindex(&self, device: &str) -> Result<u32> {
        let line = self.ip(format!("-o link show dev {device}"))?;
        let number = line.split(':').next().unwrap_or_default();
        number.parse().with_context(|| format!("no ifindex in {line}"))
    }

    /// A listener inside the namespace. A predecessor's address may be taken for a moment after it was closed, by a
    /// child that another thread forks just then.
    pub fn listen(&self, address: SocketAddrV4) -> Result<TcpListener> {
        until(&format!("{address} can be bound"), BIND, || Ok(self.run(|| TcpListener::bind(address))??))
    }

    /// One of the namespace's TCP statistics, by the kernel's name: `InCsumErrors`, `OutSegs`, ...
    pub fn tcp_statistic(&self, name: &str) -> Result<u64> {
        self.statistic("snmp", "Tcp: ", name)
    }

    /// The SYNs that had to be sent once more.
    pub fn repeated_syns(&self) -> Result<u64> {
        self.tcp_extension("TCPSynRetrans")
    }

    /// One of the statistics that Linux has of TCP beyond the standard's: `ListenOverflows`, `TCPTimeouts`, ...
    pub fn tcp_extension(&self, name: &str) -> Result<u64> {
        self.statistic("netstat", "TcpExt: ", name)
    }

    fn statistic(&self, file: &str, group: &str, name: &str) -> Result<u64> {
        let text = self.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")))??;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut found = names.split(' ').zip(values.split(' ')).filter(|(key, _)| *key == name);
        let (_, value) = found.next().with_context(|| format!("the kernel counts no {name}"))?;
        Ok(value.parse()?)
    }

    /// True if a connection to that port is being tried and not yet made.
    pub fn is_connecting(&self, port: u16) -> Result<bool> {
        const SYN_SENT: &str = "02";
        let text = self.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
        Ok(text.lines().skip(1).any(|line| {
            let mut words = line.split_whitespace().skip(2);
            let remote = words.next().unwrap_or_default();
            remote.ends_with(&format!(":{port:04X}")) && words.next() == Some(SYN_SENT)
        }))
    }

    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let file = PathBuf::from("/proc/sys").join(key.replace('.', "/"));
        self.run(|| std::fs::write(&file, value))?.with_context(|| format!("cannot write {}", file.display()))
    }
}

/// `Namespace::command` for those who know only where the namespace is.
pub fn command_in(namespace: &Path, program: impl AsRef<OsStr>) -> Result<Command> {
    let namespace = open(namespace)?;
    let mut command = Command::new(program);
    // SAFETY: setns is one system call on a descriptor that the closure owns; nothing is allocated or locked.
    unsafe {
        command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?));
    }
    Ok(command)
}

fn open(namespace: &Path) -> Result<File> {
    File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = run(Command::new("ip").words("netns del").arg(&self.name))
        {
            eprintln!("warning: a namespace is left behind: {error:#}");
        }
    }
}
