//! Both agents on one chassis: the same databases and guests, and a Nova for each in its own namespace.

use anyhow::{Context as _, Result};
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    guest::Guest,
    nova::Nova,
    ovn::{Lab, Routing},
    port::{Network, Port},
    process::Daemon,
};

use crate::{
    Arguments,
    neutron::{Neutron, configure},
};

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Theirs,
    Ours,
}

pub(crate) struct Pair {
    // Dropped in this order: who uses something goes before it.
    pub(crate) neutron: Neutron,
    pub(crate) guests: Vec<Guest>,
    pub(crate) networks: Vec<Network>,
    /// The other agent's, where it is in a namespace of its own; `cloud` has ours.
    pub(crate) nova: Option<Nova>,
    pub(crate) cloud: Cloud<Lab>,
}

impl Pair {
    /// A chassis with a guest in each of so many networks, and neither agent running.
    pub(crate) fn start(arguments: &Arguments, networks: usize) -> Result<Self> {
        // The other agent knows no limits.
        let limits = ["connection_rate", "port_connections", "port_requests"];
        let more = limits.map(|limit| ("metadata_ebpf", format!("{limit} = 0"))).to_vec();
        let mut cloud = Cloud::on(Lab::start()?, &Options { more, ..Options::default() })?;
        cloud.quiet = true;
        let nova = Some(Nova::start(cloud.chassis.switch())?);
        let neutron = Neutron::install(&cloud.chassis, &arguments.environment, arguments.workers)?;
        let mut pair = Self { neutron, guests: Vec::new(), networks: Vec::new(), nova, cloud };
        pair.stop_ours()?;
        for number in 0..networks {
            let routing = if number % 2 == 0 { Routing::Isolated } else { Routing::Routed };
            pair.add_network(&format!("network{number}"), routing)?;
        }
        Ok(pair)
    }

    /// A chassis whose switch is in the host's own namespace, with a guest that has no tap, and with ours running.
    pub(crate) fn without_tap(arguments: &Arguments) -> Result<Self> {
        let mut cloud = Cloud::with_network_devices()?;
        cloud.quiet = true;
        let network = cloud.chassis.add_network("network", Routing::Routed)?;
        cloud.chassis.remove_rules(&network)?;
        let guests = vec![cloud.add_internal(&network)?];
        let neutron = Neutron::install(&cloud.chassis, &arguments.environment, arguments.workers)?;
        Ok(Self { neutron, guests, networks: vec![network], nova: None, cloud })
    }

    fn add_network(&mut self, name: &str, routing: Routing) -> Result<()> {
        let chassis = &self.cloud.chassis;
        let network = chassis.add_network(name, routing)?;
        // Open vSwitch's connection tracking in user space would be what is measured.
        chassis.remove_rules(&network)?;
        let port = Port::new(&network)?;
        for nova in self.nova.iter().chain([&self.cloud.nova]) {
            nova.add_instance(&port);
        }
        chassis.create_port(&port)?;
        let guest = chassis.boot(port)?;
        configure(chassis, &guest, &network)?;
        guest.netns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        chassis.plug(&guest)?;
        chassis.wait_bound(&guest)?;
        self.guests.push(guest);
        self.networks.push(network);
        Ok(())
    }

    /// Starts the other agent, and waits until it serves all guests.
    pub(crate) fn start_neutron(&mut self) -> Result<()> {
        self.neutron.start(&self.cloud.chassis)?;
        for network in &self.networks {
            self.neutron.wait_provisioned(&network.id)?;
        }
        self.guests.iter().try_for_each(own_identity).context("through neutron's agent")
    }

    pub(crate) fn start_ours(&mut self) -> Result<()> {
        self.cloud.agent.resume()?;
        self.wait_ours()
    }

    pub(crate) fn wait_ours(&mut self) -> Result<()> {
        self.cloud.agent.wait_ready()?;
        for guest in &self.guests {
            self.cloud.agent.wait_served(guest, self.cloud.chassis.ifindex(guest)?)?;
        }
        Ok(())
    }

    /// Takes everything of ours from the taps.
    pub(crate) fn stop_ours(&mut self) -> Result<()> {
        self.cloud.agent.stop()?;
        self.cloud.agent.clean_up()
    }

    /// Does the same with one and the other: what came of it.
    pub(crate) fn both<T>(&mut self, mut work: impl FnMut(&mut Self, Side) -> Result<T>) -> Result<[T; 2]> {
        let theirs = work(self, Side::Theirs)?;
        self.start_ours()?;
        let ours = work(self, Side::Ours)?;
        self.stop_ours()?;
        Ok([theirs, ours])
    }

    pub(crate) fn nova_of(&self, side: Side) -> &Nova {
        match side {
            Side::Theirs => self.nova.as_ref().unwrap_or(&self.cloud.nova),
            Side::Ours => &self.cloud.nova,
        }
    }

    /// A fixed answer in the place of both Novas, which check and keep what they are asked.
    pub(crate) fn answer_constantly(&mut self) -> Result<[Daemon; 2]> {
        for nova in self.nova.iter_mut().chain([&mut self.cloud.nova]) {
            nova.pause();
        }
        let chassis = &self.cloud.chassis;
        let start = |namespace: &metadata_tests::netns::Namespace| -> Result<Daemon> {
            let mut command = namespace.command(std::env::current_exe()?)?;
            command.arg("upstream");
            Daemon::spawn("upstream", command, chassis.sandbox().log("upstream"))
        };
        Ok([start(chassis.switch())?, start(chassis.host())?])
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let networks: Vec<_> = self.networks.iter().collect();
        if let Err(error) = self.neutron.remove(&self.cloud.chassis, &networks) {
            eprintln!("warning: something of neutron's agent is left: {error:#}");
        }
    }
}
