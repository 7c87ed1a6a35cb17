//! Debian's kernels: which there are, and what of their packages a machine needs.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    command::{output, run_quietly},
    debian::{self, Apt},
};

/// A kernel of the list, and the suites in which its packages are; the newest there is taken.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    suites: &'static [&'static str],
}

/// The kernels that are tested: the oldest that the programs can run on, those of Debian's releases, and the newest.
const KERNELS: &[Kernel] = &[
    Kernel { name: "5.10", suites: &["bullseye"] },
    Kernel { name: "6.1", suites: &["bookworm"] },
    Kernel { name: "6.12", suites: &["trixie"] },
    Kernel { name: "newest", suites: &["trixie-backports", "sid", "experimental"] },
];

/// The suite of the static busybox that runs as a machine's init.
const TOOLS: &[&str] = &["bookworm"];
/// The generic kernel: the one for clouds lacks the file system that the machines see their files through.
const KERNEL_PACKAGE: &str = "linux-image-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Installed {
    /// Release, as `uname -r` says it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// The folder that has `modules.dep`.
    pub(super) modules: PathBuf,
    /// Everything of this kernel.
    pub(super) folder: PathBuf,
}

/// The kernels of these names, all without any.
pub(super) fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    names.iter().map(|name| find(name)).collect()
}

/// The kernel of that name.
pub(super) fn find(name: &str) -> anyhow::Result<&'static Kernel> {
    let found = KERNELS.iter().find(|kernel| kernel.name == name);
    found.with_context(|| {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        format!("there is no kernel {name} in the list, which has {}", known.join(", "))
    })
}

impl Kernel {
    /// The unpacked kernel: what is there already, unless asked to look for a newer one.
    pub(super) fn install(&self, cache: &Path, refresh: bool) -> anyhow::Result<Installed> {
        let folder = cache.join(self.name);
        let root = debian::unpacked(&folder, self.suites, refresh, |apt, draft| {
            apt.unpack(&kernel_packages(apt)?, draft)?;
            index_modules(draft)
        })?;
        let modules = modules(&root)?;
        let release = file_name(&modules);
        // Newer packages have it next to the modules.
        let images = [root.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.exists());
        let image = image.with_context(|| format!("there is no kernel image in {}", root.display()))?;
        Ok(Installed { release, image, modules, folder })
    }
}

/// The static busybox.
pub(super) fn busybox(cache: &Path) -> anyhow::Result<PathBuf> {
    let unpack = |apt: &Apt, draft: &Path| apt.unpack(&["busybox-static"], draft);
    let root = debian::unpacked(&cache.join("tools"), TOOLS, false, unpack)?;
    let program = root.join("bin/busybox");
    ensure!(program.exists(), "the package of busybox has no {}", program.display());
    Ok(program)
}

/// The packages that make up the kernel: one, or of late one each for image, modules and what is said of them.
fn kernel_packages(apt: &Apt) -> anyhow::Result<Vec<String>> {
    let mut depends = apt.command("apt-cache");
    depends.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"]);
    depends.args(["--no-breaks", "--no-replaces", "--no-enhances", KERNEL_PACKAGE]);
    let text = output(&mut depends)?;
    let parts = ["linux-base-", "linux-binary-", "linux-image-", "linux-modules-"];
    // Lines that begin with a name are the packages, others tell how they depend on each other.
    let packages = text.lines().filter(|line| parts.iter().any(|part| line.starts_with(part)));
    let packages: Vec<_> = packages.map(str::to_owned).collect();
    ensure!(!packages.is_empty(), "no suite has {KERNEL_PACKAGE}");
    Ok(packages)
}

/// Folder with the modules of the only kernel below `root`.
fn modules(root: &Path) -> anyhow::Result<PathBuf> {
    let folder = root.join("lib/modules");
    let mut entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    match (entries.next().transpose()?, entries.next()) {
        (Some(only), None) => Ok(only.path()),
        _ => bail!("not exactly one kernel in {}", folder.display()),
    }
}

/// Writes which module needs which others, as installing the packages would have.
fn index_modules(root: &Path) -> anyhow::Result<()> {
    if !root.join("lib").exists() {
        // Newer packages rely on a merged /usr; depmod looks here.
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    let release = file_name(&modules(root)?);
    run_quietly(Command::new("depmod").arg("-b").arg(root).arg(release))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
