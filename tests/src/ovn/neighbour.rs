//! One more chassis of a lab's OVN: a namespace with an Open vSwitch and an ovn-controller of its own.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

use super::{
    Datapath, FIRST_IFINDEX, Lab, MTU,
    daemons::{self, Switch},
};
use crate::{
    cloud::Chassis,
    command::{Words as _, run},
    guest::Guest,
    netns::Namespace,
    port::Port,
    sandbox::Sandbox,
};

#[derive(Debug)]
pub struct Neighbour {
    // Dropped in this order: who uses something goes before it.
    switch: Option<Switch>,
    pub(super) host: Namespace,
    sandbox: Sandbox,
    southbound: String,
    pub(super) datapath: Datapath,
    next_ifindex: AtomicU32,
}

impl Lab {
    /// Starts another chassis of that host name.
    pub fn add_chassis(&self, hostname: &str) -> Result<Neighbour> {
        let sandbox = Sandbox::create()?;
        let host = Namespace::create(&sandbox, "host")?;
        let southbound = self.daemons.southbound.sockets(&self.sandbox);
        let switch = Switch::start(&sandbox, &host, self.datapath, hostname, &southbound)
            .with_context(|| format!("the chassis did not start\n{}", sandbox.log_tails()))?;
        let next_ifindex = AtomicU32::new(FIRST_IFINDEX);
        Ok(Neighbour {
            switch: Some(switch),
            host,
            sandbox,
            southbound,
            datapath: self.datapath,
            next_ifindex,
        })
    }
}

impl Neighbour {
    /// `ovs-vsctl` on this chassis.
    pub fn vsctl(&self) -> Command {
        daemons::client("ovs-vsctl", &self.sandbox, daemons::OVS_SOCKET)
    }

    /// The chassis' name, its system-id.
    pub fn chassis_name(&self) -> Result<String> {
        let text = run(self.vsctl().words("get Open_vSwitch . external_ids:system-id"))?;
        Ok(text.trim().trim_matches('"').to_owned())
    }

    /// Makes the tap of a machine that runs here.
    pub fn start_tap(&self, guest: &Guest) -> Result<()> {
        guest.insert_nic(&self.host, self.next_ifindex.fetch_add(1, Ordering::Relaxed), MTU)
    }

    /// The tap is lost as when a machine is powered off; the row in Open_vSwitch stays.
    pub fn stop_tap(&self, guest: &Guest) -> Result<()> {
        self.host.ip(format!("link del {}", guest.port.tap))?;
        Ok(())
    }

    /// Adds the tap to the integration bridge with the external_ids that os-vif writes.
    pub fn plug(&self, port: &Port) -> Result<()> {
        super::plug(self.vsctl(), port)
    }

    pub fn unplug(&self, port: &Port) -> Result<()> {
        super::unplug(self.vsctl(), port)
    }

    /// The ifindex that a port's tap has now.
    pub fn ifindex(&self, port: &Port) -> Result<u32> {
        self.host.ifindex(&port.tap)
    }

    /// It dies: SIGKILL for all that OVN has there.
    pub fn die(&mut self) -> Result<()> {
        if let Some(mut switch) = self.switch.take() {
            switch.controller.kill()?;
            switch.vswitchd.kill()?;
            switch.ovs_database.kill()?;
        }
        Ok(())
    }
}

impl Chassis for Neighbour {
    fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    fn host(&self) -> &Namespace {
        &self.host
    }

    fn agent_options(&self) -> Vec<(&'static str, String)> {
        let ovs = format!("unix:{}", self.sandbox.path(daemons::OVS_SOCKET).display());
        vec![
            ("ovs", format!("ovsdb_connection = {ovs}")),
            ("ovn", format!("ovn_sb_connection = {}", self.southbound)),
        ]
    }
}
