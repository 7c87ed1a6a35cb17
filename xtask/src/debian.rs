//! Packages of any of Debian's suites, fetched and unpacked without installing anything.
//!
//! apt is given a sources list and state of its own, so the machine's stay as they are. Its mirror is used.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::command::{output, run_quietly, say};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The tree below `folder` that `fill` makes from packages of these suites: what is there already, unless asked for a
/// newer one.
pub(crate) fn unpacked(
    folder: &Path,
    suites: &[&str],
    refresh: bool,
    fill: impl FnOnce(&Apt, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // apt works in a folder of its own, so the name must be complete.
    let folder = folder.canonicalize()?;
    let root = folder.join("root");
    if refresh || !root.exists() {
        let apt = Apt::update(suites, &folder)?;
        replace(&root, |draft| fill(&apt, draft))?;
    }
    Ok(root)
}

/// Fills a folder beside and moves it into place, so that what is there is complete.
fn replace(root: &Path, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
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

/// apt with options that keep it to one folder.
pub(crate) struct Apt {
    options: PathBuf,
    downloads: PathBuf,
}

impl Apt {
    /// Reads what the suites have now.
    fn update(suites: &[&str], folder: &Path) -> anyhow::Result<Self> {
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
        fs::write(state.join("sources.list"), suites.iter().map(line).collect::<String>())?;
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
        say(&format!("reading what Debian's {} has", suites.join(", ")));
        run_quietly(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    /// One of apt's programs.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.options).current_dir(&self.downloads);
        command
    }

    /// Fetches packages and unpacks them below `root`.
    pub(crate) fn unpack(&self, packages: &[impl AsRef<str>], root: &Path) -> anyhow::Result<()> {
        self.remove_downloads()?;
        let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
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
pub(crate) fn mirror() -> anyhow::Result<String> {
    let format = "$(REPO_URI) $(LABEL) $(COMPONENT)";
    let text =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let mirror = text.lines().find_map(|line| line.strip_suffix(" Debian main"));
    mirror.map(str::to_owned).context(
        "this machine's apt knows no mirror of Debian (`apt-get update` must have run): nothing can be fetched",
    )
}
