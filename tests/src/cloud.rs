//! A chassis, a Nova and an agent that belong together.

use anyhow::{Context as _, Result};

use crate::{
    agent::{Agent, Options},
    guest::Guest,
    netns::Namespace,
    nova::Nova,
    ovn::{Fabric, Lab, Routing},
    port::{Network, Port},
    sandbox::Sandbox,
    stage::{Path, Stage},
};

/// Chassis on which an agent can run.
pub trait Chassis {
    fn sandbox(&self) -> &Sandbox;

    /// The host's own namespace, with the guests' taps.
    fn host(&self) -> &Namespace;

    /// Lines of the agent's configuration, each with its section, that say where it learns who is who.
    fn agent_options(&self) -> Vec<(&'static str, String)>;
}

#[derive(Debug)]
pub struct Cloud<C: Chassis> {
    // Dropped in this order: who uses something goes before it.
    pub agent: Agent,
    pub nova: Nova,
    pub chassis: C,
    /// The ends of all logs are printed on drop, since libtest shows them for failed tests only. A demo that went
    /// well asks for silence.
    pub quiet: bool,
}

impl Cloud<Lab> {
    pub fn with_ovn() -> Result<Self> {
        Self::on(Lab::start()?, &Options::default())
    }

    /// A guest on its network, known to Nova.
    pub fn add_guest(&self, network: &Network) -> Result<Guest> {
        let guest = self.chassis.add_guest(network)?;
        self.nova.add_instance(&guest.port);
        Ok(guest)
    }

    /// A chassis whose switch is in the host's own namespace, where the devices of networks are made.
    pub fn with_network_devices() -> Result<Self> {
        Self::on(Lab::start_whole()?, &Options::default())
    }

    /// A guest on an internal port of Open vSwitch, known to Nova and served.
    pub fn add_internal(&self, network: &Network) -> Result<Guest> {
        let port = Port::new(network)?;
        self.nova.add_instance(&port);
        let guest = self.chassis.add_internal(port)?;
        self.agent.wait_station(&guest)?;
        Ok(guest)
    }

    /// A machine on the physical network, for which this chassis is responsible, known to Nova, served, with its address.
    pub fn add_external(&self, fabric: &Fabric, network: &Network) -> Result<Guest> {
        let port = Port::new(network)?;
        self.nova.add_instance(&port);
        self.chassis.create_port(&port)?;
        self.chassis.make_external(&port, &[self.chassis.chassis_name()?])?;
        let machine = fabric.add_machine(self.chassis.sandbox(), port)?;
        self.agent.wait_station(&machine)?;
        machine.dhcp()?;
        Ok(machine)
    }

    /// Two guests with one address in two networks, one of them with a router.
    pub fn overlapping_guests(&self) -> Result<[Guest; 2]> {
        let red = self.chassis.add_network("red", Routing::Routed)?;
        let blue = self.chassis.add_network("blue", Routing::Isolated)?;
        let guests = [self.add_guest(&red)?, self.add_guest(&blue)?];
        for guest in &guests {
            self.agent.wait_served(guest, self.chassis.ifindex(guest)?)?;
        }
        Ok(guests)
    }
}

impl Cloud<Stage> {
    pub fn with_inventory() -> Result<Self> {
        Self::on(Stage::start()?, &Options::default())
    }

    /// Two guests with one address in two networks, known to Nova and in the inventory.
    pub fn overlapping_guests(&self) -> Result<[Guest; 2]> {
        let red = self.chassis.add_network("red")?;
        let blue = self.chassis.add_network("blue")?;
        let guests =
            [self.chassis.add_guest(&red, Path::OnLink)?, self.chassis.add_guest(&blue, Path::ViaGateway)?];
        self.chassis.write_inventory(&guests.each_ref().map(|guest| &guest.port))?;
        for guest in &guests {
            self.nova.add_instance(&guest.port);
            self.agent.wait_served(guest, self.chassis.ifindex(guest)?)?;
        }
        Ok(guests)
    }
}

impl Cloud<Stage> {
    /// Guests with one address in a network each, known to Nova and in the inventory.
    pub fn guests<const N: usize>(&self) -> Result<[Guest; N]> {
        let guest = |number| -> Result<Guest> {
            self.chassis.add_guest(&self.chassis.add_network(&format!("tenant{number}"))?, Path::OnLink)
        };
        let guests = (0..N).map(guest).collect::<Result<Vec<_>>>()?;
        self.chassis.write_inventory(&guests.iter().map(|guest| &guest.port).collect::<Vec<_>>())?;
        for guest in &guests {
            self.nova.add_instance(&guest.port);
            self.agent.wait_served(guest, self.chassis.ifindex(guest)?)?;
        }
        guests.try_into().ok().context("there are as many as wanted")
    }
}

impl<C: Chassis> Cloud<C> {
    pub fn on(chassis: C, options: &Options) -> Result<Self> {
        let nova = Nova::start(chassis.host())?;
        let agent = Agent::start(&chassis, options)?;
        Ok(Self { agent, nova, chassis, quiet: false })
    }
}

impl<C: Chassis> Drop for Cloud<C> {
    fn drop(&mut self) {
        if !self.quiet {
            eprintln!("{}", self.chassis.sandbox().log_tails());
        }
    }
}
