//! A machine with a trunk: one tap on the host, and behind it a guest for each VLAN, as if each interface that the
//! machine's kernel has for a VLAN were moved into a namespace of its own.
//!
//! ```text
//!   eth0 of each guest ── relay, which puts tags on and takes them off ── tapX                            Uplink::Tap
//!   eth0 of each guest ── relay ── wire (tap) ── trunk (bridge) ── uplink (veth), in the parent ── tapX   Uplink::Veth
//! ```
//!
//! A hypervisor's tap gets the tag inside of the frame. Behind a bridge the kernel carries it beside the frame (in
//! `skb->vlan_tci`), as far as the device's `txvlan` offload goes.

use anyhow::Result;

use crate::{guest::Guest, netns::Namespace, port::Port, sandbox::Sandbox, tap};

/// Kind of the trunk's tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uplink {
    Tap,
    Veth,
}

/// The guest's end of a trunk that is a veth pair, in the parent's namespace.
pub const UPLINK: &str = "uplink";

#[derive(Debug)]
pub struct Trunk {
    /// Guest whose frames have no tag.
    pub parent: Guest,
    /// Each with its VLAN.
    pub subports: Vec<(u16, Guest)>,
}

impl Trunk {
    /// Empty machines; their chassis gives them the NIC.
    pub(crate) fn create(sandbox: &Sandbox, parent: Port, subports: Vec<(u16, Port)>) -> Result<Self> {
        let parent = Guest::create(sandbox, parent)?;
        let subports = subports.into_iter().map(|(vlan, port)| Ok((vlan, Guest::create(sandbox, port)?)));
        Ok(Self { parent, subports: subports.collect::<Result<_>>()? })
    }

    /// All of them, the parent first.
    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        std::iter::once(&self.parent).chain(self.subports.iter().map(|(_, guest)| guest))
    }

    /// Makes the tap, with that ifindex, and the guests' NICs.
    pub(crate) fn insert_nic(&self, uplink: Uplink, host: &Namespace, ifindex: u32, mtu: u32) -> Result<()> {
        let Port { tap, .. } = &self.parent.port;
        let inside = &self.parent.netns;
        let mut ends = vec![(0, inside)];
        ends.extend(self.subports.iter().map(|(vlan, guest)| (*vlan, &guest.netns)));
        match uplink {
            Uplink::Tap => tap::connect(host, tap, Some(ifindex), &ends)?,
            Uplink::Veth => {
                tap::connect(inside, "wire", None, &ends)?;
                let netns = inside.name();
                host.ip(format!(
                    "link add {tap} index {ifindex} type veth peer name {UPLINK} netns {netns}"
                ))?;
                inside.ip("link add trunk type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
                for port in ["wire", UPLINK] {
                    inside.ip(format!("link set {port} mtu {mtu} master trunk up"))?;
                }
                inside.ip("link set trunk up")?;
            }
        }
        for guest in self.guests() {
            guest.netns.ip(format!("link set eth0 address {} mtu {mtu} up", guest.port.mac))?;
        }
        host.ip(format!("link set {tap} address {} mtu {mtu} up", self.parent.port.tap_mac()))?;
        Ok(())
    }
}
