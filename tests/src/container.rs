//! The agent in a container, as kolla runs one: privileged, in the host's namespaces of network and processes, with the host's
//! folders.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::resource::{Resource, getrlimit},
};

use crate::{
    command::{Words as _, require, run},
    netns::Namespace,
    program,
    sandbox::Sandbox,
};

/// More than the agent has threads.
const PROCESSES: u64 = 4096;

/// The image of the agent that was built last, in a store of its own; containers and store go on drop.
#[derive(Debug)]
pub struct Image {
    store: PathBuf,
    folder: PathBuf,
    name: String,
    prefix: String,
}

impl Image {
    /// Loads what `cargo xtask image` has made. The sandbox's folder becomes a shared mount, as /run of a host with systemd is.
    pub fn load(sandbox: &Sandbox) -> Result<Self> {
        require(&["podman", "runc"])?;
        let folder = sandbox.dir();
        let none = None::<&str>;
        mount(Some(folder), folder, none, MsFlags::MS_BIND, none).context("cannot mount the sandbox")?;
        mount(none, folder, none, MsFlags::MS_SHARED, none).context("cannot share the sandbox")?;
        // Not below a name that begins as the folder's: runc takes that for a mount around its root (`ParentsFilter` of
        // moby/sys/mountinfo compares the beginnings of texts).
        let store = folder.with_file_name(format!("podman-{}", sandbox.prefix()));
        fs::create_dir_all(&store)?;
        let mut image = Self {
            store,
            folder: folder.to_owned(),
            name: String::new(),
            prefix: sandbox.prefix().to_owned(),
        };
        let archive = archive()?;
        let said = run(image.podman().words("load --quiet --input").arg(&archive))?;
        let name = said.lines().find_map(|line| line.strip_prefix("Loaded image: "));
        name.with_context(|| format!("podman says {said}"))?.clone_into(&mut image.name);
        Ok(image)
    }

    fn podman(&self) -> Command {
        self.with_store(Command::new("podman"))
    }

    fn with_store(&self, mut podman: Command) -> Command {
        podman.arg("--root").arg(self.store.join("root")).arg("--runroot").arg(self.store.join("run"));
        podman.words("--storage-driver vfs --runtime runc --cgroup-manager cgroupfs --log-level error");
        podman
    }

    /// Writes a program that runs the image's in a container of that name. Where it is started is the host.
    pub fn program(&self, name: &str, propagation: &str) -> Result<PathBuf> {
        let mut podman = self.podman();
        podman.arg("run").arg("--rm");
        self.as_kolla(&mut podman, name, propagation)?;
        podman.arg(&self.name);
        let words: Vec<_> = podman.get_args().map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let file = self.folder.join(format!("container-{name}"));
        fs::write(&file, format!("#!/bin/sh\nexec podman {} \"$@\"\n", words.join(" ")))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        Ok(file)
    }

    /// Starts a container on the host with the folder of files that kolla-ansible has written for it, and no arguments.
    pub fn start(&self, host: &Namespace, name: &str, files: &Path) -> Result<()> {
        let mut podman = self.with_store(host.command("podman")?);
        podman.arg("run").arg("--detach");
        self.as_kolla(&mut podman, name, "shared")?;
        podman.arg("--volume").arg(format!("{}:/var/lib/kolla/config_files:ro", files.display()));
        run(podman.arg(&self.name))?;
        Ok(())
    }

    fn as_kolla(&self, podman: &mut Command, name: &str, propagation: &str) -> Result<()> {
        let files = getrlimit(Resource::RLIMIT_NOFILE)?.1;
        podman.words(format!("--name {}-{name} --privileged --network host --pid host", self.prefix));
        podman.words(format!("--ulimit nofile={files}:{files} --ulimit nproc={PROCESSES}:{PROCESSES}"));
        for folder in [Path::new("/run/netns"), &self.folder] {
            podman.arg("--volume").arg(format!("{folder}:{folder}:{propagation}", folder = folder.display()));
        }
        Ok(())
    }

    /// Exit status of what kolla-ansible asks in a container, whether its files have changed.
    pub fn compare_config(&self, name: &str) -> Result<i32> {
        let mut podman = self.podman();
        podman.words(format!(
            "exec --user root {}-{name} /usr/local/bin/kolla_set_configs --check",
            self.prefix
        ));
        podman.output()?.status.code().context("it was killed")
    }

    /// Names of the containers that run.
    pub fn running(&self) -> Result<Vec<String>> {
        let names = run(self.podman().words("ps --format {{.Names}}"))?;
        let own = names.lines().filter_map(|name| name.strip_prefix(&self.prefix)?.strip_prefix('-'));
        Ok(own.map(str::to_owned).collect())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        for words in ["rm --all --force --time 10", "rmi --all --force"] {
            if let Err(error) = run(self.podman().words(words)) {
                eprintln!("warning: podman {words}: {error:#}");
            }
        }
        let _ = fs::remove_dir_all(&self.store);
    }
}

/// The archive, which must not be of an older program than the one that is tested.
fn archive() -> Result<PathBuf> {
    let program = program::of_agent()?;
    let target = program.parent().and_then(Path::parent).context("the agent is in no target folder")?;
    let folder = target.join("image");
    let made = || -> Result<PathBuf> {
        let entries = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path()));
        let archive = entries
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "tar"));
        let archive = archive.context("there is none")?;
        let is_newer = fs::metadata(&archive)?.modified()? >= fs::metadata(&program)?.modified()?;
        ensure!(is_newer, "{} is older than {}", archive.display(), program.display());
        Ok(archive)
    };
    made().with_context(|| format!("no image in {} (`cargo xtask image` makes it)", folder.display()))
}
