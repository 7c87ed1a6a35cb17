//! Networks and ports as Neutron knows them: plain data, made up at random.

use std::{
    fs,
    net::Ipv4Addr,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context as _, Result};

/// Every network is this one, so that tenants always overlap.
pub const SUBNET: &str = "192.168.1.0/24";
pub const PREFIX_LENGTH: u8 = 24;
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The metadata port's own address in each network, the next hop that OVN's DHCP gives for 169.254.169.254.
pub const METADATA_PORT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const FIRST_GUEST: u8 = 10;

#[derive(Debug)]
pub struct Network {
    pub id: String,
    pub name: String,
    pub project: String,
    pub security_group: String,
    next_host: AtomicU8,
}

impl Network {
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self {
            id: uuid()?,
            name: name.to_owned(),
            project: uuid()?.replace('-', ""),
            security_group: uuid()?,
            next_host: AtomicU8::new(FIRST_GUEST),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Port {
    pub id: String,
    pub tap: String,
    pub mac: String,
    pub address: Ipv4Addr,
    pub instance: String,
    pub project: String,
    pub network: String,
    pub security_group: String,
}

impl Port {
    /// A port of a new instance: the first in each network is 192.168.1.10.
    pub fn new(network: &Network) -> Result<Self> {
        let id = uuid()?;
        Ok(Self {
            tap: format!("tap{}", &id[..11]),
            mac: mac()?,
            address: Ipv4Addr::new(192, 168, 1, network.next_host.fetch_add(1, Ordering::Relaxed)),
            instance: uuid()?,
            project: network.project.clone(),
            network: network.id.clone(),
            security_group: network.security_group.clone(),
            id,
        })
    }

    /// A subport of a trunk: on its parent's tap, and it is the parent's instance that asks.
    pub fn subport(network: &Network, parent: &Self) -> Result<Self> {
        let Self { tap, instance, project, .. } = parent.clone();
        Ok(Self { tap, instance, project, ..Self::new(network)? })
    }

    /// The name of the instance inside the guest, as the metadata says it.
    pub fn hostname(&self) -> String {
        format!("vm-{}", &self.instance[..8])
    }

    /// Ids that os-vif writes on the Interface of the tap.
    pub fn external_ids(&self) -> String {
        let Self { id, mac, instance, .. } = self;
        format!(
            "external_ids={{iface-id=\"{id}\",iface-status=active,attached-mac=\"{mac}\",vm-uuid=\"{instance}\"}}"
        )
    }

    /// The tap's own MAC, as libvirt chooses it.
    pub fn tap_mac(&self) -> String {
        format!("fe{}", &self.mac[2..])
    }
}

/// A random version 4 UUID.
pub fn uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").context("the kernel gave no UUID")?;
    Ok(text.trim().to_owned())
}

/// A random MAC under Neutron's prefix.
pub fn mac() -> Result<String> {
    let random = uuid()?;
    Ok(format!("fa:16:3e:{}:{}:{}", &random[..2], &random[2..4], &random[4..6]))
}
