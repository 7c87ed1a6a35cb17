//! Two chassis of one OVN, each with an agent and a Nova of its own, which tells where a machine was when it asked.

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::Options,
    check::{own_identity, was_signed_for},
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    nova::Nova,
    ovn::{Fabric, Lab, Neighbour},
    port::{Network, Port},
};

/// Host name of the second chassis.
pub const THERE: &str = "host-b";

#[derive(Debug)]
pub struct TwoChassis {
    // Dropped in this order: who uses something goes before it.
    pub there: Cloud<Neighbour>,
    pub here: Cloud<Lab>,
    _fabric: Fabric,
}

impl TwoChassis {
    pub fn start(options: &Options) -> Result<Self> {
        Self::start_from(Lab::start_whole()?, options)
    }

    /// The same from its first chassis, with whose datapath the other one forwards as well.
    pub fn start_from(here: Lab, options: &Options) -> Result<Self> {
        let here = Cloud::on(here, options)?;
        let fabric = Fabric::create(here.chassis.sandbox())?;
        fabric.connect(&here.chassis)?;
        let there = here.chassis.add_chassis(THERE)?;
        fabric.connect(&there)?;
        let there = Cloud::on(there, options)?;
        Ok(Self { there, here, _fabric: fabric })
    }

    /// A port of a new instance, which either Nova knows, on the first chassis.
    pub fn add_port(&self, network: &Network) -> Result<Port> {
        let port = Port::new(network)?;
        self.add_instance(&port);
        self.here.chassis.create_port(&port)?;
        Ok(port)
    }

    pub fn add_instance(&self, port: &Port) {
        self.here.nova.add_instance(port);
        self.there.nova.add_instance(port);
    }

    /// A guest of a new instance that runs on the first chassis, with its address.
    pub fn add_guest(&self, network: &Network) -> Result<Guest> {
        let guest = self.here.add_guest(network)?;
        self.there.nova.add_instance(&guest.port);
        self.here.agent.wait_served(&guest, self.here.chassis.ifindex(&guest)?)?;
        Ok(guest)
    }

    /// The guest is itself, and it was the first chassis that asked Nova.
    pub fn asks_here(&self, guest: &Guest) -> Result<()> {
        asks_through(guest, &self.here.nova, &self.there.nova).context("on the first chassis")
    }

    /// The same on the second one.
    pub fn asks_there(&self, guest: &Guest) -> Result<()> {
        asks_through(guest, &self.there.nova, &self.here.nova).context("on the second chassis")
    }
}

fn asks_through(guest: &Guest, asked: &Nova, other: &Nova) -> Result<()> {
    let its = |nova: &Nova| {
        let mut requests = nova.take_requests();
        requests.retain(|request| request.header("X-Instance-ID") == [guest.port.instance.as_str()]);
        requests
    };
    asked.take_requests();
    other.take_requests();
    own_identity(guest)?;
    let (requests, elsewhere) = (its(asked), its(other));
    ensure!(requests.len() == 2 && elsewhere.is_empty(), "{requests:?}, and elsewhere {elsewhere:?}");
    requests.iter().try_for_each(|request| was_signed_for(&guest.port, request))
}
