//! One virtual machine: started, listened to, and ended in time whatever happens in it.
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{initramfs::Initramfs, kernel::Installed};

/// From power on to the first line of the tests; the processors are emulated, and the machine may be busy.
const BOOT: Duration = Duration::from_secs(300);
/// All of it.
const LIMIT: Duration = Duration::from_secs(1500);
/// Words of the machine at the end, before the status.
const STATUS: &str = "vm-test: ended with ";
const CONSOLE_LINES: usize = 40;

/// Runs the machine, with more arguments for its kernel, to its end, shows what its tests print behind its name; an error
/// unless they pass.
pub(super) fn run(
    name: &str,
    kernel: &Installed,
    initramfs: &Initramfs,
    arguments: &str,
) -> anyhow::Result<()> {
    let mut machine = Machine::start(name, kernel, initramfs, arguments)?;
    match machine.status(name) {
        Ok(0) => Ok(()),
        Ok(status) => bail!("the tests in the machine ended with {status}"),
        Err(error) => Err(error.context(format!("the kernel's last words:\n{}", machine.console_tail()))),
    }
}

struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    console: PathBuf,
    started: Instant,
}

impl Machine {
    fn start(name: &str, kernel: &Installed, initramfs: &Initramfs, arguments: &str) -> anyhow::Result<Self> {
        let console = kernel.folder.join(format!("console-{name}.log"));
        // qemu would keep what another run wrote.
        File::create(&console).with_context(|| format!("cannot write {}", console.display()))?;
        // The machine ends with us even if we are killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        // Emulated: a /dev/kvm that is there may still not be able to run a machine. Both processors by one thread,
        // since with two a kernel that patches its own code now and then meets a breakpoint it has removed ("int3").
        qemu.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1536"]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs.file);
        // A kernel that complains of itself has failed, whatever the tests say.
        let append = format!("console=ttyS0 loglevel=5 panic=-1 oops=panic random.trust_cpu=on{arguments}");
        qemu.arg("-append").arg(append);
        qemu.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
        let mut qemu = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let output = qemu.stdout.take();
        let (sender, lines) = mpsc::channel();
        let machine = Self { qemu, lines, console, started: Instant::now() };
        let output = output.context("qemu has no output")?;
        thread::spawn(move || forward(output, &sender));
        Ok(machine)
    }

    /// The status that the machine reports.
    fn status(&mut self, name: &str) -> anyhow::Result<i32> {
        let mut limit = BOOT;
        loop {
            let left = limit.saturating_sub(self.started.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(status) = line.strip_prefix(STATUS) {
                        return status.parse().with_context(|| format!("no status: {status}"));
                    }
                    println!("    {name} | {line}");
                    limit = LIMIT;
                }
                Err(RecvTimeoutError::Timeout) => bail!("no end after {limit:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.qemu.wait()?;
                    bail!("the machine ended before its tests did (qemu: {status})")
                }
            }
        }
    }

    fn console_tail(&self) -> String {
        tail(&self.console)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself; in either case it is waited for.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The machine's second serial line, line by line.
fn forward(output: ChildStdout, lines: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if lines.send(text).is_err() {
            return;
        }
    }
}

fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}
