//! One more chassis of a lab's OVN: a namespace with an Open vSwitch and an ovn-controller of its own.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{
    Datapath, Lab,
    daemons::{self, Switch},
};
use crate::{
    cloud::Chassis,
    command::{Words as _, run},
    netns::Namespace,
    sandbox::Sandbox,
};

#[derive(Debug)]
pub struct Neighbour {
    // Dropped in this order: who uses something goes before it.
    switch: Option<Switch>,
    pub(super) host: Namespace,
    sandbox: Sandbox,
    southbound: String,
}

impl Lab {
    /// Starts another chassis of that host name.
    pub fn add_chassis(&self, hostname: &str) -> Result<Neighbour> {
        let sandbox = Sandbox::create()?;
        let host = Namespace::create(&sandbox, "host")?;
        let southbound = self.daemons.southbound.sockets(&self.sandbox);
        let switch = Switch::start(&sandbox, &host, Datapath::Userspace, hostname, &southbound)
            .with_context(|| format!("the chassis did not start\n{}", sandbox.log_tails()))?;
        Ok(Neighbour { switch: Some(switch), host, sandbox, southbound })
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
