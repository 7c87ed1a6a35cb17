//! Fabric between chassis: an underlay, over which they have their tunnels, and a physical network with machines of its
//! own, which are no chassis' guests.
//!
//! ```text
//!   machine  |      fabric namespace       |  namespace of each chassis
//!   eth0 ────┼─ bridge phys ── bridge port ┼─ phy0 ── br-ex ── br-int (localnet)
//!            |       bridge under ─────────┼─ und0 ── br-un (the address of its tunnels)
//! ```

use std::{
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::Result;

use super::{Datapath, Lab, Neighbour};
use crate::{
    command::{Words as _, run},
    guest::Guest,
    netns::Namespace,
    port::Port,
    sandbox::Sandbox,
};

/// The name by which networks and chassis know the physical network.
pub(super) const PHYSICAL: &str = "physnet1";

#[derive(Debug)]
pub struct Fabric {
    netns: Namespace,
    next: AtomicU8,
}

/// A chassis as the fabric connects it.
pub trait Connect {
    fn netns(&self) -> &Namespace;
    fn vsctl(&self) -> Command;
    fn datapath(&self) -> Datapath;
}

impl Connect for Lab {
    fn netns(&self) -> &Namespace {
        &self.ovs
    }

    fn vsctl(&self) -> Command {
        self.vsctl()
    }

    fn datapath(&self) -> Datapath {
        self.datapath
    }
}

impl Connect for Neighbour {
    fn netns(&self) -> &Namespace {
        &self.host
    }

    fn vsctl(&self) -> Command {
        self.vsctl()
    }

    fn datapath(&self) -> Datapath {
        self.datapath
    }
}

impl Fabric {
    pub fn create(sandbox: &Sandbox) -> Result<Self> {
        let netns = Namespace::create(sandbox, "fabric")?;
        for bridge in ["phys", "under"] {
            netns
                .ip(format!("link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))?;
            netns.ip(format!("link set {bridge} up"))?;
        }
        Ok(Self { netns, next: AtomicU8::new(1) })
    }

    /// Connects a chassis to both, under the next address of the underlay.
    pub fn connect(&self, chassis: &impl Connect) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let netns = chassis.netns();
        let (fabric, datapath) = (self.netns.name(), chassis.datapath().kind());
        for (bridge, device, beyond) in [("br-ex", "phy0", "phys"), ("br-un", "und0", "under")] {
            netns.ip(format!("link add {device} type veth peer name {beyond}{number} netns {fabric}"))?;
            netns.ip(format!("link set {device} up"))?;
            self.netns.ip(format!("link set {beyond}{number} master {beyond} up"))?;
            run(chassis.vsctl().words(format!(
                "add-br {bridge} -- set Bridge {bridge} datapath_type={datapath} -- add-port {bridge} {device}"
            )))?;
        }
        netns.ip(format!("addr add 172.30.0.{number}/24 dev br-un"))?;
        netns.ip("link set br-un up")?;
        run(chassis
            .vsctl()
            .words(format!("set Open_vSwitch . external_ids:ovn-encap-ip=172.30.0.{number}"))
            .words(format!("external_ids:ovn-bridge-mappings={PHYSICAL}:br-ex")))?;
        Ok(())
    }

    /// A machine on the physical network, with the port's MAC address and none of IP.
    pub fn add_machine(&self, sandbox: &Sandbox, port: Port) -> Result<Guest> {
        let guest = Guest::create(sandbox, port)?;
        let Port { tap, mac, .. } = &guest.port;
        let netns = guest.netns.name();
        self.netns.ip(format!("link add {tap} type veth peer name eth0 netns {netns}"))?;
        self.netns.ip(format!("link set {tap} master phys up"))?;
        guest.netns.ip(format!("link set eth0 address {mac} up"))?;
        Ok(guest)
    }

    /// Sets the link of the machine, up or down.
    pub fn set_link(&self, machine: &Guest, state: &str) -> Result<()> {
        self.netns.ip(format!("link set {} {state}", machine.port.tap))?;
        Ok(())
    }
}
