//! Defaults of options that no file sets, for references to them: Neutron's, as far as its metadata agent registers them.
use std::net::UdpSocket;

use super::{
    ini::DEFAULT,
    setting::Preset,
    table::{OVN, TABLE},
};

/// Options of Neutron's that are of no interest here and may be referred to, by section and name; what has no default is
/// empty in a reference.
const OTHERS: &[(&str, &str, &str)] = &[
    (DEFAULT, "bind_host", "0.0.0.0"),
    (DEFAULT, "bind_port", "9696"),
    (DEFAULT, "dns_domain", "openstacklocal"),
    (DEFAULT, "external_pids", "$state_path/external/pids"),
    (DEFAULT, "metadata_proxy_socket", "$state_path/metadata_proxy"),
    (DEFAULT, "metadata_proxy_user", ""),
    (DEFAULT, "metadata_proxy_group", ""),
    (DEFAULT, "log_file", ""),
    (DEFAULT, "log_dir", ""),
    (OVN, "ovn_nb_connection", "tcp:127.0.0.1:6641"),
    (OVN, "ovn_nb_private_key", ""),
    (OVN, "ovn_nb_certificate", ""),
    (OVN, "ovn_nb_ca_cert", ""),
];

/// The default of an option, references in it as they stand.
pub(super) fn of(section: &str, option: &str) -> Option<String> {
    match (section, option) {
        (DEFAULT, "host") => Some(host()),
        (DEFAULT, "my_ip") => Some(my_ip().unwrap_or_else(|| "127.0.0.1".to_owned())),
        _ => of_table(section, option)
            .or_else(|| {
                let other = OTHERS.iter().find(|(known, name, _)| (*known, *name) == (section, option));
                other.map(|(.., text)| *text)
            })
            .map(str::to_owned),
    }
}

fn of_table(section: &str, option: &str) -> Option<&'static str> {
    let entry = TABLE.iter().find(|entry| (entry.section(), entry.name()) == (section, option))?;
    match entry.preset() {
        Preset::Text(text) => Some(text),
        Preset::Required { .. } => Some(""),
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
