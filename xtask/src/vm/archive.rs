//! The archive that a kernel unpacks as its first root.
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

/// The files of those modules and of what they need, in the order in which they can be loaded.
fn load_order(modules: &Path, all: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let index = read(&modules.join("modules.dep"))?;
    let built_in = read(&modules.join("modules.builtin"))?;
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().unwrap_or_default().replace('-', "_")
    };
    let lines = index.lines().filter_map(|line| line.split_once(':'));
    let needs: HashMap<String, (&str, &str)> =
        lines.map(|(path, needs)| (name(path), (path, needs))).collect();
    let mut order: Vec<PathBuf> = Vec::new();
    for wanted in all {
        let Some((path, needs)) = needs.get(*wanted) else {
            ensure!(built_in.lines().any(|path| name(path) == *wanted), "the kernel has no module {wanted}");
            continue;
        };
        // The last of a line is to be loaded first.
        for path in needs.split_whitespace().rev().chain([*path]) {
            let file = modules.join(path);
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Not every kernel decompresses its modules itself.
fn decompressed(module: &Path, busybox: &Path) -> anyhow::Result<Vec<u8>> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(module).with_context(|| format!("cannot read {}", module.display()));
    }
    let output = Command::new(busybox).args(["unxz", "-c"]).arg(module).output()?;
    ensure!(output.status.success(), "cannot decompress {}", module.display());
    Ok(output.stdout)
}

/// A cpio archive in the format that the kernel unpacks (its Documentation/driver-api/early-userspace).
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds the beginning of every machine: busybox, and the folders that it mounts file systems on.
    pub(super) fn base(&mut self, busybox: &Path) -> anyhow::Result<()> {
        for folder in ["bin", "dev", "proc", "sys", "modules"] {
            self.folder(folder);
        }
        self.console();
        self.file("bin/busybox", &fs::read(busybox)?);
        Ok(())
    }

    /// Those modules of a kernel's, with what they need, below `modules` by names that sort in the order of loading.
    pub(super) fn modules(&mut self, folder: &Path, wanted: &[&str], busybox: &Path) -> anyhow::Result<()> {
        for (index, module) in load_order(folder, wanted)?.iter().enumerate() {
            self.file(&format!("modules/{index:02}.ko"), &decompressed(module, busybox)?);
        }
        Ok(())
    }

    pub(super) fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), &[]);
    }

    pub(super) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, (0, 0), content);
    }

    /// Adds the device that the kernel opens for the first process.
    fn console(&mut self) {
        self.entry("dev/console", 0o020_600, (5, 1), &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            length(content.len()),
            0,
            0,
            device.0,
            device.1,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}
