//! The .rpm in a root of its own: dnf installs it from a repository, upgrades and removes it, and its scripts run there.
//!
//! The root is made of a package as well. It has this machine's shell and systemd with their libraries, and rpm finds out what
//! those provide. Declared by hand is what the specs of distributions declare: systemd, /bin/sh, and the loader's `rtld(GNU_HASH)`.
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::{Release, rpm};
use crate::command::{output, root, run_quietly};

/// Programs that the package's scripts run.
const PROGRAMS: [&str; 3] = ["/usr/bin/sh", "/usr/bin/systemctl", "/usr/bin/systemd-sysusers"];
const OPTIONS: &str = "etc/metadata-agent.conf";
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/metadata-agent.service";
/// Presets as Fedora and its relatives have them.
const PRESETS: &str = "usr/lib/systemd/system-preset/99-default-disable.preset";
/// Folders of rpm and dnf, and of the repositories.
const OF_THE_INSTALLER: [&str; 3] = ["var/lib", "var/log", "var/cache"];

/// Checks the package by rpmlint, and a life of it in a root. `program` is what it was made of.
pub(super) fn check(package: &Path, program: &Path, folder: &Path, release: &Release) -> anyhow::Result<()> {
    let mut lint = Command::new("rpmlint");
    lint.arg("--config").arg(root().join("packaging/rpm/rpmlint.toml")).arg("--strict");
    run_quietly(lint.arg(package))?;
    let folder = folder.join("rpm-root");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let lived = life(package, program, &folder.canonicalize()?, release);
    fs::remove_dir_all(&folder)?;
    lived.context("the .rpm in a root of its own")
}

fn life(package: &Path, program: &Path, folder: &Path, release: &Release) -> anyhow::Result<()> {
    let machine = Machine { folder };
    let (now, later) = (machine.repository("now")?, machine.repository("later")?);
    fs::rename(base(folder, program)?, now.join("base.rpm"))?;
    fs::copy(package, now.join("metadata-agent.rpm"))?;
    fs::rename(rpm::write(program, folder, release, rpm::NEXT)?, later.join("metadata-agent.rpm"))?;
    for repository in [&now, &later] {
        run_quietly(Command::new("createrepo_c").arg("--quiet").arg(repository))?;
    }
    machine.dnf(&["now"], &["install", "base"])?;
    let before = machine.files()?;

    machine.dnf(&["now"], &["install", "metadata-agent"])?;
    // Sizes, digests, modes and owners of all files.
    machine.verify()?;
    let version =
        output(Command::new("chroot").arg(machine.root()).args(["/usr/bin/metadata-agent", "--version"]))?;
    ensure!(version.starts_with("metadata-agent "), "the program says {version}");
    let users = machine.read("etc/passwd")?;
    let mut users = users.lines().filter(|line| line.starts_with("metadata-agent:x:"));
    ensure!(
        users.next().is_some_and(|user| user.ends_with(":/nonexistent:/usr/sbin/nologin")),
        "there is no user of the package's"
    );
    ensure!(!machine.has(ENABLED), "it is enabled, where presets say no");

    let options = machine.read(OPTIONS)? + "admin_listen = 127.0.0.1:9675\n";
    fs::write(machine.root().join(OPTIONS), &options)?;
    machine.dnf(&["now", "later"], &["upgrade", "metadata-agent"])?;
    let installed = output(machine.rpm().args(["-q", "--queryformat", "%{release}\n", "metadata-agent"]))?;
    ensure!(installed == "2\n", "after the upgrade there is release {installed}");
    ensure!(machine.read(OPTIONS)? == options, "the upgrade has changed the configuration");
    let new = machine.read(&format!("{OPTIONS}.rpmnew"))?;
    ensure!(
        new.ends_with(rpm::NEXT.options),
        "the configuration of the next release is not beside it: {new}"
    );

    machine.dnf(&["now"], &["remove", "metadata-agent"])?;
    let left: Vec<_> = machine.files()?.difference(&before).cloned().collect();
    // The user stays, as users do: files could be its own. So does what an administrator wrote.
    let expected = ["etc/metadata-agent.conf.rpmnew", "etc/metadata-agent.conf.rpmsave"];
    let of_users = ["etc/.pwd.lock", "etc/group", "etc/gshadow", "etc/passwd", "etc/shadow"];
    let left: Vec<_> = left.iter().filter(|file| !of_users.contains(&file.as_str())).collect();
    ensure!(left == expected, "the removed package leaves {left:?}");
    ensure!(machine.read(&format!("{OPTIONS}.rpmsave"))? == options, "what was written is not kept");

    // Where the administrator wants it.
    fs::write(
        machine.root().join("usr/lib/systemd/system-preset/10-site.preset"),
        "enable metadata-agent.service\n",
    )?;
    machine.dnf(&["now"], &["install", "metadata-agent"])?;
    ensure!(machine.has(ENABLED), "it is not enabled, where a preset says so");
    machine.dnf(&["now"], &["remove", "metadata-agent"])?;
    ensure!(!machine.has(ENABLED), "the removed package is enabled still");
    Ok(())
}

/// A root and repositories below a folder.
struct Machine<'a> {
    folder: &'a Path,
}

impl Machine<'_> {
    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Folder of a repository.
    fn repository(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// dnf with those repositories and none of the machine's own.
    fn dnf(&self, repositories: &[&str], task: &[&str]) -> anyhow::Result<()> {
        let mut dnf = Command::new("dnf");
        dnf.arg(format!("--installroot={}", self.root().display()));
        dnf.args(["--releasever=1", "--noplugins", "--nogpgcheck", "--assumeyes", "--quiet"]);
        dnf.args(["--setopt=reposdir=/nonexistent", "--setopt=keepcache=0"]);
        dnf.arg(format!("--setopt=cachedir={}", self.folder.join("cache").display()));
        for name in repositories {
            dnf.arg(format!("--repofrompath={name},{}", self.folder.join(name).display()));
        }
        run_quietly(dnf.args(task))
    }

    fn rpm(&self) -> Command {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(self.root());
        rpm
    }

    /// Fails for a file that is not as the package has it.
    fn verify(&self) -> anyhow::Result<()> {
        run_quietly(self.rpm().args(["--verify", "metadata-agent"]))
    }

    fn has(&self, file: &str) -> bool {
        // Where a link leads is another root's business.
        self.root().join(file).symlink_metadata().is_ok()
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.root().join(file)).with_context(|| format!("cannot read /{file}"))
    }

    /// All files, and folders of the package's own name. The installer's are left out, and folders that other packages have as well.
    fn files(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut find = Command::new("find");
        find.args([
            ".",
            "(",
            "-not",
            "-type",
            "d",
            "-o",
            "-path",
            "*metadata-agent*",
            ")",
            "-printf",
            "%P\n",
        ]);
        let all = output(find.current_dir(self.root()))?;
        let is_its = |file: &&str| !OF_THE_INSTALLER.iter().any(|folder| file.starts_with(folder));
        Ok(all.lines().filter(is_its).map(str::to_owned).collect())
    }
}

/// The package of what a root needs to have the other one installed, and its program run.
fn base(folder: &Path, program: &Path) -> anyhow::Result<PathBuf> {
    let tree = folder.join("base");
    let mut files: BTreeSet<String> = PROGRAMS.map(str::to_owned).into();
    for program in PROGRAMS.iter().map(Path::new).chain([program]) {
        // A library's line has its path, maybe behind its name and an arrow.
        let libraries = output(Command::new("ldd").arg(program))?;
        files.extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    // Folders of programs and libraries are one, as on machines of today.
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(tree.join("usr").join(name))?;
        symlink(format!("usr/{name}"), tree.join(name))?;
    }
    for file in &files {
        let inside = tree.join(file.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().context("no folder")?)?;
        fs::copy(file, &inside).with_context(|| format!("cannot copy {file}"))?;
        fs::set_permissions(inside, fs::Permissions::from_mode(0o755))?;
    }
    let presets = tree.join(PRESETS);
    fs::create_dir_all(presets.parent().context("no folder")?)?;
    fs::write(presets, "disable *\n")?;
    let systemd = output(Command::new("systemctl").arg("--version"))?;
    let systemd = systemd.split_whitespace().nth(1).context("systemd has no version")?;
    let spec = format!(
        "Name: base\nVersion: 1\nRelease: 1\nSummary: Shell, systemd and libraries of this machine\nLicense: none\n\
         AutoReq: no\nProvides: systemd = {systemd}\nProvides: /bin/sh\nProvides: rtld(GNU_HASH)\n%description\n%{{summary}}\n\
         %install\nmkdir -p %{{buildroot}}\ncp -a %{{_tree}}/. %{{buildroot}}/\n%files\n/*\n"
    );
    rpm::build(&spec, &tree, folder, "0")
}
