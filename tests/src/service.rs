//! The agent as a service of its machine: the packaged unit, installed and started as the README tells, under systemd.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cloud::Chassis,
    command::{Words as _, run},
    nova,
    wait::until,
};

/// The unit as it is packaged.
pub const UNIT: &str = include_str!("../../packaging/metadata-agent.service");
pub const RUN_DIR: &str = "/run/metadata-agent";
/// The service namespace, which anybody on the machine can enter by this name.
pub const NETNS: &str = "metadata";
/// Emulated processors take their time.
pub const PATIENCE: Duration = Duration::from_secs(120);

const NAME: &str = "metadata-agent";
const BINARY: &str = "/usr/bin/metadata-agent";
/// Names the package that `cargo xtask vm-test` has made of the program.
const PACKAGE: &str = "METADATA_AGENT_PACKAGE";
/// The same, as a package of rpm's, and its upgrade.
const RPMS: [&str; 2] = ["METADATA_AGENT_RPM", "METADATA_AGENT_NEXT_RPM"];
/// Configuration files that the unit names, in its order.
const FILES: [&str; 3] =
    ["/etc/neutron/neutron.conf", "/etc/neutron/neutron_ovn_metadata_agent.ini", "/etc/metadata-agent.conf"];
/// Path that only a machine of the tests' own has.
const MACHINE: &str = "/run/vm";
/// Neutron's user, whose files the agent must be able to read.
const NEUTRON: u32 = 64_062;

/// The installed unit. It is not removed: its machine ends with the tests.
#[derive(Debug)]
pub struct Service {
    /// Our section.
    section: String,
}

impl Service {
    /// Installs unit, program and configuration; starts nothing.
    pub fn install(chassis: &impl Chassis) -> Result<Self> {
        ensure!(
            Path::new(MACHINE).exists(),
            "this installs a service: only in a machine of its own (`cargo xtask vm-test`)"
        );
        install_package()?;
        fs::create_dir_all("/etc/neutron")?;
        let metadata = format!(
            "[DEFAULT]\nnova_metadata_host = {}\nnova_metadata_port = {}\nmetadata_proxy_shared_secret = {}\n",
            nova::ADDRESS.ip(),
            nova::ADDRESS.port(),
            nova::SECRET
        );
        for (file, text) in FILES.iter().zip(["[DEFAULT]\ndebug = false\n", &metadata]) {
            fs::write(file, text)?;
            fs::set_permissions(file, fs::Permissions::from_mode(0o640))?;
            chown(file, Some(NEUTRON), Some(NEUTRON))?;
        }
        let options = chassis.agent_options();
        let lines: String = options.iter().map(|(_, line)| format!("{line}\n")).collect();
        let service = Self { section: format!("[metadata_ebpf]\n{lines}") };
        service.configure("")?;
        Ok(service)
    }

    /// The user of the process that guests talk to, which the package has made.
    pub fn guest_user(&self) -> Result<u32> {
        let users = fs::read_to_string("/etc/passwd")?;
        let line = users.lines().find_map(|line| line.strip_prefix("metadata-agent:x:"));
        let uid = line.and_then(|line| line.split(':').next()).context("there is no user metadata-agent")?;
        Ok(uid.parse()?)
    }

    /// Writes our section, with these lines at its end.
    pub fn configure(&self, more: &str) -> Result<()> {
        Ok(fs::write(FILES[2], format!("{}{more}", self.section))?)
    }

    /// Has a successor take over; its process, once it is the main one.
    pub fn reload(&self) -> Result<u32> {
        let former = self.pid()?;
        self.systemctl("reload")?;
        until("the successor is the main process", PATIENCE, || {
            let successor = self.pid()?;
            ensure!(successor != former);
            Ok(successor)
        })
    }

    /// Time for which the service manager waits for signs of life from the next start on; as the unit has it, if not
    /// told.
    pub fn set_watchdog(&self, patience: Option<&str>) -> Result<()> {
        let folder = Path::new("/run/systemd/system").join(format!("{NAME}.service.d"));
        match patience {
            Some(patience) => {
                fs::create_dir_all(&folder)?;
                fs::write(folder.join("watchdog.conf"), format!("[Service]\nWatchdogSec={patience}\n"))?;
            }
            None => fs::remove_dir_all(&folder)?,
        }
        run(Command::new("systemctl").arg("daemon-reload"))?;
        Ok(())
    }

    /// `systemctl <verb> metadata-agent`, which returns when it is done.
    pub fn systemctl(&self, verb: &str) -> Result<()> {
        run(Command::new("systemctl").words(verb).arg(NAME))?;
        Ok(())
    }

    /// One of the unit's properties.
    pub fn property(&self, name: &str) -> Result<String> {
        let text = run(Command::new("systemctl").words(format!("show --value --property {name} {NAME}")))?;
        Ok(text.trim_end().to_owned())
    }

    /// Several of them are as told, each as `name=value`.
    pub fn has(&self, expected: &[&str]) -> Result<()> {
        let names: Vec<_> = expected.iter().filter_map(|property| property.split('=').next()).collect();
        let found =
            run(Command::new("systemctl").words(format!("show --property {} {NAME}", names.join(","))))?;
        let missing = expected.iter().find(|property| !found.lines().any(|line| line == **property));
        ensure!(missing.is_none(), "not {expected:?} but\n{found}");
        Ok(())
    }

    /// The main process.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.property("MainPID")?.parse()?;
        ensure!(pid != 0, "the service has no process");
        Ok(pid)
    }

    /// All that it has said.
    pub fn log(&self) -> Result<String> {
        run(Command::new("journalctl").words(format!("--no-pager --output cat --unit {NAME}")))
    }

    /// Waits until it has said that once more than `before` times.
    pub fn wait_said(&self, words: &str, before: usize) -> Result<()> {
        until(&format!("the log says {words:?}"), PATIENCE, || {
            let log = self.log()?;
            ensure!(log.matches(words).count() > before, "it says\n{log}");
            Ok(())
        })
    }

    /// `metadata-agent show <what>`.
    pub fn show(&self, what: &str) -> Result<String> {
        agent(&format!("show {what}"))
    }

    /// `metadata-agent cleanup`.
    pub fn clean_up(&self) -> Result<()> {
        agent("cleanup")?;
        Ok(())
    }
}

/// Installs the package, or upgrades to it.
pub fn install_package() -> Result<()> {
    run(Command::new("dpkg").arg("--install").arg(package(PACKAGE)?))?;
    Ok(())
}

/// Installs the package of rpm's, or upgrades to the other one. On a machine of dpkg's rpm knows nothing of what is installed.
pub fn install_rpm(is_upgrade: bool) -> Result<()> {
    let package = package(RPMS[usize::from(is_upgrade)])?;
    run(Command::new("rpm").words("--upgrade --nodeps --force-debian").arg(package))?;
    Ok(())
}

/// Removes the package of rpm's.
pub fn remove_rpm() -> Result<()> {
    run(Command::new("rpm").words("--erase --force-debian").arg(NAME))?;
    Ok(())
}

fn package(variable: &str) -> Result<OsString> {
    std::env::var_os(variable).with_context(|| format!("{variable} names no package"))
}

/// Removes the package; with `purge` its configuration as well.
pub fn remove_package(purge: bool) -> Result<()> {
    run(Command::new("dpkg").args([if purge { "--purge" } else { "--remove" }, NAME]))?;
    Ok(())
}

/// The program as an operator calls it, with the files that the unit names.
fn agent(subcommand: &str) -> Result<String> {
    let files = FILES.map(|file| format!("--config-file {file}"));
    run(Command::new(BINARY).words(subcommand).words(files.join(" ")))
}
