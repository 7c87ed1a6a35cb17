//! A real machine: QEMU with a virtio NIC, a kernel of Debian's, and a shell on its serial line.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    cloud_init::fetched, command::Words as _, guest::DHCP_HOOK, netns::Namespace, port::Port,
    process::Daemon, sandbox::Sandbox, wait::until,
};

/// From power on to the shell; the processor is emulated, and this machine may be busy.
const BOOT: Duration = Duration::from_secs(600);
/// The longest that a line told to the shell may take.
const ANSWER: Duration = Duration::from_secs(90);
/// Silence after which a line is told once more: the serial line of a machine that was moved now and then loses bytes.
const SILENCE: Duration = Duration::from_secs(10);
const MOVED: Duration = Duration::from_secs(120);
/// Device by which the kernel moves a machine's frames itself, if it can.
const VHOST: &str = "/dev/vhost-net";
/// Said by the shell when it is ready.
const UP: &str = ":up:";
/// Path in the guest of the script that its DHCP client calls.
const HOOK: &str = "/dhcp";

/// The NIC's other end.
#[derive(Debug, Clone)]
pub enum Nic {
    /// A tap of the kernel's, which is made on the host, with a queue for each processor.
    Tap,
    /// A socket by which the switch shares the machine's memory; there is no device.
    VhostUser(PathBuf),
}

/// System that the machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// A kernel and busybox in its memory.
    Busybox,
    /// Debian on a disk, with systemd and cloud-init. What is written to the disk is forgotten.
    Debian,
}

/// Hardware of a machine.
#[derive(Debug, Clone)]
pub struct Hardware {
    pub processors: u32,
    pub nic: Nic,
    pub system: System,
}

impl Hardware {
    /// The least: busybox, and a tap.
    pub fn with_processors(processors: u32) -> Self {
        Self { processors, nic: Nic::Tap, system: System::Busybox }
    }

    /// QEMU's arguments, for a port on a host, where a tap is made if there is to be one.
    fn arguments(&self, host: &Namespace, port: &Port, qemu: &mut Command) -> Result<()> {
        let Port { tap, mac, .. } = port;
        let Self { processors, nic, system } = self;
        let megabytes = if *system == System::Debian { 512 } else { 128 };
        qemu.words(format!("-smp {processors} -m {megabytes}"));
        match nic {
            Nic::Tap => {
                let (several, multiqueue) = if *processors > 1 { ("on", "multi_queue") } else { ("off", "") };
                host.ip(format!("tuntap add dev {tap} mode tap {multiqueue}"))?;
                host.ip(format!("link set {tap} address {} up", port.tap_mac()))?;
                let vhost = if Path::new(VHOST).exists() { "on" } else { "off" };
                println!("{tap}: vhost-net is {vhost}");
                qemu.words(format!(
                    "-netdev tap,id=nic,ifname={tap},script=no,downscript=no,queues={processors},vhost={vhost} \
                     -device virtio-net-pci,netdev=nic,mac={mac},mq={several},vectors={}",
                    2 * processors + 2,
                ));
            }
            Nic::VhostUser(socket) => {
                // Without vectors: QEMU 7.2 takes those of such a NIC to KVM, also where there is none, and crashes.
                qemu.words(format!(
                    "-object memory-backend-memfd,id=memory,size={megabytes}M,share=on -machine memory-backend=memory \
                     -chardev socket,id=switch,path={},server=on,wait=off -netdev vhost-user,id=nic,chardev=switch \
                     -device virtio-net-pci,netdev=nic,mac={mac},vectors=0",
                    socket.display(),
                ));
            }
        }
        let (folder, setup) = match system {
            System::Busybox => ("guest", "setup"),
            System::Debian => ("debian", "cloud-guest"),
        };
        let image = fetched("vm")?.join(folder);
        let (kernel, archive, disk) = (image.join("vmlinuz"), image.join("initramfs"), image.join("disk"));
        if !archive.exists() {
            bail!("there is no {} (`cargo xtask {setup}` makes it)", archive.display());
        }
        qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
        if *system == System::Debian {
            qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,snapshot=on", disk.display()));
            // Nova's, by which cloud-init knows where it is.
            qemu.args(["-smbios", "type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova"]);
        }
        Ok(())
    }
}

/// The machine. It is switched off when dropped.
#[derive(Debug)]
pub struct Machine {
    qemu: Daemon,
    shell: BufReader<UnixStream>,
    monitor: PathBuf,
    hardware: Hardware,
    /// Number of the last line that the shell was told.
    number: u32,
    has_moved: bool,
}

impl Machine {
    /// Boots a machine on a host, which has that port as its NIC.
    pub fn boot(sandbox: &Sandbox, host: &Namespace, port: &Port, hardware: &Hardware) -> Result<Self> {
        let mut machine = Self::start(sandbox, host, port, hardware, None)?;
        machine.wait_for(UP, BOOT).with_context(|| sandbox.log_tails())?;
        machine.shell.get_ref().set_read_timeout(Some(SILENCE))?;
        Ok(machine)
    }

    fn start(
        sandbox: &Sandbox,
        host: &Namespace,
        port: &Port,
        hardware: &Hardware,
        incoming: Option<&Path>,
    ) -> Result<Self> {
        let name = if incoming.is_some() { "moved" } else { "machine" };
        let [shell, monitor] = ["shell", "qmp"].map(|kind| sandbox.path(format!("{name}.{kind}")));
        let mut qemu = host.command("qemu-system-x86_64")?;
        // One thread for all processors: see xtask's machines.
        qemu.words("-accel tcg,thread=single -cpu max -nodefaults -no-user-config -no-reboot -display none");
        hardware.arguments(host, port, &mut qemu)?;
        qemu.args(["-append", "console=ttyS0 loglevel=4 panic=-1 oops=panic random.trust_cpu=on"]);
        qemu.arg("-serial").arg(format!("file:{}", sandbox.log(&format!("{name}-console")).display()));
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        qemu.arg("-serial").arg(socket(&shell)).arg("-qmp").arg(socket(&monitor));
        if let Some(socket) = incoming {
            qemu.arg("-incoming").arg(format!("unix:{}", socket.display()));
        }
        qemu.stdin(Stdio::null());
        let qemu = Daemon::spawn(name, qemu, sandbox.log(name))?;
        let shell = until("the machine has a serial line", BOOT, || Ok(UnixStream::connect(&shell)?))
            .with_context(|| sandbox.log_tails())?;
        shell.set_read_timeout(Some(BOOT))?;
        let hardware = hardware.clone();
        Ok(Self { qemu, shell: BufReader::new(shell), monitor, hardware, number: 0, has_moved: false })
    }

    /// Tells its shell a line, which does no harm if it is told twice; what came of it, without what it says of its status, which must be good.
    pub fn told(&mut self, line: &str) -> Result<String> {
        self.number += 1;
        self.shell.get_ref().write_all(format!("{} {line}\n", self.number).as_bytes())?;
        let (text, status) = self.answer(line)?;
        ensure!(status == "0", "{line:?} ended with {status}:\n{text}");
        Ok(text)
    }

    /// Gets an address and routes from the network's DHCP server.
    pub fn dhcp(&mut self) -> Result<()> {
        // The shell reads lines, and the script has more than one.
        self.told(&format!("rm -f {HOOK}"))?;
        for line in DHCP_HOOK.lines() {
            self.told(&format!("echo {} >>{HOOK}", quoted(line)))?;
        }
        self.told(&format!("chmod +x {HOOK}"))?;
        self.told(&format!("udhcpc -i eth0 -f -q -n -t 40 -T 1 -O staticroutes -O mtu -s {HOOK} 2>&1"))?;
        Ok(())
    }

    /// The machine's own time since its boot: it stands still while the machine does.
    pub fn uptime(&mut self) -> Result<Duration> {
        seconds(&self.told("cut -d' ' -f1 /proc/uptime")?)
    }

    /// Moves to another host, where its tap is made, while it runs. `plug` has the tap served there before anything moves.
    pub fn migrate(
        self,
        sandbox: &Sandbox,
        host: &Namespace,
        port: &Port,
        plug: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let socket = sandbox.path("migration");
        let moved = Self::start(sandbox, host, port, &self.hardware, Some(&socket))?;
        let listens = || {
            ensure!(socket.exists());
            Ok(())
        };
        until("the new machine listens", BOOT, listens).with_context(|| sandbox.log_tails())?;
        plug()?;
        self.command(
            &json!({ "execute": "migrate", "arguments": { "uri": format!("unix:{}", socket.display()) } }),
        )?;
        until("the machine has moved", MOVED, || {
            let told = self.command(&json!({ "execute": "query-migrate" }))?;
            ensure!(told["status"] == "completed", "{told}");
            Ok(())
        })?;
        moved.shell.get_ref().set_read_timeout(Some(SILENCE))?;
        Ok(Self { number: self.number, has_moved: true, ..moved })
    }

    /// Has QEMU's monitor do something (its QMP reference).
    fn command(&self, command: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.monitor)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let mut said = |stream: &mut UnixStream, command: &Value| -> Result<Value> {
            writeln!(stream, "{command}")?;
            loop {
                let line: Value = serde_json::from_str(&lines.next().context("the monitor is gone")??)?;
                // A greeting and events come in between.
                match (line.get("return"), line.get("error")) {
                    (Some(value), _) => return Ok(value.clone()),
                    (_, Some(error)) => bail!("{command}: {error}"),
                    _ => {}
                }
            }
        };
        said(&mut stream, &json!({ "execute": "qmp_capabilities" }))?;
        said(&mut stream, command)
    }

    fn wait_for(&mut self, word: &str, time: Duration) -> Result<()> {
        self.shell.get_ref().set_read_timeout(Some(time))?;
        let mut line = String::new();
        while line.trim_end() != word {
            line.clear();
            ensure!(
                self.shell.read_line(&mut line).context("the machine says nothing")? > 0,
                "the machine is off"
            );
        }
        Ok(())
    }

    /// Lines up to the one with the status of the line that was told last, and that.
    fn answer(&mut self, told_line: &str) -> Result<(String, String)> {
        let (told, began) = (self.number.to_string(), Instant::now());
        let (mut text, mut line) = (String::new(), String::new());
        loop {
            match self.shell.read_line(&mut line) {
                Ok(0) => bail!("the machine is off, after {text:?}"),
                Ok(_) => {}
                // What came of a line so far is kept.
                Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < ANSWER => {
                    if self.has_moved {
                        self.shell.get_ref().write_all(format!("\n{told} {told_line}\n").as_bytes())?;
                    }
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("after {text:?}")),
            }
            let said = line.trim_end().strip_prefix(':').and_then(|rest| rest.strip_suffix(':'));
            match said.and_then(|said| said.split_once(':')) {
                Some((number, status)) if number == told => {
                    // The status stands in a line of its own, whether or not there was an end of the one before.
                    text.pop();
                    return Ok((text, status.to_owned()));
                }
                // Of a line that was told twice, or came in part.
                Some(_) => text.clear(),
                None => text.push_str(&line),
            }
            line.clear();
        }
    }

    /// Fails if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.qemu.check_running()
    }
}

/// Seconds as the kernel writes them.
pub fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.trim().parse().with_context(|| format!("no time: {text:?}"))?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
