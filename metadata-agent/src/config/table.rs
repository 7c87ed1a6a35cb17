//! The table of options: each is declared here, and nowhere else.
//!
//! The parser takes defaults and ranges from it, and so do `check-config`, the sample configuration of the package and the
//! table of `docs/configuration.md` ([`printed`](super::printed)).
use ovsdb_client::Remotes;

use super::{
    AttachMode, LogFormat, TokenMode,
    endpoints::{self, Named},
    ini::DEFAULT,
    rules::{self, Rule},
    setting::{
        Boolean, Choice, Entry, Hidden, Milliseconds, Number, OptionalPath, Path, Preset, Seconds, Setting,
        Words,
    },
    words,
};

const OVS: &str = "ovs";
pub(super) const OVN: &str = "ovn";
/// Neutron's section for what haproxy did.
const HAPROXY: &str = "metadata_haproxy";
const RATE_LIMITING: &str = "metadata_rate_limiting";
/// Our section.
pub(super) const OWN: &str = "metadata_ebpf";

/// `[metadata_ebpf] guest_user`, where there is one: packages make it.
pub const GUEST_USER: &str = "metadata-agent";

const MOST: u32 = 1_000_000;
const COUNT: Number<u32> = Number { least: 0, most: MOST };
const POSITIVE: Number<u32> = Number { least: 1, most: MOST };
const BYTES: Number<usize> = Number { least: 1024, most: 16 << 20 };
const WINDOW: Number<u32> = Number { least: 1, most: 86_400 };
const TIMEOUT: Seconds = Seconds { least: None };
const TIME: Seconds = Seconds { least: Some(0) };
const MODES: Choice<TokenMode> = Choice(rules::MODES);

const fn option<K>(
    section: &'static str,
    name: &'static str,
    default: &'static str,
    kind: K,
    meaning: &'static str,
) -> Setting<K> {
    Setting { section, name, preset: Preset::Text(default), kind, meaning }
}

/// Declares options, and a list of all of them in that order.
macro_rules! table {
    ($($constant:ident: $kind:ty = $setting:expr;)*) => {
        $(pub(super) const $constant: Setting<$kind> = $setting;)*

        /// All options.
        pub(super) const TABLE: &[&dyn Entry] = &[$(&$constant),*];
    };
}

table! {
    NOVA_HOST: Words<Vec<Named>> = option(DEFAULT, "nova_metadata_host", "127.0.0.1",
        Words { parse: endpoints::endpoints, range: "host[:port], one or several" },
        "Nova's metadata service: a name or an address, or a list of them with commas.");
    NOVA_PORT: Number<u16> = option(DEFAULT, "nova_metadata_port", "8775", Number { least: 1, most: 65535 },
        "Its port, where `nova_metadata_host` has none.");
    NOVA_HTTPS: Choice<bool> = option(DEFAULT, "nova_metadata_protocol", "http",
        Choice(&[("http", false), ("https", true)]), "Its protocol.");
    NOVA_CA: OptionalPath = option(DEFAULT, "auth_ca_cert", "", OptionalPath,
        "Authorities of Nova's certificate, for https, or that certificate itself: a file, or a folder as `openssl rehash` \
         makes it. The system's where it is not set.");
    NOVA_CERTIFICATE: OptionalPath = option(DEFAULT, "nova_client_cert", "", OptionalPath,
        "Certificate to show to Nova, for https.");
    NOVA_KEY: OptionalPath = option(DEFAULT, "nova_client_priv_key", "", OptionalPath, "Its private key.");
    NOVA_INSECURE: Boolean = option(DEFAULT, "nova_metadata_insecure", "false", Boolean,
        "Accept any certificate of Nova's, whatever is in it.");
    SECRET: Hidden = Setting {
        section: DEFAULT,
        name: "metadata_proxy_shared_secret",
        preset: Preset::Required {
            remedy: "set it to the value of nova's [neutron] metadata_proxy_shared_secret, which may be empty",
        },
        kind: Hidden,
        meaning: "The secret that Nova has as `[neutron] metadata_proxy_shared_secret`. A warning if it is empty.",
    };
    STATE_PATH: Path = option(DEFAULT, "state_path", "/var/lib/neutron", Path,
        "`metadata-agent/identities.json` is kept below it.");
    AGENT_DOWN_TIME: Number<u32> = option(DEFAULT, "agent_down_time", "75", Number { least: 0, most: 31_536_000 },
        "Seconds of silence after which neutron-server takes an agent for dead. Signs of life are spread over a third of it, 3 \
         to 10 s.");
    DEBUG: Boolean = option(DEFAULT, "debug", "false", Boolean, "Log more; `RUST_LOG` wins.");

    OVS_CONNECTION: Words<Remotes> = option(OVS, "ovsdb_connection", "unix:/run/openvswitch/db.sock",
        Words { parse: words::local_remotes, range: "unix: or tcp: remotes" }, "The local Open vSwitch.");

    SOUTHBOUND: Words<Remotes> = option(OVN, "ovn_sb_connection", "tcp:127.0.0.1:6642",
        Words { parse: words::remotes, range: "unix:, tcp: or ssl: remotes" },
        "OVN's Southbound, a list with commas for a cluster.");
    SOUTHBOUND_KEY: OptionalPath = option(OVN, "ovn_sb_private_key", "", OptionalPath,
        "Private key, for ssl: remotes; it must be set for them, and is read again for each connection.");
    SOUTHBOUND_CERTIFICATE: OptionalPath = option(OVN, "ovn_sb_certificate", "", OptionalPath,
        "Its certificate, likewise.");
    SOUTHBOUND_CA: OptionalPath = option(OVN, "ovn_sb_ca_cert", "", OptionalPath,
        "Authorities of the Southbound's certificate, likewise.");
    PROBE_INTERVAL: Milliseconds = option(OVN, "ovsdb_probe_interval", "60000", Milliseconds,
        "Milliseconds of silence before a server is probed; 0 for never, else 1000 at least.");
    RETRY_INTERVAL: Seconds = option(OVN, "ovsdb_retry_max_interval", "8", TIME,
        "Seconds between attempts to connect, at most; 1 at least.");

    CONNECT_TIMEOUT: Seconds = option(HAPROXY, "timeout_connect", "5", TIMEOUT,
        "Seconds for a connection to Nova, and for Nova's machine to acknowledge what it is sent.");
    SERVER_TIMEOUT: Seconds = option(HAPROXY, "timeout_server", "32", TIMEOUT,
        "Seconds for Nova's answer to begin, and for pauses within it.");
    REQUEST_TIMEOUT: Seconds = option(HAPROXY, "timeout_http_request", "30", TIMEOUT,
        "Seconds for a guest to send a request's head, and as many for its body.");
    CLIENT_TIMEOUT: Seconds = option(HAPROXY, "timeout_client", "32", TIMEOUT,
        "Seconds that a guest may pause within a body, or in taking its answer.");
    IDLE_TIMEOUT: Seconds = option(HAPROXY, "timeout_http_keep_alive", "30", TIMEOUT,
        "Seconds that a connection may be idle.");

    RATE_LIMIT: Boolean = option(RATE_LIMITING, "rate_limit_enabled", "false", Boolean,
        "Neutron's rate limit, but for each tap, with both families together. Requests that were refused do not count, and \
         `request_rate` of `[metadata_ebpf]` holds as well.");
    IP_VERSIONS: Words<()> = option(RATE_LIMITING, "ip_versions", "4",
        Words { parse: words::ip_versions, range: "4, 6, or both" }, "Without effect: both families count together.");
    BASE_WINDOW: Number<u32> = option(RATE_LIMITING, "base_window_duration", "10", WINDOW, "Seconds of a window.");
    BASE_COUNT: Number<u32> = option(RATE_LIMITING, "base_query_rate_limit", "10", POSITIVE,
        "Requests in each such window.");
    BURST_WINDOW: Number<u32> = option(RATE_LIMITING, "burst_window_duration", "10", WINDOW,
        "Seconds of another window; both hold.");
    BURST_COUNT: Number<u32> = option(RATE_LIMITING, "burst_query_rate_limit", "10", POSITIVE,
        "Requests in each of those.");

    NETNS: Words<String> = option(OWN, "netns", "metadata",
        Words { parse: words::netns_name, range: "a file name of letters, digits, `-`, `_` and dots" },
        "Name of the service namespace.");
    RUN_DIR: Path = option(OWN, "run_dir", "/run/metadata-agent", Path, "Pins, admin socket, lock.");
    INVENTORY: OptionalPath = option(OWN, "inventory", "", OptionalPath,
        "A TOML file of taps and their identities, in place of OVN.");
    LOG_FORMAT: Choice<LogFormat> = option(OWN, "log_format", "text",
        Choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        "Form of a line of the log: words, or an object of JSON for programs that collect logs.");
    ATTACH: Choice<AttachMode> = option(OWN, "attach", "auto",
        Choice(&[("auto", AttachMode::Auto), ("tcx", AttachMode::Tcx), ("clsact", AttachMode::Clsact)]),
        "Attachment of the programs: TCX, a filter of clsact, or the former where the kernel has it. A restart with another \
         value changes it (an empty clsact qdisc stays on a tap that had one).");
    MONITOR_ALL: Boolean = option(OWN, "southbound_monitor_all", "false", Boolean,
        "Follow all rows of ports, and not those of this chassis: for sites whose servers are asked without conditions \
         (`ovn-monitor-all`, relays). The agent's memory then grows with the region, see docs/scale.md.");
    USER: Words<String> = option(OWN, "guest_user", GUEST_USER, Words { parse: words::user_name, range: "a user's name" },
        "User of the process that guests talk to, who must have nothing else; `nobody` where there is no user of that name.");
    CONFINEMENT_REQUIRED: Boolean = option(OWN, "confinement_required", "false", Boolean,
        "Do not start where that process cannot be confined as it should be. Else `show ready` has a note on what it lacks.");
    NETWORK_DEVICES: Boolean = option(OWN, "network_devices", "true", Boolean,
        "Serve ports without a tap, by adding a port to the integration bridge for each network that has any here and whose \
         metadata port nobody else has bound, see docs/ports.md.");
    LEASE: Seconds = option(OWN, "lease", "300", Seconds { least: Some(10) },
        "Seconds after the agent's last sign of life from which on its programs let frames pass; longer than a restart of \
         yours takes.");
    CONNECTION_RATE: Number<u32> = option(OWN, "connection_rate", "100", COUNT,
        "New connections a second of a tap, all its VLANs together, or of a port without one; so are all limits of a tap \
         below. 0 for no limit.");
    CONNECTION_BURST: Number<u32> = option(OWN, "connection_burst", "200", POSITIVE, "New connections at once.");
    ANSWER_RATE: Number<u32> = option(OWN, "answer_rate", "100", COUNT,
        "The same for ARP, neighbour discovery, echo, and segments of connections that nobody has. 0 for no limit.");
    ANSWER_BURST: Number<u32> = option(OWN, "answer_burst", "200", POSITIVE, "The same at once.");
    WORKERS: Number<usize> = option(OWN, "workers", "2", Number { least: 1, most: 120 }, "Threads that serve guests.");
    HOLD: Seconds = option(OWN, "unknown_identity_hold", "8", TIME,
        "Seconds that an unknown guest's request is held.");
    CONNECTIONS: Number<u32> = option(OWN, "connections", "8192", POSITIVE, "Connections of all guests together.");
    REQUESTS: Number<u32> = option(OWN, "requests", "1024", POSITIVE,
        "Requests of all guests together that are complete, and with Nova.");
    UNFINISHED_BYTES: Number<u32> = option(OWN, "unfinished_bytes", "33554432",
        Number { least: 1 << 20, most: 1 << 30 },
        "Bytes of all guests together: of requests that are not complete, and of answers that are not acknowledged, in the \
         kernel too. At least `request_head_bytes` and `request_body_bytes`.");
    PORT_CONNECTIONS: Number<u32> = option(OWN, "port_connections", "128", COUNT,
        "Connections of a tap, all its VLANs together; 0 for no limit.");
    PORT_REQUESTS: Number<u32> = option(OWN, "port_requests", "32", COUNT,
        "Requests of a tap that are with Nova; 0 for no limit.");
    PORT_HELD: Number<u32> = option(OWN, "port_held", "32", COUNT,
        "Requests of a tap that wait for their identity; 0 for no limit.");
    REQUEST_RATE: Number<u32> = option(OWN, "request_rate", "100", COUNT,
        "Requests a second of a tap; 0 for no limit.");
    REQUEST_BURST: Number<u32> = option(OWN, "request_burst", "200", POSITIVE, "Requests at once.");
    LIMIT_STATUS: Choice<u16> = option(OWN, "limit_status", "503", Choice(&[("503", 503), ("429", 429)]),
        "Status of an answer beyond a limit. 429 ends a boot stage of cloud-init.");
    LIFETIME: Seconds = option(OWN, "connection_lifetime", "600", TIMEOUT,
        "Seconds after which a connection takes no further request.");
    HEAD_BYTES: Number<usize> = option(OWN, "request_head_bytes", "16384", BYTES,
        "Bytes of a request's head, beyond which the answer is 431.");
    BODY_BYTES: Number<usize> = option(OWN, "request_body_bytes", "65536", BYTES,
        "Bytes of a request's body, beyond which the answer is 413.");
    TOKEN_MODE: Choice<TokenMode> = option(OWN, "token_mode", "off", MODES,
        "Session tokens (IMDSv2), see docs/imdsv2.md, also for the next options.");
    TOKEN_PROJECTS: Words<Vec<Rule>> = option(OWN, "token_projects", "",
        Words { parse: rules::rules, range: "PATTERN:MODE, one or several" },
        "The mode for projects, as in `51bb*:required, *7:off`.");
    TOKEN_NETWORKS: Words<Vec<Rule>> = option(OWN, "token_networks", "",
        Words { parse: rules::rules, range: "PATTERN:MODE, one or several" },
        "The same for networks; it counts before the one for projects.");
    TOKEN_REQUIRED_AFTER: Seconds = option(OWN, "token_required_after", "0", TIME,
        "Seconds from a port's first appearance in which nobody needs a token, for boot clients that know none.");
    // Documents in which Nova hands out secrets: user data and vendor data of both interfaces, the password, and files that
    // were given to an instance (`openstack/content/`).
    TOKEN_REQUIRED_FOR: Words<Vec<String>> = option(OWN, "token_required_for",
        "user-data, user_data, password, vendor_data.json, vendor_data2.json, content",
        Words { parse: rules::parts, range: "parts of a path, or `*`" },
        "Parts of a path that need a token where they are required; `*` for all paths.");
    TOKEN_HOP_LIMIT: Words<Option<u8>> = option(OWN, "token_hop_limit", "0",
        Words { parse: rules::hops, range: "0 to 64" },
        "TTL of the answer with a token: 1 keeps it from whoever the guest routes for. 0 for the system's.");
    ANSWER_HOP_LIMIT: Words<Option<u8>> = option(OWN, "answer_hop_limit", "0",
        Words { parse: rules::hops, range: "0 to 64" }, "TTL of all answers, likewise.");
    REFUSE_FORWARDED: Boolean = option(OWN, "refuse_forwarded", "false", Boolean,
        "Refuse requests with `X-Forwarded-For`, `Forwarded` or `Via`, which only a proxy writes.");
    ADMIN_LISTEN: Words<Option<std::net::SocketAddr>> = option(OWN, "admin_listen", "",
        Words { parse: words::optional_address, range: "address:port" },
        "An address and port for `/metrics` and `/ready`, besides the socket; choose an address that no guest reaches.");
}
