//! The image that guests of the end-to-end tests boot from: a kernel, and an archive with busybox and the driver of a virtio
//! NIC.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    archive::Archive,
    kernel::{self, Installed},
};

/// Kernel of the guests: what most images have is older.
const KERNEL: &str = "6.1";
/// Names in the folder of the image.
const IMAGE: &str = "vmlinuz";
const ARCHIVE: &str = "initramfs";
/// Bus and NIC.
const MODULES: &[&str] = &["virtio_pci", "virtio_net"];

/// A shell for whoever is at the second serial line. It is told lines, each behind a number, and says `:<number>:<status>:`
/// after each, in a line of its own. The first serial line is the kernel's.
pub(super) const SHELL: &str = r#"stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo ":up:"
while read -r number line; do eval "$line"; status=$?; echo; echo ":$number:$status:"; done
"#;

/// Beginning of the first script of each guest: its file systems and its drivers.
pub(super) const BEGINNING: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do insmod "$module"; done
"#;

/// Script that runs before that shell.
const INIT: &str = r#"ip link set lo up
"#;

/// Makes the image in a folder of the cache, unless it is there as it would be made.
pub(super) fn make(cache: &Path) -> anyhow::Result<()> {
    let kernel = kernel(cache)?;
    let busybox = kernel::busybox(cache)?;
    let mut archive = Archive::default();
    archive.base(&busybox)?;
    archive.modules(&kernel.modules, MODULES, &busybox)?;
    archive.file("init", format!("{BEGINNING}{INIT}{SHELL}").as_bytes());
    let folder = cache.join("guest");
    boots(&folder, &kernel, archive)
}

/// The kernel that guests run.
pub(super) fn kernel(cache: &Path) -> anyhow::Result<Installed> {
    let kernel = kernel::choose(&[KERNEL.to_owned()])?;
    kernel.first().context("a name is one kernel")?.install(cache, false)
}

/// Has a folder be what a guest boots.
pub(super) fn boots(folder: &Path, kernel: &Installed, archive: Archive) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    replace(&folder.join(ARCHIVE), &archive.finish())?;
    let image = fs::read(&kernel.image).with_context(|| format!("cannot read {}", kernel.image.display()))?;
    replace(&folder.join(IMAGE), &image)
}

/// Writes a file as a whole, unless it is the same: a guest may be reading it.
fn replace(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    if fs::read(file).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let mut draft = file.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    fs::write(&draft, content).with_context(|| format!("cannot write {}", draft.display()))?;
    fs::rename(&draft, file).with_context(|| format!("cannot replace {}", file.display()))
}
