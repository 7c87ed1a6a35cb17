//! Archive that a machine starts from, with busybox, a few modules, and the scripts that make it a host.
//!
//! From there on the machine sees this machine's files, read-only, with a memory of its own for what it writes.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    archive::Archive,
    kernel::{self, Installed},
    quoted,
};

/// Modules that are needed to see this machine's files: the bus, the file system over it, and the layer that takes
/// writes.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Names of archives, before the process that wrote them.
const PREFIX: &str = "initramfs-";

/// Runs from the archive. Whatever fails ends the machine, with the reason on the second serial line.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/null >/dev/ttyS1 2>&1
echo "linux $(uname -r)"
fail() { echo "the machine cannot start: $1"; poweroff -f; }
for module in /modules/*; do insmod "$module" || fail "$module"; done
# The files are this machine's own and do not change while it runs: caching them is safe, and fast.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 host /host || fail 'no files'
mount -t tmpfs writes /writes
mkdir /writes/upper /writes/work
mount -t overlay -o lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work root /root || fail 'no overlay'
mount -t tmpfs run /root/run
mkdir -p /root/run/vm /root/lib/modules
mount --bind "/host$MODULES" /root/lib/modules || fail 'no modules'
cp /bin/busybox /*.sh /vm-test.service /root/run/vm/
for tree in dev proc sys; do mount --move /$tree /root/$tree; done
exec switch_root /root /run/vm/busybox sh /run/vm/host.sh
"#;

/// Runs with this machine's programs, and leaves the machine to systemd. What is enabled or mounted here is not wanted
/// there, nor are systemd's first steps, of which one empties /tmp; and the machine is no container, even if this one is.
const HOST: &str = r#"
rm -rf /etc/systemd/system/*.wants /usr/lib/systemd/system/sysinit.target.wants /usr/lib/systemd/system-generators
rm -f /.dockerenv /run/.containerenv
mkdir -p /run/systemd/system /run/netns
cp /run/vm/vm-test.service /run/systemd/system/
chmod 644 /run/systemd/system/vm-test.service
exec /usr/lib/systemd/systemd --unit=vm-test.service --show-status=no
"#;

/// The tests, as a service of a machine that has started.
const SERVICE: &str = "[Unit]
DefaultDependencies=no
Wants=basic.target systemd-journald.service systemd-sysctl.service
After=basic.target systemd-sysctl.service
[Service]
Type=oneshot
ExecStart=/run/vm/busybox sh /run/vm/service.sh
StandardOutput=file:/dev/ttyS1
StandardError=inherit
";

/// Runs the tests and ends the machine. Modules that a hypervisor's services load are loaded; all others (filters,
/// schedulers, connection tracking) the kernel asks for itself, as it does in production.
const RUN: &str = r#"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run LC_ALL=C
ip link set lo up
modprobe -a openvswitch tun
# Open vSwitch counts processors only once the machine has been up for ten seconds, and believes that it has none before.
while read -r up _ </proc/uptime && [ "${up%%.*}" -lt 11 ]; do sleep 0.2; done
sh /run/vm/test.sh
echo "vm-test: ended with $?"
/run/vm/busybox poweroff -f
"#;

/// The archive of one run, removed when dropped.
#[derive(Debug)]
pub(super) struct Initramfs {
    pub(super) file: PathBuf,
}

impl Initramfs {
    /// Writes the archive for a machine of that name that runs `test`.
    pub(super) fn write(name: &str, kernel: &Installed, cache: &Path, test: &str) -> anyhow::Result<Self> {
        let busybox = kernel::busybox(cache)?;
        let mut archive = Archive::default();
        for folder in ["host", "writes", "root"] {
            archive.folder(folder);
        }
        archive.base(&busybox)?;
        archive.modules(&kernel.modules, MODULES, &busybox)?;
        let modules = kernel.modules.parent().unwrap_or(&kernel.modules).to_string_lossy();
        let init = INIT.replace("\"/host$MODULES\"", &quoted(&format!("/host{modules}")));
        archive.file("init", init.as_bytes());
        archive.file("host.sh", HOST.as_bytes());
        archive.file("vm-test.service", SERVICE.as_bytes());
        archive.file("service.sh", RUN.as_bytes());
        archive.file("test.sh", test.as_bytes());
        // Another run may be using its own; one that was killed could not remove it.
        sweep(&kernel.folder)?;
        let file = kernel.folder.join(format!("{PREFIX}{}-{name}", std::process::id()));
        fs::write(&file, archive.finish()).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { file })
    }
}

impl Drop for Initramfs {
    fn drop(&mut self) {
        // One that stays is small, and below target.
        let _ = fs::remove_file(&self.file);
    }
}

/// Removes the archives of runs that are no more.
fn sweep(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let run = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if run.and_then(|run| run.split('-').next()).is_some_and(|pid| !Path::new("/proc").join(pid).exists())
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
