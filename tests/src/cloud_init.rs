//! cloud-init as Debian's suites have it, run for one datasource inside a guest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{cloud::Chassis, command::Words as _, guest::Guest};

/// Debian's, whose modules cloud-init needs.
pub const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = include_str!("cloud_init.py");

/// By Debian's suite: one that asks over IPv4 only, and one that asks over both families at once.
pub const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// Identifier as the firmware of an instance has it on AWS.
const AWS_INSTANCE: &str = "ec2e1916-9099-7caf-fd21-012345abcdef";

/// Datasources, each in a guest that it takes for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datasource {
    OpenStack,
    Ec2,
    /// Of a guest whose firmware says that it is on AWS, on which alone it asks for session tokens.
    Ec2OnAws,
}

/// Findings of cloud-init.
#[derive(Debug, Deserialize)]
pub struct Found {
    found: bool,
    pub address: String,
    pub instance_id: String,
    pub hostname: String,
    pub availability_zone: String,
    pub public_keys: Vec<String>,
    /// In hexadecimal digits.
    pub user_data: String,
    pub vendor_data: [Option<String>; 2],
    pub metadata: Value,
    pub ec2_metadata: Option<Value>,
    pub network: Option<Value>,
}

/// Lets the cloud-init of a suite ask for its instance's metadata inside the guest.
pub fn crawl(chassis: &impl Chassis, guest: &Guest, suite: &str, source: Datasource) -> Result<Found> {
    let modules = unpacked(suite)?;
    let folder = chassis.sandbox().path(format!("{}-{suite}-{source:?}", guest.port.tap));
    fs::create_dir(&folder)?;
    let nova = json!({ "system-product-name": "OpenStack Nova" });
    let (name, firmware) = match source {
        Datasource::OpenStack => ("OpenStack", nova),
        Datasource::Ec2 => ("Ec2", nova),
        Datasource::Ec2OnAws => {
            ("Ec2", json!({ "system-uuid": AWS_INSTANCE, "system-serial-number": AWS_INSTANCE }))
        }
    };
    // With the guest's own /sys, from which cloud-init knows its devices.
    let mut python = Command::new("ip");
    python.words(format!("netns exec {} {PYTHON} -B -c", guest.netns.name())).arg(SCRIPT).arg(name);
    python.arg(&folder).arg(firmware.to_string()).env("PYTHONPATH", modules).stdin(Stdio::null());
    let output = python.output()?;
    // A boot begins with nothing that another one kept.
    fs::remove_dir_all(&folder)?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{source:?} of {suite}: {}", output.status);
    let found: Found = serde_json::from_slice(&output.stdout)?;
    ensure!(found.found, "{source:?} of {suite} found nothing");
    Ok(found)
}

/// The modules of that suite's cloud-init.
fn unpacked(suite: &str) -> Result<PathBuf> {
    let modules = fetched("cloud-init")?.join(suite).join("root/usr/lib/python3/dist-packages");
    if !modules.join("cloudinit").exists() {
        bail!("there is no cloud-init in {} (`cargo xtask setup` unpacks it)", modules.display());
    }
    Ok(modules)
}

/// A folder of the target directory that `cargo xtask setup` fills.
pub fn fetched(name: &str) -> Result<PathBuf> {
    let ours = std::env::current_exe()?;
    // Tests are two directories below it.
    let folder = ours.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    Ok(folder.map(Path::to_owned).context("there is no target folder")?.join(name))
}
