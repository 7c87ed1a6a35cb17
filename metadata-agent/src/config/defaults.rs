//! Defaults of options that no file sets, for references to them: Neutron's, as far as its metadata agent registers them.
use std::net::UdpSocket;

use super::ini::DEFAULT;

/// `[DEFAULT] state_path`.
pub(super) const STATE_PATH: &str = "/var/lib/neutron";
/// `[DEFAULT] nova_metadata_host`.
pub(super) const NOVA_HOST: &str = "127.0.0.1";
/// `[DEFAULT] nova_metadata_port`.
pub(super) const NOVA_PORT: u16 = 8775;
/// `[ovs] ovsdb_connection`. Neutron's is where a build without prefix has it, and set by every distribution.
pub(super) const OVS: &str = "unix:/run/openvswitch/db.sock";
/// `[ovn] ovn_sb_connection`.
pub(super) const SOUTHBOUND: &str = "tcp:127.0.0.1:6642";

/// Those that are texts, by section and name; what has no default is empty in a reference.
const TEXTS: &[(&str, &str, &str)] = &[
    (DEFAULT, "state_path", STATE_PATH),
    (DEFAULT, "bind_host", "0.0.0.0"),
    (DEFAULT, "bind_port", "9696"),
    (DEFAULT, "dns_domain", "openstacklocal"),
    (DEFAULT, "external_pids", "$state_path/external/pids"),
    (DEFAULT, "metadata_proxy_socket", "$state_path/metadata_proxy"),
    (DEFAULT, "metadata_proxy_user", ""),
    (DEFAULT, "metadata_proxy_group", ""),
    (DEFAULT, "metadata_proxy_shared_secret", ""),
    (DEFAULT, "nova_metadata_host", NOVA_HOST),
    (DEFAULT, "nova_metadata_port", "8775"),
    (DEFAULT, "nova_metadata_protocol", "http"),
    (DEFAULT, "auth_ca_cert", ""),
    (DEFAULT, "nova_client_cert", ""),
    (DEFAULT, "nova_client_priv_key", ""),
    (DEFAULT, "log_file", ""),
    (DEFAULT, "log_dir", ""),
    ("ovs", "ovsdb_connection", OVS),
    ("ovn", "ovn_nb_connection", "tcp:127.0.0.1:6641"),
    ("ovn", "ovn_nb_private_key", ""),
    ("ovn", "ovn_nb_certificate", ""),
    ("ovn", "ovn_nb_ca_cert", ""),
    ("ovn", "ovn_sb_connection", SOUTHBOUND),
    ("ovn", "ovn_sb_private_key", ""),
    ("ovn", "ovn_sb_certificate", ""),
    ("ovn", "ovn_sb_ca_cert", ""),
];

/// The default of an option, references in it as they stand.
pub(super) fn of(section: &str, option: &str) -> Option<String> {
    match (section, option) {
        (DEFAULT, "host") => Some(host()),
        (DEFAULT, "my_ip") => Some(my_ip().unwrap_or_else(|| "127.0.0.1".to_owned())),
        _ => TEXTS
            .iter()
            .find(|(known, name, _)| (*known, *name) == (section, option))
            .map(|(.., text)| (*text).to_owned()),
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// The address that packets to elsewhere would have; nothing is sent (`oslo_utils.netutils.get_my_ipv4`).
fn my_ip() -> Option<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect("192.0.2.0:80").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

/// `[metadata_ebpf] guest_user`, where there is one: packages make it.
pub const GUEST_USER: &str = "metadata-agent";
