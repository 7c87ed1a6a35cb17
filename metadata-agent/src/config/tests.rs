//! Tests of whole configurations.
use std::{path::Path, time::Duration};

use super::*;

fn read(text: &str) -> Result<Config, Error> {
    let mut ini = Ini::default();
    ini.parse(Path::new("test.ini"), text)?;
    Config::from_ini(&Options::new(&ini))
}

const SECRET: &str = "[DEFAULT]\nmetadata_proxy_shared_secret = s3cret\n";

#[test]
fn neutrons_file_as_it_is() {
    let text = "[DEFAULT]\nnova_metadata_host = 10.0.0.5\nnova_metadata_port = 8775\n\
        metadata_proxy_shared_secret = s3cret\ndebug = True\nmetadata_workers = 4\nstate_path = /var/lib/neutron\n\
        [ovs]\novsdb_connection = tcp:127.0.0.1:6640\n[ovn]\novn_sb_connection = tcp:10.0.0.9:6642,\n  tcp:10.0.0.10:6642\novsdb_probe_interval = 30000\n\
        [agent]\nroot_helper = sudo\n";
    let config = read(text).unwrap();
    assert_eq!(config.nova.endpoints[0].authority(), "10.0.0.5:8775");
    assert!(config.debug);
    let SourceOptions::Ovn { ovs, southbound, .. } = &config.source else { panic!("not OVN") };
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
fn options_that_differ_from_their_defaults_are_told() {
    let defaults = "debug = off\nnova_metadata_host = 127.0.0.1\nstate_path = /var/lib/neutron\n\
        [ovn]\novn_sb_connection = tcp:127.0.0.1:6642\n[metadata_haproxy]\ntimeout_connect = 5.0\n\
        [metadata_ebpf]\nconnections = 8192\nrun_dir = /run/metadata-agent\n[agent]\nroot_helper = sudo\n";
    let secret = "[DEFAULT] metadata_proxy_shared_secret = (set)";
    let config = read(&format!("{SECRET}{defaults}")).unwrap();
    assert_eq!(config.differing, [secret]);
    assert_eq!(config.files, [Path::new("test.ini")]);
    let others = "debug = on\nstate_path = /srv\nnova_metadata_host = $my_ip\n\
        [ovs]\novsdb_connection = unix:/$metadata_proxy_shared_secret\n\
        [metadata_ebpf]\nconnection_rate = 7\nadmin_listen = 127.0.0.1:9\ninventory = /ports.toml\n";
    let differing = read(&format!("{SECRET}{others}[ovn]\novsdb_probe_interval = 0\n")).unwrap().differing;
    let own = [
        "[DEFAULT] debug = on",
        secret,
        "[DEFAULT] nova_metadata_host = $my_ip",
        "[DEFAULT] state_path = /srv",
        "[metadata_ebpf] admin_listen = 127.0.0.1:9",
        "[metadata_ebpf] connection_rate = 7",
        "[metadata_ebpf] inventory = /ports.toml",
    ];
    // Databases are of no use beside an inventory.
    assert_eq!(differing, own);
    let differing = read(&format!("{SECRET}{}", others.replace("inventory", "#"))).unwrap().differing;
    assert!(differing.contains(&"[ovs] ovsdb_connection = unix:/$metadata_proxy_shared_secret".to_owned()));
    assert!(!differing.concat().contains("s3cret"), "{differing:?}");
}

#[test]
fn errors_name_place_and_remedy() {
    let cases = [
        ("debug = $x\n", "test.ini:3: [DEFAULT] debug has a reference to an option that is not set"),
        ("", "metadata_proxy_shared_secret is not set in any configuration file: set it to"),
        (
            "nova_metadata_port = 99999\n",
            "test.ini:3: [DEFAULT] nova_metadata_port = \"99999\": expected a whole",
        ),
        ("debug = maybe\n", "test.ini:3: [DEFAULT] debug = \"maybe\": expected true or false"),
        (
            "[metadata_ebpf]\nnetsn = x\n",
            "test.ini:4: [metadata_ebpf] has no option \"netsn\"; it has: netns",
        ),
        (
            "[metadata_ebpf]\nrun_dir = x\n",
            "test.ini:4: [metadata_ebpf] run_dir = \"x\": expected an absolute path",
        ),
        (
            "[metadata_ebpf]\nnetns = a/b\n",
            "test.ini:4: [metadata_ebpf] netns = \"a/b\": expected a file name",
        ),
        (
            "[ovn]\novn_sb_connection = udp:1.2.3.4:5\n",
            "test.ini:4: [ovn] ovn_sb_connection = \"udp:1.2.3.4:5\": ",
        ),
        ("[ovn]\novn_sb_connection = ssl:1.2.3.4:5\n", "[ovn] ovn_sb_private_key is not set"),
        ("[metadata_ebpf]\nunknown_identity_hold = -1\n", "expected seconds"),
        ("[metadata_ebpf]\nlimit_status = 404\n", "expected 503 or 429"),
        ("[metadata_ebpf]\nconnections = 0\n", "expected a whole number from 1"),
        // One request must fit.
        (
            "[metadata_ebpf]\nrequest_body_bytes = 4194304\nunfinished_bytes = 2097152\n",
            "expected a whole number from 4210688",
        ),
        ("[metadata_ebpf]\nadmin_listen = 9775\n", "expected address:port"),
        ("[metadata_ebpf]\ntoken_mode = on\n", "expected off, optional or required"),
        ("[metadata_ebpf]\ntoken_networks = dmz\n", "\"dmz\" is no PATTERN:MODE"),
        ("[metadata_ebpf]\ntoken_required_for = /latest/user-data\n", "is no part of a path"),
        ("[metadata_ebpf]\ntoken_hop_limit = 65\n", "expected a whole number from 0 to 64"),
        ("[metadata_haproxy]\ntimeout_server = 0\n", "expected seconds, more than 0"),
        ("[metadata_rate_limiting]\nip_versions = 5\n", "expected 4, 6, or both"),
        ("nova_metadata_host = a/b\n", "\"a/b\" is no host[:port]"),
        ("nova_metadata_protocol = ftp\n", "expected http or https"),
    ];
    for (text, expected) in cases {
        let text = if text.is_empty() { String::new() } else { format!("{SECRET}{text}") };
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn neutrons_limits_and_times() {
    let text = format!(
        "{SECRET}[metadata_rate_limiting]\nrate_limit_enabled = True\nip_versions = 4,6\n\
         base_window_duration = 60\nbase_query_rate_limit = 100\nburst_query_rate_limit = 20\n\
         [metadata_haproxy]\ntimeout_connect = 3\ntimeout_client = 4\ntimeout_server = 5\n\
         timeout_http_request = 6\ntimeout_http_keep_alive = 7\n"
    );
    let Config { limits, nova, .. } = read(&text).unwrap();
    let window = |count, seconds| Some(WindowLimit { count, window: Duration::from_secs(seconds) });
    assert_eq!(limits.rates.windows, [window(100, 60), window(20, 10)]);
    let times = [nova.connect_timeout, limits.pause, nova.response_timeout, limits.head, limits.idle];
    assert_eq!(times.map(|time| time.as_secs()), [3, 4, 5, 6, 7]);
    assert_eq!(read(SECRET).unwrap().limits.rates.windows, [None, None]);
}

#[test]
fn https_to_nova() {
    let https = format!("{SECRET}nova_metadata_protocol = https\n");
    let tls = read(&https).unwrap().nova.tls.unwrap();
    assert_eq!(tls, NovaTls { ca: None, client: None, insecure: false });
    let text = format!(
        "{https}auth_ca_cert = /ca\nnova_client_cert = /c\nnova_client_priv_key = /k\nnova_metadata_insecure = true\n"
    );
    let client = ClientCertificate { certificate: "/c".into(), private_key: "/k".into() };
    let tls = read(&text).unwrap().nova.tls.unwrap();
    assert_eq!(tls, NovaTls { ca: Some("/ca".into()), client: Some(client), insecure: true });
    let error = read(&format!("{https}nova_client_cert = /c\n")).unwrap_err().to_string();
    assert!(error.contains("nova_client_priv_key is not set"), "{error}");
    // As Neutron: without https these are of no interest.
    assert_eq!(read(&format!("{SECRET}nova_client_cert = /c\n")).unwrap().nova.tls, None);
}

#[test]
fn an_empty_secret_is_a_warning() {
    assert_eq!(read(SECRET).unwrap().warnings(), Vec::<&str>::new());
    let [warning] = read("[DEFAULT]\nmetadata_proxy_shared_secret =\n").unwrap().warnings()[..] else {
        panic!("no warning")
    };
    assert!(warning.starts_with("[DEFAULT] metadata_proxy_shared_secret is empty"), "{warning}");
    let error = read("[DEFAULT]\nmetadata_proxy_shared_secret = pa$word\n").unwrap_err().to_string();
    assert!(error.contains("written $$") && !error.contains("$word"), "{error}");
}

#[test]
fn tokens_that_a_boot_has_no_time_for_are_a_warning() {
    let warnings = |lines: &str| read(&format!("{SECRET}[metadata_ebpf]\n{lines}\n")).unwrap().warnings();
    for lines in ["token_mode = required", "token_projects = 5*:required"] {
        let [warning] = warnings(lines)[..] else { panic!("no warning") };
        assert!(warning.contains("token_required_after is 0"), "{warning}");
        assert_eq!(warnings(&format!("{lines}\ntoken_required_after = 900")), Vec::<&str>::new());
    }
    assert_eq!(warnings("token_mode = optional"), Vec::<&str>::new());
}
