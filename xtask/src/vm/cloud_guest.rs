//! `cargo xtask cloud-guest`: Debian with systemd and cloud-init, on a disk as a cloud's images have it, and the end-to-end tests
//! that boot it.
use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::Context as _;

use super::{archive::Archive, cache, guest, kernel};
use crate::{
    build,
    command::{cargo, run, run_quietly, say},
    debian, setup,
    test::need_root,
};

const SUITE: &str = "bookworm";
/// debootstrap resolves no virtual packages: the last is what python3-cryptography means by two of them.
const PACKAGES: &[&str] = &[
    "cloud-init",
    "curl",
    "dbus",
    "ifupdown",
    "iproute2",
    "isc-dhcp-client",
    "netbase",
    "openssh-server",
    "systemd-sysv",
    "udev",
    "python3-cffi-backend",
];
const DISK_SIZE: &str = "2G";
/// Bus, NIC and disk, and what the file system computes its sums with.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "virtio_blk", "crc32c_generic", "ext4"];

/// Finds the disk, and leaves the machine to systemd.
const INIT: &str = r#"mount -t ext4 /dev/vda /root || { echo 'no disk' >/dev/ttyS1; poweroff -f; }
for tree in dev proc sys; do mount --move /$tree /root/$tree; done
exec switch_root /root /sbin/init
"#;

/// The shell at the second serial line, which is there before anything else is.
const SHELL_SERVICE: &str = "[Unit]
DefaultDependencies=no
After=systemd-remount-fs.service
[Service]
ExecStart=/bin/sh /usr/local/sbin/shell
Type=idle
";

/// Makes the image, unless it is there, and runs the tests that boot it.
pub(crate) fn test() -> anyhow::Result<()> {
    need_root("a Debian is made, and booted on network namespaces")?;
    setup::for_cloud_guest()?;
    make(&cache()?)?;
    let agent = build::build(&build::Options { release: false })?;
    let mut command = cargo();
    command.args(["test", "--locked", "--package", "metadata-tests", "--test", "e2e"]);
    command.args(["--", "cloud_guests::", "--ignored", "--nocapture", "--test-threads=1"]);
    run(command.env("METADATA_AGENT_BIN", agent))
}

fn make(cache: &Path) -> anyhow::Result<()> {
    let folder = cache.join("debian");
    let disk = folder.join("disk");
    let kernel = guest::kernel(cache)?;
    let busybox = kernel::busybox(cache)?;
    let mut archive = Archive::default();
    archive.base(&busybox)?;
    archive.folder("root");
    archive.modules(&kernel.modules, MODULES, &busybox)?;
    archive.file("init", [guest::BEGINNING, INIT].concat().as_bytes());
    guest::boots(&folder, &kernel, archive)?;
    if disk.exists() {
        return Ok(());
    }
    say("installing Debian, which takes some minutes");
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.arg("--variant=minbase").arg(format!("--include={}", PACKAGES.join(",")));
    run_quietly(debootstrap.arg(SUITE).arg(&root).arg(debian::mirror()?))?;
    fs::write(root.join("usr/local/sbin/shell"), guest::SHELL)?;
    fs::write(root.join("etc/systemd/system/shell.service"), SHELL_SERVICE)?;
    // There are no others: cloud-init would set American English.
    fs::write(root.join("etc/cloud/cloud.cfg.d/10_locale.cfg"), "locale: C.UTF-8\n")?;
    let wants = root.join("etc/systemd/system/sysinit.target.wants");
    fs::create_dir_all(&wants)?;
    symlink("../shell.service", wants.join("shell.service"))?;
    // Its file system is made of the folder, without being mounted; what is in place is complete.
    let draft = folder.join("disk.draft");
    if draft.exists() {
        fs::remove_file(&draft)?;
    }
    run_quietly(
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&draft).arg(DISK_SIZE),
    )?;
    fs::rename(&draft, &disk)?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}
