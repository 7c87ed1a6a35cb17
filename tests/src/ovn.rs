//! One chassis with a real OVN and Open vSwitch, laid out as Neutron ML2/OVN lays it out.
//!
//! ```text
//!   guest     |  host namespace                                 |  ovs namespace
//!   eth0 ─────┼─ tapX [TC ingress] ── qbrX (bridge) ── qvbX ────┼─ tapX ── br-int
//! ```
//!
//! The userspace datapath reads its devices *before* TC ingress, the kernel datapath after it. A bridge takes its
//! frames at the very place where the kernel datapath does, so with one in between what TC does to a frame is final,
//! as in production. Name, ifindex and MAC of a tap are the same on both sides, so that the rows in Open_vSwitch
//! are right for the host too.
//!
//! Nothing is in between where the kernel has a datapath: `Datapath::Kernel`, with everything in the host namespace and
//! guests on taps as a hypervisor makes them.
//!
//! Open vSwitch makes the devices of networks in its own namespace: what is about those is in one namespace with it
//! (`Lab::start_whole`). There the userspace datapath gets what a tap's guest sends besides the program.

mod by_hand;
mod control;
mod daemons;
mod dpdk;
mod fabric;
mod incumbent;
mod neighbour;
mod neutron;
mod northbound;
mod pki;
mod southbound;
mod tapless;
mod trunk;

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
pub use by_hand::{ByHand, Named, Schema};
pub use control::ChassisPrivate;
use daemons::Daemons;
pub use daemons::HOSTNAME;
pub use fabric::Fabric;
pub use incumbent::Incumbent;
pub use neighbour::Neighbour;
pub use pki::{Credentials, Pki};
use southbound::Southbound;

use crate::{
    cloud::Chassis,
    command::{Words as _, require, run},
    guest::Guest,
    netns::Namespace,
    port::{Network, Port},
    sandbox::Sandbox,
};

/// Neutron's: 1500 less Geneve over IPv4.
pub const MTU: u32 = 1442;
/// Above any that a namespace gives out by itself.
const FIRST_IFINDEX: u32 = 1000;
const PROGRAMS: [&str; 9] = [
    "busybox",
    "ip",
    "ovn-controller",
    "ovn-nbctl",
    "ovn-northd",
    "ovs-vsctl",
    "ovs-vswitchd",
    "ovsdb-server",
    "udhcpc",
];

/// Routing of a network: with a router or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    Routed,
    Isolated,
}

/// Datapath of Open vSwitch that forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// In ovs-vswitchd, on any kernel.
    Userspace,
    /// The same with DPDK, for machines whose NIC is no device of the kernel.
    Dpdk,
    /// The kernel's module, as in production.
    Kernel,
}

impl Datapath {
    /// Its name in the local Open vSwitch.
    fn kind(self) -> &'static str {
        match self {
            Self::Userspace | Self::Dpdk => "netdev",
            Self::Kernel => "system",
        }
    }
}

#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: who uses something goes before it.
    daemons: Daemons,
    host: Namespace,
    ovs: Namespace,
    sandbox: Sandbox,
    datapath: Datapath,
    next_ifindex: AtomicU32,
}

impl Lab {
    /// Starts databases, northd, the switch and ovn-controller; there are no networks yet.
    pub fn start() -> Result<Self> {
        Self::start_on(Datapath::Userspace)
    }

    pub fn start_on(datapath: Datapath) -> Result<Self> {
        Self::start_with(datapath, Southbound::Standalone, datapath == Datapath::Userspace)
    }

    /// The same with the switch in the host's own namespace.
    pub fn start_whole() -> Result<Self> {
        Self::start_with(Datapath::Userspace, Southbound::Standalone, false)
    }

    /// The same with DPDK.
    pub fn start_with_dpdk() -> Result<Self> {
        Self::start_with(Datapath::Dpdk, Southbound::Standalone, false)
    }

    /// The same with a cluster in the Southbound's place.
    pub fn start_with_cluster() -> Result<Self> {
        require(&["ovs-pki"])?;
        Self::start_with(Datapath::Userspace, Southbound::Cluster, true)
    }

    fn start_with(datapath: Datapath, southbound: Southbound, is_split: bool) -> Result<Self> {
        require(&PROGRAMS)?;
        let sandbox = Sandbox::create()?;
        let host = Namespace::create(&sandbox, "host")?;
        let ovs = match is_split {
            true => Namespace::create(&sandbox, "ovs")?,
            false => Namespace::existing(host.name()),
        };
        let daemons = Daemons::start(&sandbox, &host, &ovs, datapath, southbound)
            .with_context(|| format!("OVN did not start\n{}", sandbox.log_tails()))?;
        let lab = Self { daemons, host, ovs, sandbox, datapath, next_ifindex: AtomicU32::new(FIRST_IFINDEX) };
        northbound::write_globals(&mut lab.nbctl())?;
        Ok(lab)
    }

    pub fn add_network(&self, name: &str, routing: Routing) -> Result<Network> {
        let network = Network::new(name)?;
        northbound::write_network(&mut self.nbctl(), &network, routing, MTU)?;
        Ok(network)
    }

    /// A new instance in a network: created, plugged, bound, its address leased.
    pub fn add_guest(&self, network: &Network) -> Result<Guest> {
        self.add_guest_on(Port::new(network)?)
    }

    pub fn add_guest_on(&self, port: Port) -> Result<Guest> {
        self.create_port(&port)?;
        let guest = self.boot(port)?;
        self.plug(&guest)?;
        self.wait_bound(&guest)?;
        self.explain(guest.dhcp())?;
        Ok(guest)
    }

    /// Writes the port's rows, as Neutron does when the port is created.
    pub fn create_port(&self, port: &Port) -> Result<()> {
        self.write_port(port, None)
    }

    fn write_port(&self, port: &Port, parent: Option<(&str, u16)>) -> Result<()> {
        let dhcp_options = self.nbctl_get(format!(
            "--bare --columns=_uuid find DHCP_Options external_ids:\"neutron:network_id\"={}",
            port.network
        ))?;
        northbound::write_port(&mut self.nbctl(), port, &dhcp_options, parent)
    }

    /// Removes the port's rows.
    pub fn delete_port(&self, port: &Port) -> Result<()> {
        run(self.nbctl().words(format!("--wait=sb lsp-del {}", port.id)))?;
        Ok(())
    }

    /// A machine with its tap, which no switch knows yet.
    pub fn boot(&self, port: Port) -> Result<Guest> {
        let guest = Guest::create(&self.sandbox, port)?;
        self.start_tap(&guest)?;
        Ok(guest)
    }

    /// Makes the tap, under its name but with a new ifindex.
    pub fn start_tap(&self, guest: &Guest) -> Result<()> {
        let ifindex = self.next_ifindex.fetch_add(1, Ordering::Relaxed);
        if self.datapath == Datapath::Kernel {
            return guest.insert_tap(&self.host, ifindex, MTU);
        }
        guest.insert_nic(&self.host, ifindex, MTU)?;
        if self.is_split() { self.bridge_tap(&guest.port, ifindex) } else { Ok(()) }
    }

    /// The namespace of the switch, which is the host's own where it is not apart.
    pub fn switch(&self) -> &Namespace {
        &self.ovs
    }

    /// True if the switch is in a namespace of its own.
    fn is_split(&self) -> bool {
        self.host.name() != self.ovs.name()
    }

    /// Leads a tap of the host namespace to the one that the userspace datapath has.
    fn bridge_tap(&self, port: &Port, ifindex: u32) -> Result<()> {
        let Port { tap, .. } = port;
        let id = tap.trim_start_matches("tap");
        let (host, ovs, mac) = (&self.host, &self.ovs, port.tap_mac());
        host.ip(format!(
            "link add qbr{id} mtu {MTU} type bridge stp_state 0 forward_delay 0 ageing_time 0 mcast_snooping 0"
        ))?;
        ovs.ip(format!(
            "link add {tap} index {ifindex} address {mac} mtu {MTU} type veth peer name qvb{id} netns {}",
            host.name()
        ))?;
        host.ip(format!("link set qvb{id} mtu {MTU} master qbr{id} up"))?;
        host.ip(format!("link set {tap} master qbr{id}"))?;
        host.ip(format!("link set qbr{id} up"))?;
        ovs.ip(format!("link set {tap} up"))?;
        Ok(())
    }

    /// The tap is lost as when a machine is powered off; the row in Open_vSwitch stays.
    pub fn stop_tap(&self, guest: &Guest) -> Result<()> {
        let tap = &guest.port.tap;
        self.host.ip(format!("link del {tap}"))?;
        if !self.is_split() {
            return Ok(());
        }
        self.host.ip(format!("link del qbr{}", tap.trim_start_matches("tap")))?;
        self.ovs.ip(format!("link del {tap}"))?;
        Ok(())
    }

    /// Adds the tap to the integration bridge with the external_ids that os-vif writes.
    pub fn plug(&self, guest: &Guest) -> Result<()> {
        self.plug_port(&guest.port)
    }

    /// The same for whatever has the port's tap.
    pub fn plug_port(&self, port: &Port) -> Result<()> {
        plug(self.vsctl(), port)
    }

    /// Waits until ovn-controller has claimed the port and installed its flows.
    pub fn wait_bound(&self, guest: &Guest) -> Result<()> {
        let tap = &guest.port.tap;
        let bound =
            run(self.vsctl().words(format!("wait-until Interface {tap} external_ids:ovn-installed=true")));
        self.explain(bound)?;
        Ok(())
    }

    pub fn unplug(&self, guest: &Guest) -> Result<()> {
        self.unplug_port(&guest.port)
    }

    pub fn unplug_port(&self, port: &Port) -> Result<()> {
        unplug(self.vsctl(), port)
    }

    /// The device that the agent has Open vSwitch make for a network.
    pub fn network_device(network: &str) -> String {
        format!("mdn{}", &network.replace('-', "")[..12])
    }

    /// The ifindex that the guest's tap has now.
    pub fn ifindex(&self, guest: &Guest) -> Result<u32> {
        self.host.ifindex(&guest.port.tap)
    }

    /// Remote of the Southbound that is reached from any namespace.
    pub fn southbound_socket(&self) -> String {
        self.daemons.southbound.sockets(&self.sandbox)
    }

    /// Remote of the local Open vSwitch's database.
    pub fn ovs_remote(&self) -> String {
        format!("unix:{}", self.sandbox.path(daemons::OVS_SOCKET).display())
    }

    /// `ovs-vsctl` on this chassis.
    pub fn vsctl(&self) -> Command {
        daemons::client("ovs-vsctl", &self.sandbox, daemons::OVS_SOCKET)
    }

    /// `ovsdb-client` on the local Open vSwitch: `backup` or `restore`.
    pub fn ovs_client(&self, command: &str) -> Command {
        let mut client = Command::new("ovsdb-client");
        client.arg("--timeout=30").arg(command).arg(self.ovs_remote()).arg("Open_vSwitch");
        client
    }

    /// `ovn-nbctl` on this lab's Northbound.
    pub fn nbctl(&self) -> Command {
        daemons::client("ovn-nbctl", &self.sandbox, daemons::NB_SOCKET)
    }

    fn nbctl_get(&self, arguments: String) -> Result<String> {
        Ok(run(self.nbctl().words(arguments))?.trim().to_owned())
    }

    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("the lab's daemons say\n{}", self.sandbox.log_tails()))
    }
}

/// Adds a port's tap to the integration bridge of a chassis.
fn plug(mut vsctl: Command, port: &Port) -> Result<()> {
    let tap = &port.tap;
    run(vsctl
        .words(format!("--may-exist add-port br-int {tap} -- set Interface {tap}"))
        .arg(port.external_ids()))?;
    Ok(())
}

fn unplug(mut vsctl: Command, port: &Port) -> Result<()> {
    run(vsctl.words(format!("--if-exists del-port br-int {}", port.tap)))?;
    Ok(())
}

impl Chassis for Lab {
    fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    fn host(&self) -> &Namespace {
        &self.host
    }

    fn agent_options(&self) -> Vec<(&'static str, String)> {
        let ovs = format!("ovsdb_connection = {}", self.ovs_remote());
        let southbound = self.daemons.southbound.agent_options().into_iter().map(|line| ("ovn", line));
        [("ovs", ovs)].into_iter().chain(southbound).collect()
    }
}
