//! Ports without a tap, as Neutron and os-vif have them: outside of the switch on a physical network, or on a device that
//! is not the host's.

use anyhow::Result;

use super::{Lab, MTU, Routing, fabric::PHYSICAL};
use crate::{
    command::{Words as _, run},
    guest::Guest,
    port::{Network, Port, uuid},
};

impl Lab {
    /// A network that is a physical one as well.
    pub fn add_provider_network(&self, name: &str) -> Result<Network> {
        let network = self.add_network(name, Routing::Isolated)?;
        let switch = format!("neutron-{}", network.id);
        let port = format!("provnet-{}", uuid()?);
        run(self
            .nbctl()
            .words(format!("--wait=sb lsp-add {switch} {port} -- lsp-set-type {port} localnet"))
            .words(format!("-- lsp-set-addresses {port} unknown"))
            .words(format!("-- lsp-set-options {port} network_name={PHYSICAL}")))?;
        Ok(network)
    }

    /// Makes a port one outside of the switch, for which one of these chassis is responsible: the first that is there.
    pub fn make_external(&self, port: &Port, chassis: &[String]) -> Result<()> {
        let group = format!("neutron-{}", port.id);
        let mut nbctl = self.nbctl();
        nbctl.words(format!("--wait=sb ha-chassis-group-add {group}"));
        for (number, chassis) in chassis.iter().enumerate() {
            nbctl.words(format!("-- ha-chassis-group-add-chassis {group} {chassis} {}", 100 - number));
        }
        run(&mut nbctl)?;
        let uuid =
            run(self.nbctl().words(format!("--bare --columns=_uuid find HA_Chassis_Group name={group}")))?;
        run(self
            .nbctl()
            .words(format!("--wait=sb lsp-set-type {id} external -- lsp-set-options {id}", id = port.id))
            .words(format!("-- set Logical_Switch_Port {} ha_chassis_group={}", port.id, uuid.trim())))?;
        Ok(())
    }

    /// Gives a chassis another place among the port's: the highest number is first, and 100 whom it was made with.
    pub fn set_priority(&self, port: &Port, chassis: &str, priority: u32) -> Result<()> {
        let group = format!("neutron-{}", port.id);
        run(self
            .nbctl()
            .words(format!("--wait=sb ha-chassis-group-add-chassis {group} {chassis} {priority}")))?;
        Ok(())
    }

    /// Takes that chassis out of the port's.
    pub fn exclude(&self, port: &Port, chassis: &str) -> Result<()> {
        let group = format!("neutron-{}", port.id);
        run(self.nbctl().words(format!("--wait=sb ha-chassis-group-remove-chassis {group} {chassis}")))?;
        Ok(())
    }

    /// An instance on an internal port of Open vSwitch, whose device is in the instance's own namespace.
    pub fn add_internal(&self, port: Port) -> Result<Guest> {
        self.create_port(&port)?;
        let guest = Guest::create(&self.sandbox, port)?;
        let Port { tap, mac, .. } = &guest.port;
        run(self
            .vsctl()
            .words(format!("add-port br-int {tap} -- set Interface {tap} type=internal"))
            .arg(guest.port.external_ids()))?;
        self.ovs.ip(format!("link set {tap} netns {}", guest.netns.name()))?;
        // The kernel's datapath knows it by its name, which stays.
        guest.netns.ip("link add eth0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        guest.netns.ip(format!("link set {tap} master eth0 up"))?;
        guest.netns.ip(format!("link set eth0 address {mac} mtu {MTU} up"))?;
        self.wait_bound(&guest)?;
        self.explain(guest.dhcp())?;
        Ok(guest)
    }
}
