//! Operations of tests on the control plane, and their view of what agents write there.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    Lab, daemons,
    pki::{Credentials, Pki},
};
use crate::command::{Words as _, run};

/// A row of Chassis_Private.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChassisPrivate {
    pub uuid: String,
    pub external_ids: BTreeMap<String, String>,
}

impl Lab {
    /// SIGKILL for every server of the Southbound.
    pub fn kill_southbound(&mut self) -> Result<()> {
        self.daemons.southbound.kill()
    }

    /// Starts those servers of the Southbound that do not run.
    pub fn start_southbound(&mut self) -> Result<()> {
        self.daemons.southbound.resume(&self.sandbox, &self.host)
    }

    /// SIGKILL for one server of the Southbound, by its place among the remotes.
    pub fn kill_southbound_server(&mut self, index: usize) -> Result<()> {
        self.daemons.southbound.kill_one(index)
    }

    pub fn signal_southbound_server(&self, index: usize, signal: Signal) -> Result<()> {
        self.daemons.southbound.signal(index, signal)
    }

    /// The place of the cluster's leader among the remotes, once there is one.
    pub fn southbound_leader(&self) -> Result<usize> {
        self.daemons.southbound.leader(&self.sandbox)
    }

    /// Remotes by which the agent finds each server.
    pub fn southbound_remotes(&self) -> Vec<String> {
        self.daemons.southbound.remotes()
    }

    /// The authorities behind the Southbound's certificates.
    pub fn pki(&self) -> Result<&Pki> {
        self.daemons.southbound.pki()
    }

    /// The files with which the agent is configured.
    pub fn agent_credentials(&self) -> Result<&Credentials> {
        self.daemons.southbound.agent_credentials()
    }

    /// Ends ovn-controller as an operator does: it takes its rows out of the Southbound.
    pub fn stop_controller(&mut self) -> Result<()> {
        let socket = self.sandbox.path(format!("ovn-controller.{}.ctl", self.daemons.controller.id()));
        run(Command::new("ovn-appctl").words("--timeout=30 -t").arg(socket).arg("exit"))?;
        self.daemons.controller.wait()?;
        Ok(())
    }

    /// SIGKILL; its rows stay.
    pub fn kill_controller(&mut self) -> Result<()> {
        self.daemons.controller.kill().map(drop)
    }

    pub fn start_controller(&mut self) -> Result<()> {
        self.daemons.controller = daemons::spawn_controller(&self.sandbox, &self.ovs)?;
        Ok(())
    }

    /// SIGKILL for ovs-vswitchd, and another one in its place.
    pub fn restart_vswitchd(&mut self) -> Result<()> {
        self.daemons.vswitchd.kill()?;
        self.daemons.vswitchd = daemons::spawn_vswitchd(&self.sandbox, &self.ovs, self.datapath)?;
        Ok(())
    }

    /// SIGKILL; the rows of its database stay.
    pub fn kill_vswitchd(&mut self) -> Result<()> {
        self.daemons.vswitchd.kill().map(drop)
    }

    pub fn kill_ovs_database(&mut self) -> Result<()> {
        self.daemons.kill_ovs_database()
    }

    pub fn start_ovs_database(&mut self) -> Result<()> {
        self.daemons.start_ovs_database(&self.sandbox, &self.ovs)
    }

    /// Raises the number that agents have to answer to, as neutron-server does, and returns it.
    pub fn raise_nb_cfg(&self) -> Result<u64> {
        run(self.nbctl().words("--wait=sb sync"))?;
        let number = run(self.nbctl().words("get NB_Global . nb_cfg"))?;
        Ok(number.trim().parse()?)
    }

    /// The chassis' name, its system-id.
    pub fn chassis_name(&self) -> Result<String> {
        let text = run(self.vsctl().words("get Open_vSwitch . external_ids:system-id"))?;
        Ok(text.trim().trim_matches('"').to_owned())
    }

    /// The row of the chassis of that name.
    pub fn chassis_private(&self, name: &str) -> Result<ChassisPrivate> {
        let mut sbctl = self.sbctl();
        sbctl
            .words("--format=json --columns=_uuid,external_ids find Chassis_Private")
            .arg(format!("name={name}"));
        let text = run(&mut sbctl)?;
        let found: Value = serde_json::from_str(&text)?;
        let row = &found["data"][0];
        let pairs = row[1][1].as_array().with_context(|| format!("no row for chassis {name}: {text}"))?;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let external_ids = pairs.iter().map(|pair| (word(&pair[0]), word(&pair[1]))).collect();
        Ok(ChassisPrivate { uuid: word(&row[0][1]), external_ids })
    }

    /// `ovn-sbctl` on this lab's Southbound, on any server that answers.
    pub fn sbctl(&self) -> Command {
        let mut command = Command::new("ovn-sbctl");
        command.words("--timeout=30 --no-leader-only");
        command.arg(format!("--db={}", self.daemons.southbound.sockets(&self.sandbox)));
        command
    }
}
