//! A guest's port, and everything that databases say of it: all follows from its number, and looks as it does in a cloud.

use std::net::IpAddr;

use ovsdb_client::Uuid;

/// The first index of a guest's device.
const FIRST_IFINDEX: usize = 100;

/// A guest's port on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vif {
    pub number: usize,
    pub host: usize,
    /// Number of networks of the region, over which its ports are spread.
    pub networks: usize,
    /// Revision of the port, with which Neutron's ids of it change.
    pub revision: u8,
}

impl Vif {
    /// Neutron's port, which is OVN's logical port.
    pub fn name(self) -> String {
        id("port", self.number)
    }

    pub fn instance(self) -> String {
        id("instance", self.number)
    }

    pub fn project(self) -> String {
        id("project", self.network_number()).replace('-', "")
    }

    pub fn network(self) -> String {
        id("network", self.network_number())
    }

    /// A network's ports are on all hosts.
    pub fn network_number(self) -> usize {
        self.number % self.networks
    }

    /// The port's number within its network.
    fn key(self) -> usize {
        self.number / self.networks
    }

    pub fn tunnel_key(self) -> i64 {
        self.key() as i64 + 1
    }

    pub fn address(self) -> IpAddr {
        let (network, key) = (self.network_number(), self.key());
        IpAddr::from([10, (network % 256) as u8, (key / 250 % 256) as u8, (key % 250 + 3) as u8])
    }

    /// The address that the next revision replaces.
    pub fn second_address(self) -> IpAddr {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, (self.key() % 65536) as u16, self.revision.into()])
    }

    pub fn mac(self) -> String {
        let number = self.number;
        format!("fa:16:3e:{:02x}:{:02x}:{:02x}", number >> 16 & 255, number >> 8 & 255, number & 255)
    }

    /// The columns `mac` and `port_security`.
    pub fn addresses(self) -> Vec<String> {
        vec![format!("{} {}", self.mac(), self.address())]
    }

    /// The name of the tap.
    pub fn tap(self) -> String {
        format!("tap{}", &self.name()[..11])
    }

    pub fn ifindex(self) -> u32 {
        // Devices of a host only have to differ from each other.
        (FIRST_IFINDEX + self.number) as u32
    }

    /// Neutron's ids of it.
    pub fn external_ids(self) -> [(&'static str, String); 13] {
        [
            ("neutron:cidrs", format!("{}/16 {}/64", self.address(), self.second_address())),
            ("neutron:device_id", self.instance()),
            ("neutron:device_owner", "compute:nova".to_owned()),
            ("neutron:mtu", String::new()),
            ("neutron:network_name", format!("neutron-{}", self.network())),
            ("neutron:port_capabilities", String::new()),
            ("neutron:port_name", String::new()),
            ("neutron:project_id", self.project()),
            ("neutron:revision_number", self.revision.to_string()),
            ("neutron:security_group_ids", id("group", self.network_number())),
            ("neutron:subnet_pool_addr_scope4", String::new()),
            ("neutron:subnet_pool_addr_scope6", String::new()),
            ("neutron:vnic_type", "normal".to_owned()),
        ]
    }
}

/// A UUID that follows from a kind and a number, and looks random as those in databases do.
pub fn id(kind: &str, number: usize) -> String {
    let kind = kind.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let half = |salt: u64| {
        // splitmix64
        let mut x = (number as u64 ^ kind << 32).wrapping_add(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    Uuid::from_u64_pair(half(1), half(2)).to_string()
}
