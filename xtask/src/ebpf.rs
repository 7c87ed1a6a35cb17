//! Compiles the eBPF programs: finds a compiler that can, says which, and runs it. Standard library only.
//!
//! Also compiled into `metadata-agent/build.rs`, so that a plain `cargo build` embeds what stands in the source now.
//!
//! The target has no precompiled `core`, so the compiler needs core's source and the unstable `-Z build-std`; and the
//! bitcode it emits can only be read by a linker of the same LLVM.
use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The bpf-linker that is used: the last release that loads the LLVM of the compiler instead of linking its own.
pub const LINKER_VERSION: &str = "0.10.4";
/// The LLVM that it speaks: rustc 1.95 to 1.96 have it.
pub const LLVM_MAJOR: &str = "22";

/// A compiler with core's source and the right LLVM.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// Name of the compiler, for messages.
    pub name: String,
    rustc: PathBuf,
    cargo: PathBuf,
    /// Folder of the LLVM library that the linker has to load.
    llvm: PathBuf,
}

/// Failure to find a toolchain: every candidate with what is wrong with it.
#[derive(Debug)]
pub struct NoToolchain(Vec<String>);

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "no compiler here can build the eBPF programs (`cargo xtask setup` installs one). Tried:"
        )?;
        for line in &self.0 {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

impl Toolchain {
    /// The first candidate that fits: the one named by `METADATA_EBPF_RUSTC`, the compiler in use, rustup's others,
    /// Debian's.
    pub fn find() -> Result<Self, NoToolchain> {
        let mut rejected = Vec::new();
        for (name, rustc) in candidates() {
            match Self::examine(&name, &rustc) {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => rejected.push(format!("{name} ({}): {reason}", rustc.display())),
            }
        }
        Err(NoToolchain(rejected))
    }

    fn examine(name: &str, rustc: &Path) -> Result<Self, String> {
        let version = stdout(Command::new(rustc).arg("-vV"))?;
        let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or("unknown");
        if llvm.split('.').next() != Some(LLVM_MAJOR) {
            return Err(format!("its LLVM is {llvm}, bpf-linker {LINKER_VERSION} needs {LLVM_MAJOR}"));
        }
        let sysroot = PathBuf::from(stdout(Command::new(rustc).args(["--print", "sysroot"]))?.trim());
        if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
            return Err("core's source is missing (rustup component add rust-src)".into());
        }
        let Some(llvm) = llvm_folder(&sysroot) else {
            return Err(format!(
                "no libLLVM {LLVM_MAJOR} in {}/lib nor among the system's libraries",
                sysroot.display()
            ));
        };
        let cargo =
            [sysroot.join("bin/cargo"), rustc.with_file_name("cargo")].into_iter().find(|path| path.exists());
        let cargo = cargo.ok_or("it has no cargo next to it")?;
        // A rustup proxy would choose again by itself: name the compiler it stands for.
        let real = sysroot.join("bin/rustc");
        let rustc = if real.exists() { real } else { rustc.to_path_buf() };
        let release = version.lines().find_map(|line| line.strip_prefix("release: ")).unwrap_or("?");
        Ok(Self { name: format!("{name}, rustc {release}, LLVM {LLVM_MAJOR}"), rustc, cargo, llvm })
    }

    /// Compiles the programs of the workspace at `root`, with build output under `target`; returns the object file.
    pub fn build(&self, root: &Path, target: &Path) -> Result<PathBuf, String> {
        let linker = linker(root).ok_or_else(|| {
            format!(
                "bpf-linker {LINKER_VERSION} is not installed: run `cargo xtask setup`, which installs it"
            )
        })?;
        let endian = if cfg!(target_endian = "big") { "bpfeb" } else { "bpfel" };
        let triple = format!("{endian}-unknown-none");
        // v3 has 32-bit arithmetic and jumps, in the kernel since 5.1.
        let flags = [
            format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            "-Ctarget-cpu=v3".into(),
            format!("-Clinker={}", linker.display()),
            // The object has the names of its sources, for the verifier's report: not those of this machine's folders.
            format!("--remap-path-prefix={}=/source", root.display()),
            format!("--remap-path-prefix={}=/cargo", cargo_home().display()),
        ];
        let mut command = Command::new(&self.cargo);
        command.current_dir(root);
        command.args([
            "build",
            "--locked",
            "--release",
            "-Z",
            "build-std=core",
            "--package",
            "metadata-ebpf",
        ]);
        command.args(["--bin", "metadata-datapath", "--target", &triple, "--target-dir"]).arg(target);
        // This may run inside another cargo, whose compiler, wrapper (clippy) and flags are not for this build.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if (text.starts_with("CARGO") && text != "CARGO_HOME" && !text.starts_with("CARGO_NET"))
                || text.starts_with("RUSTC")
                || ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTUP_TOOLCHAIN", "TARGET", "HOST"].contains(&&*text)
            {
                command.env_remove(&name);
            }
        }
        command.env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.env("LD_LIBRARY_PATH", &self.llvm);
        let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
        if !output.status.success() {
            return Err(format!(
                "the eBPF programs do not compile with {}:\n{command:?}\n{}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Ok(target.join(triple).join("release/metadata-datapath"))
    }
}

/// The bpf-linker of the right version: this workspace's own, or one on `PATH` or in cargo's folder.
pub fn linker(root: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [root.join("target/tools/bin"), cargo_home().join("bin")].into_iter();
    folders.chain(env::split_paths(&path)).map(|folder| folder.join("bpf-linker")).find(|program| {
        // It refuses to start without an LLVM to load, even to tell its version, hence not through `stdout`.
        program.exists() && linker_version(program).is_some_and(|version| version.contains(LINKER_VERSION))
    })
}

/// Cargo's folder of installed programs and caches.
pub fn cargo_home() -> PathBuf {
    let default = || Path::new(&env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

fn linker_version(program: &Path) -> Option<String> {
    let mut folders: Vec<OsString> = candidates()
        .into_iter()
        .filter_map(|(_, rustc)| stdout(Command::new(rustc).args(["--print", "sysroot"])).ok())
        .filter_map(|sysroot| llvm_folder(Path::new(sysroot.trim())))
        .map(PathBuf::into_os_string)
        .collect();
    folders.dedup();
    let mut command = Command::new(program);
    command.arg("--version").env("LD_LIBRARY_PATH", env::join_paths(folders).ok()?);
    stdout(&mut command).ok()
}

fn candidates() -> Vec<(String, PathBuf)> {
    let mut list = Vec::new();
    if let Some(rustc) = env::var_os("METADATA_EBPF_RUSTC") {
        list.push(("METADATA_EBPF_RUSTC".to_owned(), PathBuf::from(rustc)));
    }
    let in_use = env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    list.push(("the compiler in use".to_owned(), in_use));
    let rustup = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let rustup = rustup.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")));
    if let Some(entries) = rustup.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) {
        let mut toolchains: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        toolchains.sort();
        // Nightly toolchains sort first among the named ones and are what most eBPF developers have.
        toolchains.sort_by_key(|path| !path.to_string_lossy().contains("nightly"));
        for toolchain in toolchains {
            let name = toolchain.file_name().unwrap_or_default().to_string_lossy().into_owned();
            list.push((format!("rustup's {name}"), toolchain.join("bin/rustc")));
        }
    }
    list.push(("Debian's".to_owned(), PathBuf::from("/usr/bin/rustc")));
    list
}

/// The compiler's own LLVM library (rustup), or the system's that Debian's compiler uses.
fn llvm_folder(sysroot: &Path) -> Option<PathBuf> {
    let system = [
        PathBuf::from(format!("/usr/lib/{}-linux-gnu", env::consts::ARCH)),
        PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}/lib")),
    ];
    [sysroot.join("lib")].into_iter().chain(system).find(|folder| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let wanted = [format!("libLLVM-{LLVM_MAJOR}"), format!("libLLVM.so.{LLVM_MAJOR}")];
        entries.into_iter().any(|entry| {
            let name = entry.file_name();
            wanted.iter().any(|prefix| name.to_string_lossy().starts_with(prefix))
        })
    })
}

fn stdout(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run it: {error}"))?;
    if !output.status.success() {
        return Err(format!("it fails: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
