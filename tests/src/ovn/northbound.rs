//! The Northbound rows of networks and ports, as Neutron's OVN driver writes them.

use std::process::Command;

use anyhow::Result;

use super::{Routing, daemons::HOSTNAME};
use crate::{
    command::{Words as _, run},
    port::{GATEWAY, METADATA_PORT, Network, PREFIX_LENGTH, Port, SUBNET, mac, uuid},
};

/// The port group that drops what no security group allows.
pub(super) fn write_globals(nbctl: &mut Command) -> Result<()> {
    nbctl.words("set NB_Global . options:northd_probe_interval=30000 -- pg-add neutron_pg_drop");
    for (direction, port) in [("to-lport", "outport"), ("from-lport", "inport")] {
        nbctl.words(format!("-- acl-add neutron_pg_drop {direction} 1001"));
        nbctl.arg(format!("{port} == @neutron_pg_drop && ip")).arg("drop");
    }
    run(nbctl)?;
    Ok(())
}

pub(super) fn write_network(
    nbctl: &mut Command,
    network: &Network,
    routing: Routing,
    mtu: u32,
) -> Result<()> {
    let Network { id, name, security_group, .. } = network;
    let switch = format!("neutron-{id}");
    nbctl.words(format!("ls-add {switch} -- set Logical_Switch {switch}")).arg(map(
        "external_ids",
        &[
            ("neutron:network_name", name),
            ("neutron:mtu", &mtu.to_string()),
            ("neutron:revision_number", "2"),
            ("neutron:availability_zone_hints", ""),
            ("neutron:provnet-network-type", "geneve"),
        ],
    ));

    let mut options = vec![
        ("server_id", GATEWAY.to_string()),
        ("server_mac", mac()?),
        ("lease_time", "43200".to_owned()),
        ("mtu", mtu.to_string()),
        ("dns_server", "{8.8.8.8}".to_owned()),
    ];
    let mut routes = format!("169.254.169.254/32,{METADATA_PORT}");
    if routing == Routing::Routed {
        routes.push_str(&format!(", 0.0.0.0/0,{GATEWAY}"));
        options.push(("router", GATEWAY.to_string()));
    }
    options.push(("classless_static_route", format!("{{{routes}}}")));
    let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
    nbctl.words(format!("-- --id=@dhcp create DHCP_Options cidr={SUBNET}"));
    nbctl.arg(map("options", &options)).arg(map(
        "external_ids",
        &[("subnet_id", &uuid()?), ("neutron:network_id", id), ("neutron:revision_number", "0")],
    ));

    let metadata_port = uuid()?;
    nbctl.words(format!("-- lsp-add {switch} {metadata_port} -- lsp-set-type {metadata_port} localport"));
    nbctl.words(format!("-- lsp-set-addresses {metadata_port}")).arg(format!("{} {METADATA_PORT}", mac()?));
    nbctl.words(format!("-- set Logical_Switch_Port {metadata_port} enabled=true")).arg(port_external_ids(
        network_of(network),
        &format!("ovnmeta-{id}"),
        "network:distributed",
        &format!("{METADATA_PORT}/{PREFIX_LENGTH}"),
        "",
    ));
    // Neutron's own agent reads it there.
    nbctl.words(format!("-- set Logical_Switch_Port {metadata_port}"));
    nbctl.arg(format!("external_ids:\"neutron:mtu\"=\"{mtu}\""));

    let group = port_group(security_group);
    nbctl.words(format!("-- pg-add {group} -- set Port_Group {group}")).arg(map(
        "external_ids",
        &[("neutron:security_group_id", security_group), ("neutron:revision_number", "2")],
    ));
    for family in ["ip4", "ip6"] {
        nbctl.words(format!("-- acl-add {group} from-lport 1002"));
        nbctl.arg(format!("inport == @{group} && {family}")).arg("allow-related");
    }
    nbctl.words(format!("-- acl-add {group} to-lport 1002"));
    nbctl.arg(format!("outport == @{group} && ip4 && ip4.src == ${group}_ip4")).arg("allow-related");

    if routing == Routing::Routed {
        write_router(nbctl, network)?;
    }
    run(nbctl)?;
    Ok(())
}

fn write_router(nbctl: &mut Command, network: &Network) -> Result<()> {
    let (router, port) = (uuid()?, uuid()?);
    let switch = format!("neutron-{}", network.id);
    nbctl.words(format!("-- lr-add neutron-{router} -- set Logical_Router neutron-{router}")).arg(map(
        "external_ids",
        &[("neutron:router_name", &format!("{}-router", network.name)), ("neutron:revision_number", "2")],
    ));
    nbctl.words(format!("-- lrp-add neutron-{router} lrp-{port} {} {GATEWAY}/{PREFIX_LENGTH}", mac()?));
    nbctl.words(format!("-- lsp-add {switch} {port} -- lsp-set-type {port} router"));
    nbctl.words(format!("-- lsp-set-addresses {port} router"));
    nbctl
        .words(format!("-- lsp-set-options {port} router-port=lrp-{port} -- set Logical_Switch_Port {port}"));
    nbctl.arg(port_external_ids(
        network_of(network),
        &router,
        "network:router_interface",
        &format!("{GATEWAY}/{PREFIX_LENGTH}"),
        "",
    ));
    Ok(())
}

/// A port of a guest, or with `parent`, its id and the VLAN, a subport of a trunk.
pub(super) fn write_port(
    nbctl: &mut Command,
    port: &Port,
    dhcp_options: &str,
    parent: Option<(&str, u16)>,
) -> Result<()> {
    let Port { id, mac, address, instance, project, network, security_group, .. } = port;
    let addresses = format!("{mac} {address}");
    nbctl.words(format!("--wait=sb lsp-add neutron-{network} {id}"));
    // Neutron lets a subport have no device_id.
    let (device_id, device_owner) = match parent {
        None => (instance.as_str(), "compute:nova"),
        Some((parent, vlan)) => {
            nbctl.words(format!("{parent} {vlan}"));
            ("", "trunk:subport")
        }
    };
    nbctl.words(format!("-- lsp-set-addresses {id}")).arg(&addresses);
    nbctl.words(format!("-- lsp-set-port-security {id}")).arg(&addresses);
    nbctl.words(format!("-- lsp-set-dhcpv4-options {id} {dhcp_options}"));
    nbctl.words(format!("-- lsp-set-options {id} requested-chassis={HOSTNAME}"));
    nbctl.words(format!("-- set Logical_Switch_Port {id} enabled=true")).arg(port_external_ids(
        (network, project),
        device_id,
        device_owner,
        &format!("{address}/{PREFIX_LENGTH}"),
        security_group,
    ));
    nbctl.words(format!("-- --id=@port get Logical_Switch_Port {id}"));
    for group in [&port_group(security_group), "neutron_pg_drop"] {
        nbctl.words(format!("-- add Port_Group {group} ports @port"));
    }
    run(nbctl)?;
    Ok(())
}

fn network_of(network: &Network) -> (&str, &str) {
    (&network.id, &network.project)
}

fn port_external_ids(
    (network, project): (&str, &str),
    device_id: &str,
    device_owner: &str,
    cidrs: &str,
    security_group: &str,
) -> String {
    let ids = neutron_ids((network, project), device_id, device_owner, cidrs, security_group);
    let ids: Vec<_> = ids.iter().map(|(key, value)| (*key, value.as_str())).collect();
    map("external_ids", &ids)
}

/// Neutron's ids of a port, which northd copies into the Southbound.
pub(super) fn neutron_ids(
    (network, project): (&str, &str),
    device_id: &str,
    device_owner: &str,
    cidrs: &str,
    security_group: &str,
) -> [(&'static str, String); 13] {
    [
        ("neutron:port_name", String::new()),
        ("neutron:device_id", device_id.to_owned()),
        ("neutron:device_owner", device_owner.to_owned()),
        ("neutron:project_id", project.to_owned()),
        ("neutron:cidrs", cidrs.to_owned()),
        ("neutron:network_name", format!("neutron-{network}")),
        ("neutron:security_group_ids", security_group.to_owned()),
        ("neutron:subnet_pool_addr_scope4", String::new()),
        ("neutron:subnet_pool_addr_scope6", String::new()),
        ("neutron:revision_number", "3".to_owned()),
        ("neutron:vnic_type", "normal".to_owned()),
        ("neutron:port_capabilities", String::new()),
        ("neutron:mtu", String::new()),
    ]
}

pub(super) fn port_group(security_group: &str) -> String {
    format!("pg_{}", security_group.replace('-', "_"))
}

/// `column={"key"="value",...}` as the database tools read it.
fn map(column: &str, pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{key:?}={value:?}")).collect();
    format!("{column}={{{}}}", pairs.join(","))
}
