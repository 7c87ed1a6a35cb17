//! Changes by Neutron of a port that is there: where it is to be, whose it is, and which trunk it is in.

use anyhow::Result;

use super::Lab;
use crate::{
    command::{Words as _, run},
    port::{METADATA_PORT, Network, Port, mac, uuid},
};

impl Lab {
    /// Names the chassis that the port is to be on, by their host names with commas between; none for an empty text. More
    /// options may follow.
    pub fn request_chassis(&self, port: &Port, hosts: &str) -> Result<()> {
        let option = if hosts.is_empty() { String::new() } else { format!("requested-chassis={hosts}") };
        run(self.nbctl().words(format!("--wait=sb lsp-set-options {} {option}", port.id)))?;
        Ok(())
    }

    /// Gives the port to an instance, or with an empty id to none.
    pub fn set_device(&self, port: &Port, instance: &str) -> Result<()> {
        run(self
            .nbctl()
            .words(format!("--wait=sb set Logical_Switch_Port {}", port.id))
            .arg(format!("external_ids:\"neutron:device_id\"=\"{instance}\"")))?;
        Ok(())
    }

    /// Puts a port that is there into a trunk, as Neutron's trunk driver does.
    pub fn add_subport(&self, port: &Port, parent: &Port, vlan: u16) -> Result<()> {
        run(self
            .nbctl()
            .words(format!("--wait=sb set Logical_Switch_Port {} tag={vlan}", port.id))
            .arg(format!("parent_name=\"{}\"", parent.id))
            .arg("external_ids:\"neutron:device_owner\"=\"trunk:subport\""))?;
        Ok(())
    }

    /// Takes a port out of its trunk, and leaves it in its network.
    pub fn remove_subport(&self, port: &Port) -> Result<()> {
        let id = &port.id;
        run(self
            .nbctl()
            .words(format!("--wait=sb clear Logical_Switch_Port {id} parent_name tag tag_request"))
            .words(format!("-- set Logical_Switch_Port {id}"))
            .arg("external_ids:\"neutron:device_owner\"=\"\""))?;
        Ok(())
    }

    /// Gives the port another MAC address.
    pub fn set_mac(&self, port: &Port, mac: &str) -> Result<()> {
        let (id, addresses) = (&port.id, format!("{mac} {}", port.address));
        let mut nbctl = self.nbctl();
        nbctl.words(format!("--wait=hv lsp-set-addresses {id}")).arg(&addresses);
        run(nbctl.words(format!("-- lsp-set-port-security {id}")).arg(&addresses))?;
        Ok(())
    }

    /// Deletes the network's metadata port and makes another one: only what is in its `device_id` and the address stay.
    pub fn replace_metadata_port(&self, network: &Network) -> Result<String> {
        let (switch, device) = (format!("neutron-{}", network.id), format!("ovnmeta-{}", network.id));
        let find = format!(
            "--bare --columns=name find Logical_Switch_Port external_ids:neutron\\:device_id={device}"
        );
        let (former, new) = (run(self.nbctl().words(find))?, uuid()?);
        run(self.nbctl().words(format!("--wait=hv lsp-del {}", former.trim())))?;
        let mut add = self.nbctl();
        add.words(format!("--wait=hv lsp-add {switch} {new} -- lsp-set-type {new} localport"));
        add.words(format!("-- lsp-set-addresses {new}")).arg(format!("{} {METADATA_PORT}", mac()?));
        add.words(format!("-- set Logical_Switch_Port {new} external_ids:neutron\\:device_id={device}"));
        run(add.words(format!("external_ids:neutron\\:network_name={switch}")))?;
        Ok(new)
    }

    /// The rows of chassis in a column of the port's row in the Southbound.
    pub fn binding(&self, port: &Port, column: &str) -> Result<String> {
        let find = format!("--bare --columns={column} find Port_Binding logical_port={}", port.id);
        Ok(run(self.sbctl().words(find))?.trim().to_owned())
    }
}
