//! Open vSwitch with DPDK, as hosts for NFV have it, and the ports by which it meets machines: unpacked instead of installed, with
//! memory of its own instead of huge pages.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::Lab;
use crate::{
    cloud_init::fetched,
    command::{Words as _, run},
    port::Port,
    sandbox::Sandbox,
};

const PROGRAM: &str = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Registers the rings that packets are taken from. DPDK itself would look for it among its plug-ins, in a folder that only an
/// installed package has.
const RINGS: &str = "librte_mempool_ring.so.23";

/// Without huge pages, devices of the bus and files for other processes; its threads sleep when there is nothing to do, since
/// the machine is not theirs.
pub(super) const SETTINGS: &[&str] = &[
    "other_config:dpdk-init=true",
    "other_config:dpdk-extra=\"--no-huge --legacy-mem --no-shconf --no-pci --no-telemetry -m 512\"",
    "other_config:per-port-memory=true",
    "other_config:pmd-maxsleep=500",
];

/// Its ovs-vswitchd, from a command made of a program's name.
pub(super) fn vswitchd(sandbox: &Sandbox, command: impl FnOnce(&str) -> Result<Command>) -> Result<Command> {
    let root = fetched("dpdk")?.join("root");
    let program = root.join(PROGRAM);
    if !program.exists() {
        bail!("there is no {} (`cargo xtask setup` unpacks it)", program.display());
    }
    let libraries = root.join(LIBRARIES);
    let mut vswitchd = command(program.to_str().context("the target folder's name is not text")?)?;
    vswitchd.env("LD_PRELOAD", libraries.join(RINGS)).env("LD_LIBRARY_PATH", libraries);
    // It makes a folder, below /run if it is not told where.
    vswitchd.env("RUNTIME_DIRECTORY", sandbox.dir());
    Ok(vswitchd)
}

impl Lab {
    /// Adds a port whose other end is QEMU's, as os-vif does.
    pub fn plug_vhost_user(&self, port: &Port, socket: &Path) -> Result<()> {
        let tap = &port.tap;
        run(self
            .vsctl()
            .words(format!("add-port br-int {tap} -- set Interface {tap} type=dpdkvhostuserclient"))
            .arg(format!("options:vhost-server-path={}", socket.display()))
            .arg(port.external_ids()))?;
        Ok(())
    }

    /// Column of a port's Interface, as Open vSwitch has it.
    pub fn interface(&self, port: &Port, column: &str) -> Result<String> {
        Ok(run(self.vsctl().words(format!("get Interface {} {column}", port.tap)))?.trim().to_owned())
    }
}
