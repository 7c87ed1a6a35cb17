//! Trunks on a chassis: a parent port that is plugged, and subports that OVN finds by their parent and tag.

use std::sync::atomic::Ordering;

use anyhow::Result;

use super::{Lab, MTU};
use crate::{
    port::Port,
    trunk::{Trunk, Uplink},
};

impl Lab {
    /// A new instance with a trunk: created, plugged, bound, and every address leased, in each VLAN from its network.
    pub fn add_trunk(&self, uplink: Uplink, parent: Port, subports: Vec<(u16, Port)>) -> Result<Trunk> {
        self.create_port(&parent)?;
        for (vlan, port) in &subports {
            self.create_subport(port, &parent, *vlan)?;
        }
        let trunk = Trunk::create(&self.sandbox, parent, subports)?;
        let ifindex = self.next_ifindex.fetch_add(1, Ordering::Relaxed);
        trunk.insert_nic(uplink, &self.host, ifindex, MTU)?;
        if self.is_split() {
            self.bridge_tap(&trunk.parent.port, ifindex)?;
        }
        self.plug(&trunk.parent)?;
        self.wait_bound(&trunk.parent)?;
        for guest in trunk.guests() {
            self.explain(guest.dhcp())?;
        }
        Ok(trunk)
    }

    /// Writes a subport's rows, as Neutron does when it is added to a trunk.
    pub fn create_subport(&self, port: &Port, parent: &Port, vlan: u16) -> Result<()> {
        self.write_port(port, Some((&parent.id, vlan)))
    }
}
