//! Debian's kernels: which there are, and their packages, fetched and unpacked without installing anything.
//!
//! apt is given a sources list and state of its own, so the machine's stay as they are. Its mirror is used.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::command::{output, run_quietly, say};

/// A kernel of the list, and the suites in which its packages are; the newest there is taken.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    suites: &'static [&'static str],
    /// What its passing means, where that is not what one would think.
    pub(super) note: &'static str,
}

/// The kernels that are tested: those of Debian's releases, and the newest.
const KERNELS: &[Kernel] = &[
    Kernel { name: "5.10", suites: &["bullseye"], note: "too old: the agent refuses it" },
    Kernel { name: "6.1", suites: &["bookworm"], note: "" },
    Kernel { name: "6.12", suites: &["trixie"], note: "" },
    Kernel { name: "newest", suites: &["trixie-backports", "sid", "experimental"], note: "" },
];

/// Also the suite of the static busybox that runs as a machine's init.
const TOOLS: Kernel = Kernel { name: "tools", suites: &["bookworm"], note: "" };
/// The generic kernel: the one for clouds lacks the file system that the machines see their files through.
const KERNEL_PACKAGE: &str = "linux-image-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Installed {
    /// What `uname -r` says in it.
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

fn find(name: &str) -> anyhow::Result<&'static Kernel> {
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
        let root = folder.join("root");
        if refresh || !root.exists() {
            let apt = Apt::update(self, &folder)?;
            unpack(&root, |draft| {
                apt.unpack(&apt.kernel_packages()?, draft)?;
                index_modules(draft)
            })?;
        }
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
    let folder = cache.join(TOOLS.name);
    let root = folder.join("root");
    if !root.exists() {
        let apt = Apt::update(&TOOLS, &folder)?;
        unpack(&root, |draft| apt.unpack(&["busybox-static".to_owned()], draft))?;
    }
    let program = root.join("bin/busybox");
    ensure!(program.exists(), "the package of busybox has no {}", program.display());
    Ok(program)
}

/// Fills a folder beside and moves it into place, so that what is there is complete.
fn unpack(root: &Path, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let draft = root.with_extension("draft");
    for old in [&draft, root] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    fs::create_dir_all(&draft)?;
    fill(&draft)?;
    fs::rename(&draft, root)?;
    Ok(())
}

/// Where the modules of the only kernel below `root` are.
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

/// apt with options that keep it to one folder.
struct Apt {
    options: PathBuf,
    downloads: PathBuf,
}

impl Apt {
    /// Reads what the suites have now.
    fn update(kernel: &Kernel, folder: &Path) -> anyhow::Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: the package debian-archive-keyring has it"
        );
        let state = folder.join("apt");
        for part in ["lists/partial", "archives/partial", "parts"] {
            fs::create_dir_all(state.join(part))?;
        }
        let mirror = mirror()?;
        let line = |suite: &&str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(state.join("sources.list"), kernel.suites.iter().map(line).collect::<String>())?;
        // Without this, experimental and backports would only be taken on request.
        fs::write(state.join("preferences"), "Package: *\nPin: release *\nPin-Priority: 500\n")?;
        fs::write(state.join("status"), "")?;
        let path = |name: &str| state.join(name).display().to_string();
        let options = [
            ("Dir::State", path("")),
            ("Dir::State::lists", path("lists")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("")),
            ("Dir::Cache::archives", path("archives")),
            ("Dir::Etc::SourceList", path("sources.list")),
            ("Dir::Etc::SourceParts", path("parts")),
            ("Dir::Etc::Preferences", path("preferences")),
            ("Dir::Etc::PreferencesParts", path("parts")),
            // Its user for downloads cannot write here.
            ("APT::Sandbox::User", "root".into()),
            ("APT::Architecture", "amd64".into()),
            ("Acquire::Languages", "none".into()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".into()),
        ];
        let options = options.map(|(name, value)| format!("{name} \"{value}\";\n"));
        let apt = Self { options: state.join("apt.conf"), downloads: state.join("archives") };
        fs::write(&apt.options, options.concat())?;
        say(&format!("reading what Debian's {} has", kernel.suites.join(", ")));
        run_quietly(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.options).current_dir(&self.downloads);
        command
    }

    /// The packages that make up the kernel: one, or of late one each for image, modules and what is said of them.
    fn kernel_packages(&self) -> anyhow::Result<Vec<String>> {
        let mut depends = self.command("apt-cache");
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

    /// Fetches packages and unpacks them below `root`.
    fn unpack(&self, packages: &[String], root: &Path) -> anyhow::Result<()> {
        self.remove_downloads()?;
        say(&format!("fetching {}", packages.join(", ")));
        run_quietly(self.command("apt-get").args(["-q", "download"]).args(packages))?;
        for package in self.downloaded()? {
            run_quietly(Command::new("dpkg-deb").arg("-x").arg(package).arg(root))?;
        }
        self.remove_downloads()
    }

    fn downloaded(&self) -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.downloads)?.flatten().map(|entry| entry.path());
        Ok(entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
    }

    fn remove_downloads(&self) -> anyhow::Result<()> {
        for package in self.downloaded()? {
            fs::remove_file(package)?;
        }
        Ok(())
    }
}

/// The mirror that this machine has Debian itself from.
fn mirror() -> anyhow::Result<String> {
    let format = "$(REPO_URI) $(LABEL) $(COMPONENT)";
    let text =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let mirror = text.lines().find_map(|line| line.strip_suffix(" Debian main"));
    mirror.map(str::to_owned).context(
        "this machine's apt knows no mirror of Debian (`apt-get update` must have run): no kernels can be fetched",
    )
}
