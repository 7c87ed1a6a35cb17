//! `cargo xtask dist`: what is given to others, in `target/dist`: packages for Debian and for distributions of rpm, a container
//! image, the program's debug symbols, a bill of materials, the sources with all crates, and checksums.
//!
//! Everything has the time of the commit, and no path of the machine that built it, so that two builds are the same.
mod deb;
mod image;
mod rpm;
mod rpm_root;
mod sbom;
mod source;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::{
    build,
    command::{self, cargo, output, root, run_quietly, say},
    ebpf::cargo_home,
    setup,
};

/// Whom packages name.
const MAINTAINER: &str = "The maintainers of metadata-ebpf <maintainers@metadata-ebpf.invalid>";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Build everything once more elsewhere, and fail if a byte differs.
    #[arg(long)]
    check: bool,
    /// Package that program, which was built already, rather than build one.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    program: Option<PathBuf>,
}

/// Makes all of it, from what is committed.
pub(crate) fn dist(options: &Options) -> anyhow::Result<()> {
    setup::for_dist()?;
    let changed = output(Command::new("git").args(["status", "--porcelain"]).current_dir(root()))?;
    ensure!(changed.is_empty(), "only what is committed is given to others; there are changes:\n{changed}");
    let release = Release::of_head()?;
    let program = match &options.program {
        Some(program) => program.to_owned(),
        None => build_release(&build::target(), &release)?,
    };
    let made = make(&build::target().join("dist"), &program, &release)?;
    check_deb(of_kind(&made, "deb")?)?;
    rpm_root::check(of_kind(&made, "rpm")?, &program, &build::target(), &release)?;
    if options.check {
        let elsewhere = build::target().join("dist-again");
        let again = make(&elsewhere.join("out"), &build_release(&elsewhere, &release)?, &release)?;
        for (one, other) in made.iter().zip(&again) {
            let is_same = fs::read(one)? == fs::read(other)?;
            ensure!(is_same, "{} and {} differ", one.display(), other.display());
        }
        say("both builds are the same, byte for byte");
        fs::remove_dir_all(elsewhere)?;
    }
    for file in &made {
        println!("{}", file.display());
    }
    Ok(())
}

/// The one of that kind.
fn of_kind<'a>(made: &'a [PathBuf], kind: &str) -> anyhow::Result<&'a Path> {
    let found = made.iter().find(|path| path.extension().is_some_and(|extension| extension == kind));
    found.map(PathBuf::as_path).with_context(|| format!("there is no .{kind}"))
}

/// Checks the package with Debian's own checker.
fn check_deb(package: &Path) -> anyhow::Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error,warning", "--allow-root", "--tag-display-limit", "0"]);
    run_quietly(lintian.arg(package))
}

/// Makes all of it from a program that is built.
fn make(folder: &Path, program: &Path, release: &Release) -> anyhow::Result<Vec<PathBuf>> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let symbols = folder.join(format!("metadata-agent_{}_{}.debug", release.version, deb::ARCHITECTURE));
    run_quietly(Command::new("objcopy").arg("--only-keep-debug").arg(program).arg(&symbols))?;
    let mut made = vec![
        deb::write(program, folder, release)?,
        rpm::write(program, folder, release, rpm::FIRST)?,
        image::write(program, folder, release)?,
        symbols,
        sbom::write(folder, release)?,
        source::write(folder, release)?,
    ];
    let names: Vec<_> = made.iter().filter_map(|path| path.file_name()).collect();
    let sums = output(Command::new("sha256sum").args(names).current_dir(folder))?;
    let file = folder.join("SHA256SUMS");
    fs::write(&file, sums)?;
    made.push(file);
    Ok(made)
}

/// Packages of a program that was built already, for a machine of the tests.
#[derive(Debug)]
pub(crate) struct Packages {
    pub(crate) deb: PathBuf,
    /// One, and its upgrade.
    pub(crate) rpms: [PathBuf; 2],
}

impl Packages {
    pub(crate) fn of(program: &Path) -> anyhow::Result<Self> {
        let folder = build::target().join("package");
        fs::create_dir_all(&folder)?;
        let (folder, release) = (folder.canonicalize()?, Release::of_head()?);
        let rpm = |edition| rpm::write(program, &folder, &release, edition);
        Ok(Self { deb: deb::write(program, &folder, &release)?, rpms: [rpm(rpm::TRIAL)?, rpm(rpm::NEXT)?] })
    }
}

/// A container image of a program that was built already, for the tests.
pub(crate) fn image_of(program: &Path) -> anyhow::Result<PathBuf> {
    let folder = build::target().join("image");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    image::write(program, &folder, &Release::of_head()?)
}

/// Version and time of what is built.
#[derive(Debug)]
struct Release {
    version: String,
    /// Seconds since 1970, as `SOURCE_DATE_EPOCH` has them.
    time: String,
}

impl Release {
    /// The time as documents have it.
    fn created(&self) -> anyhow::Result<String> {
        let time = output(
            Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"]).arg(format!("@{}", self.time)),
        )?;
        Ok(time.trim().to_owned())
    }

    fn of_head() -> anyhow::Result<Self> {
        let git = |words: &[&str]| {
            let text = output(Command::new("git").args(words).current_dir(root()))?;
            anyhow::Ok(text.trim().to_owned())
        };
        // Of the workspace: `xtask` has it as well.
        let version = env!("CARGO_PKG_VERSION");
        let (time, commit) =
            (git(&["log", "-1", "--format=%ct"])?, git(&["log", "-1", "--format=%h", "--abbrev=10"])?);
        if git(&["tag", "--points-at", "HEAD"])?.lines().any(|tag| tag == format!("v{version}")) {
            return Ok(Self { version: version.to_owned(), time });
        }
        let day = git(&["log", "-1", "--format=%cd", "--date=format:%Y%m%d%H%M%S"])?;
        // A commit after a release sorts behind it, and before the next one.
        Ok(Self { version: format!("{version}+{day}.{commit}"), time })
    }
}

/// The program with optimisations, without the names of this machine's folders.
fn build_release(target: &Path, release: &Release) -> anyhow::Result<PathBuf> {
    let home = cargo_home();
    let remaps = [(root(), "/source"), (home.as_path(), "/cargo"), (target, "/target")];
    let flags: Vec<String> =
        remaps.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
    let mut build = cargo();
    build.args(["build", "--locked", "--release", "--package", "metadata-agent", "--target-dir"]).arg(target);
    // In C as well, for the crates that are written in it.
    let c_flags = remaps.map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
    build.env("CFLAGS", c_flags.join(" ")).env("SOURCE_DATE_EPOCH", &release.time);
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command::run(&mut build)?;
    Ok(target.join("release/metadata-agent"))
}

/// Man page and completions, as the program's own command line has them.
fn manual(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut write = cargo();
    write.args(["run", "--locked", "--quiet", "--package", "metadata-agent", "--example", "manual", "--"]);
    command::run(write.arg(folder)).context("the man page cannot be made")
}
