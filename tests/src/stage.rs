//! One chassis without OVN: taps, a bridge per network, guests configured by hand, a static inventory for the agent.

use std::{
    fs,
    net::Ipv4Addr,
    num::NonZeroUsize,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use crate::{
    cloud::Chassis,
    command::require,
    guest::Guest,
    netns::Namespace,
    port::{GATEWAY, Network, Port},
    sandbox::Sandbox,
    tap::BareTap,
};

const MTU: u32 = 1500;
const FIRST_IFINDEX: u32 = 1000;
const PROGRAMS: [&str; 2] = ["busybox", "ip"];
/// MAC address that guests which route send to; nobody has it, since nothing but metadata traffic would go there.
const GATEWAY_MAC: &str = "fa:16:3e:00:00:01";

/// Path of a guest to the metadata address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    OnLink,
    ViaGateway,
}

impl Path {
    fn next_hop(self) -> Option<(Ipv4Addr, &'static str)> {
        (self == Self::ViaGateway).then_some((GATEWAY, GATEWAY_MAC))
    }
}

/// Kind of a guest's NIC on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// One end of a pair of devices: cheap, and nothing but the kernel takes part.
    Veth,
    /// A tap as a hypervisor makes it.
    Tap,
}

#[derive(Debug)]
pub struct Stage {
    host: Namespace,
    sandbox: Sandbox,
    nics: Nic,
    next_ifindex: AtomicU32,
}

impl Stage {
    pub fn start() -> Result<Self> {
        Self::start_with(Nic::Veth)
    }

    pub fn start_with(nics: Nic) -> Result<Self> {
        Self::start_in(nics, |sandbox| Namespace::create(sandbox, "host"))
    }

    /// On the machine itself, which must be nobody else's.
    pub fn start_on_machine(nics: Nic) -> Result<Self> {
        Self::start_in(nics, Namespace::of_machine)
    }

    fn start_in(nics: Nic, host: impl FnOnce(&Sandbox) -> Result<Namespace>) -> Result<Self> {
        require(&PROGRAMS)?;
        let sandbox = Sandbox::create()?;
        let host = host(&sandbox)?;
        let stage = Self { host, sandbox, nics, next_ifindex: AtomicU32::new(FIRST_IFINDEX) };
        stage.write_inventory(&[])?;
        Ok(stage)
    }

    pub fn add_network(&self, name: &str) -> Result<Network> {
        let network = Network::new(name)?;
        self.host.ip(format!("link add {} type bridge", bridge(&network.id)))?;
        self.host.ip(format!("link set {} up", bridge(&network.id)))?;
        Ok(network)
    }

    /// A running guest, of which the inventory says nothing yet.
    pub fn add_guest(&self, network: &Network, path: Path) -> Result<Guest> {
        self.add_guest_on(Port::new(network)?, path)
    }

    pub fn add_guest_on(&self, port: Port, path: Path) -> Result<Guest> {
        let guest = Guest::create(&self.sandbox, port)?;
        self.start_tap(&guest, path)?;
        Ok(guest)
    }

    /// A port's tap with no machine behind it, which is all that the host has of a machine that says nothing.
    pub fn add_tap(&self, port: Port) -> Result<BareTap> {
        BareTap::plug(&self.host, port, self.next_ifindex.fetch_add(1, Ordering::Relaxed))
    }

    /// The same with several queues, plugged into the network's bridge.
    pub fn add_tap_on(&self, network: &Network, queues: NonZeroUsize) -> Result<BareTap> {
        let ifindex = self.next_ifindex.fetch_add(1, Ordering::Relaxed);
        let tap = BareTap::plug_with(&self.host, Port::new(network)?, ifindex, queues)?;
        self.host.ip(format!("link set {} master {}", tap.port.tap, bridge(&network.id)))?;
        Ok(tap)
    }

    /// Makes the tap, under its name but with a new ifindex, and configures the guest's end.
    pub fn start_tap(&self, guest: &Guest, path: Path) -> Result<()> {
        let ifindex = self.next_ifindex.fetch_add(1, Ordering::Relaxed);
        match self.nics {
            Nic::Veth => guest.insert_nic(&self.host, ifindex, MTU)?,
            Nic::Tap => guest.insert_tap(&self.host, ifindex, MTU)?,
        }
        self.host.ip(format!("link set {} master {}", guest.port.tap, bridge(&guest.port.network)))?;
        guest.configure(path.next_hop())
    }

    pub fn stop_tap(&self, guest: &Guest) -> Result<()> {
        self.host.ip(format!("link del {}", guest.port.tap))?;
        Ok(())
    }

    /// The ifindex that the guest's tap has now.
    pub fn ifindex(&self, guest: &Guest) -> Result<u32> {
        self.host.ifindex(&guest.port.tap)
    }

    /// Replaces the inventory; whoever reads it sees all of the old one or all of the new one.
    pub fn write_inventory(&self, ports: &[&Port]) -> Result<()> {
        let draft = self.sandbox.path("inventory.draft");
        let entries: Vec<_> = ports.iter().map(|port| entry(port)).collect();
        fs::write(&draft, entries.join("\n"))?;
        fs::rename(draft, self.inventory())?;
        Ok(())
    }

    fn inventory(&self) -> PathBuf {
        self.sandbox.path("inventory.toml")
    }
}

impl Chassis for Stage {
    fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    fn host(&self) -> &Namespace {
        &self.host
    }

    fn agent_options(&self) -> Vec<(&'static str, String)> {
        vec![("metadata_ebpf", format!("inventory = {}", self.inventory().display()))]
    }
}

fn bridge(network: &str) -> String {
    format!("br{}", &network[..8])
}

fn entry(port: &Port) -> String {
    let Port { id, tap, address, instance, project, network, .. } = port;
    format!(
        "[[port]]\ntap = \"{tap}\"\nport = \"{id}\"\ninstance = \"{instance}\"\nproject = \"{project}\"\n\
         network = \"{network}\"\nfixed_ips = [\"{address}\"]\n"
    )
}
