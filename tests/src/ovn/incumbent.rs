//! Neutron's own metadata agent for OVN, as far as a chassis sees it: a process of its name, and for each network what it
//! makes (`agent/ovn/metadata/agent.py`, `provision_datapath`), with Debian's haproxy.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Lab, MTU, daemons, northbound};
use crate::{
    cloud::Chassis as _,
    command::{Words as _, require, run},
    guest::Guest,
    nova::{self, signature},
    port::Network,
    wait::until,
};

const START: Duration = Duration::from_secs(60);

/// Its program, which is started by a command, as by an operator; what it made is removed on drop.
#[derive(Debug)]
pub struct Incumbent {
    program: PathBuf,
    /// The namespace of the host.
    host: PathBuf,
    folder: PathBuf,
    networks: Vec<String>,
}

impl Incumbent {
    /// Writes its program and what it knows. It serves these networks, and these guests as themselves.
    pub fn install(lab: &Lab, networks: &[&Network], guests: &[&Guest]) -> Result<Self> {
        require(&["haproxy", "nsenter", "ethtool"])?;
        let folder = lab.sandbox().path("incumbent");
        fs::create_dir(&folder)?;
        let mut known = String::from("NETWORKS = {\n");
        for network in networks {
            let (port, mac) = lab.metadata_port(network)?;
            writeln!(known, "    '{}': ('{port}', '{mac}'),", network.id)?;
        }
        known.push_str("}\nINSTANCES = {\n");
        for guest in guests {
            let port = &guest.port;
            let (network, address, signature) = (&port.network, port.address, signature(&port.instance));
            let (instance, project) = (&port.instance, &port.project);
            writeln!(known, "    ('{network}', '{address}'): ('{instance}', '{project}', '{signature}'),")?;
        }
        known.push_str("}\n");
        for (name, value) in [
            ("HOST", lab.ovs.name().to_owned()),
            ("STATE", folder.display().to_string()),
            ("SWITCH", format!("unix:{}", lab.sandbox().path(daemons::OVS_SOCKET).display())),
            ("NOVA", nova::ADDRESS.to_string()),
        ] {
            writeln!(known, "{name} = '{value}'")?;
        }
        writeln!(known, "MTU = {MTU}")?;
        let program = folder.join("neutron-ovn-metadata-agent");
        fs::write(&program, format!("{known}{}", include_str!("incumbent.py")))?;
        let networks = networks.iter().map(|network| network.id.clone()).collect();
        Ok(Self { program, host: lab.host().path(), folder, networks })
    }

    /// The command that starts it.
    pub fn start_command(&self) -> String {
        // As a unit's: nothing happens if it runs. A zombie has no command line.
        format!(
            "grep -qs . /proc/$(cat {pid} || echo none)/cmdline || setsid --fork nsenter --net={} /usr/bin/python3 {} >>{log} 2>&1",
            self.host.display(),
            self.program.display(),
            pid = self.folder.join("pid").display(),
            log = self.folder.join("log").display()
        )
    }

    /// The command that stops it. As with the real one, haproxies and namespaces stay.
    pub fn stop_command(&self) -> String {
        format!("kill $(cat {})", self.folder.join("pid").display())
    }

    /// Starts it, and waits until it serves.
    pub fn start(&self) -> Result<()> {
        run(Command::new("sh").arg("-c").arg(self.start_command()))?;
        until("the other agent serves", START, || {
            let log = fs::read_to_string(self.folder.join("log"))?;
            ensure!(log.lines().any(|line| line == "serving"), "{log}");
            Ok(())
        })
    }

    /// Names of the devices, namespaces and processes that are there for a network.
    pub fn traces(&self, lab: &Lab, network: &Network) -> Result<Vec<String>> {
        let id = &network.id;
        let (namespace, device) = (format!("ovnmeta-{id}"), format!("tap{}0", &id[..10]));
        let mut traces = Vec::new();
        if PathBuf::from("/run/netns").join(&namespace).exists() {
            traces.push(namespace);
        }
        if lab.ovs.ip(format!("link show dev {device}")).is_ok() {
            traces.push(format!("link {device}"));
        }
        if run(lab.vsctl().words("list-ports br-int"))?.lines().any(|port| port == device) {
            traces.push(format!("port {device}"));
        }
        if self.haproxy(id).is_some() {
            traces.push("haproxy".to_owned());
        }
        Ok(traces)
    }

    fn haproxy(&self, network: &str) -> Option<u32> {
        let process =
            fs::read_to_string(self.folder.join(format!("{network}.pid"))).ok()?.trim().parse().ok()?;
        let command = fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?;
        command.starts_with("haproxy").then_some(process)
    }
}

impl Drop for Incumbent {
    fn drop(&mut self) {
        let _ = run(Command::new("sh").arg("-c").arg(self.stop_command()));
        for network in &self.networks {
            if let Some(process) = self.haproxy(network) {
                let _ = run(Command::new("kill").words(format!("-9 {process}")));
            }
            if PathBuf::from(format!("/run/netns/ovnmeta-{network}")).exists() {
                let _ = run(Command::new("ip").words(format!("netns del ovnmeta-{network}")));
            }
        }
    }
}

impl Lab {
    /// Removes the rules of a network's security group and those of all: everything passes, and no connection is followed.
    pub fn remove_rules(&self, network: &Network) -> Result<()> {
        let group = northbound::port_group(&network.security_group);
        run(self.nbctl().words(format!("--wait=hv acl-del {group} -- acl-del neutron_pg_drop")))?;
        Ok(())
    }

    /// A network's metadata port: its id and its MAC address.
    pub fn metadata_port(&self, network: &Network) -> Result<(String, String)> {
        let ids = format!("external_ids:neutron\\:device_id=ovnmeta-{}", network.id);
        let find = |column: &str| -> Result<String> {
            let find = format!("--bare --columns={column} find Logical_Switch_Port");
            run(self.nbctl().words(find).arg(&ids))
        };
        let (name, addresses) = (find("name")?, find("addresses")?);
        let mac = addresses.split_whitespace().next().context("no metadata port")?;
        Ok((name.trim().to_owned(), mac.to_owned()))
    }
}
