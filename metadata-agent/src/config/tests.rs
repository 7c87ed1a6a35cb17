//! Tests of whole configurations.
use std::{path::Path, time::Duration};

use super::*;

fn read(text: &str) -> Result<Config, Error> {
    let mut ini = Ini::default();
    ini.parse(Path::new("test.ini"), text)?;
    Config::from_ini(&Options(&ini))
}

const SECRET: &str = "metadata_proxy_shared_secret = s3cret\n";

#[test]
fn neutrons_file_as_it_is() {
    let text = "[DEFAULT]\nnova_metadata_host = 10.0.0.5\nnova_metadata_port = 8775\n\
        metadata_proxy_shared_secret = s3cret\ndebug = True\nmetadata_workers = 4\nstate_path = /var/lib/neutron\n\
        [ovs]\novsdb_connection = tcp:127.0.0.1:6640\n[ovn]\novn_sb_connection = tcp:10.0.0.9:6642,\n  tcp:10.0.0.10:6642\novsdb_probe_interval = 30000\n\
        [agent]\nroot_helper = sudo\n";
    let config = read(text).unwrap();
    assert_eq!(config.nova.endpoints[0].authority(), "10.0.0.5:8775");
    assert!(config.debug);
    let Source::Ovn { ovs, southbound } = &config.source else { panic!("not OVN") };
    assert_eq!(ovs.remotes, "tcp:127.0.0.1:6640".parse().unwrap());
    assert_eq!(southbound.remotes, "tcp:10.0.0.9:6642,tcp:10.0.0.10:6642".parse().unwrap());
    assert_eq!(southbound.probe_interval, Duration::from_secs(30));
    assert_eq!(config.state_dir, Path::new("/var/lib/neutron/metadata-agent"));
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn defaults() {
    let config = read(SECRET).unwrap();
    assert_eq!(config.run_dir, Path::new("/run/metadata-agent"));
    assert_eq!(config.netns, "metadata");
    assert_eq!(config.limits.hold, Duration::from_secs(8));
    assert_eq!(config.nova.endpoints[0].authority(), "127.0.0.1:8775");
}

#[test]
fn errors_name_place_and_remedy() {
    let cases = [
        ("", "metadata_proxy_shared_secret is not set in any configuration file: set it to"),
        (
            "nova_metadata_port = 99999\n",
            "test.ini:2: [DEFAULT] nova_metadata_port = \"99999\": expected a whole",
        ),
        ("debug = maybe\n", "test.ini:2: [DEFAULT] debug = \"maybe\": expected true or false"),
        (
            "[metadata_ebpf]\nnetsn = x\n",
            "test.ini:3: [metadata_ebpf] has no option \"netsn\"; it has: netns",
        ),
        (
            "[metadata_ebpf]\nrun_dir = x\n",
            "test.ini:3: [metadata_ebpf] run_dir = \"x\": expected an absolute path",
        ),
        (
            "[metadata_ebpf]\nnetns = a/b\n",
            "test.ini:3: [metadata_ebpf] netns = \"a/b\": expected a file name",
        ),
        (
            "[ovn]\novn_sb_connection = udp:1.2.3.4:5\n",
            "test.ini:3: [ovn] ovn_sb_connection = \"udp:1.2.3.4:5\": ",
        ),
        ("[ovn]\novn_sb_connection = ssl:1.2.3.4:5\n", "[ovn] ovn_sb_private_key is not set"),
        ("[metadata_ebpf]\nunknown_identity_hold = -1\n", "expected seconds"),
    ];
    for (text, expected) in cases {
        let text = if text.is_empty() { String::new() } else { format!("{SECRET}{text}") };
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
