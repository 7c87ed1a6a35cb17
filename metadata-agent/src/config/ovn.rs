//! The databases of OVN and Open vSwitch, by Neutron's options.
use std::time::Duration;

use super::{
    Error, SECTION, Source, defaults,
    ini::Value,
    options::{Options, boolean, milliseconds, seconds},
};

/// Neither probes nor attempts to connect follow each other faster.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// By this the agents of a region ask a server of the Southbound for their ports one after another.
const TURN_LOCK: &str = "metadata_agent_turn";

/// `[ovs]` and `[ovn]`.
pub(super) fn source(options: &Options<'_>) -> Result<Source, Error> {
    let probe = options.parse("ovn", "ovsdb_probe_interval", Duration::from_secs(60), milliseconds)?;
    // As python-ovs has it, for those who mean seconds.
    let probe = if probe.is_zero() { probe } else { probe.max(LEAST_INTERVAL) };
    let client = |section, option, default: &str, database| {
        let value = options.text(section, option)?.unwrap_or_else(|| Value::default(default));
        if value.text != default {
            options.differs_as_it_stands(section, option);
        }
        let remotes = remotes(&value.text).map_err(|problem| Error::new(section, option, value, problem))?;
        let mut config = ovsdb_client::Config::new(remotes, database);
        config.probe_interval = probe;
        Ok::<_, Error>(Box::new(config))
    };
    let ovs = client("ovs", "ovsdb_connection", defaults::OVS, "Open_vSwitch")?;
    if has_tls(&ovs)
        && let Some(value) = options.text("ovs", "ovsdb_connection")?
    {
        let problem = "ssl: is for the Southbound; the local Open vSwitch is asked over unix: or tcp:";
        return Err(Error::new("ovs", "ovsdb_connection", value, problem.into()));
    }
    let mut southbound = client("ovn", "ovn_sb_connection", defaults::SOUTHBOUND, "OVN_Southbound")?;
    let longest = options.parse("ovn", "ovsdb_retry_max_interval", southbound.backoff_max, seconds)?;
    southbound.turn_lock = Some(TURN_LOCK.to_owned());
    southbound.backoff_max = longest.max(LEAST_INTERVAL);
    if has_tls(&southbound) {
        let file = |option| {
            options.path("ovn", option)?.ok_or(Error::Missing {
                section: "ovn",
                option,
                remedy: "ovn_sb_connection has an ssl: remote, which needs a key, a certificate and a CA file",
            })
        };
        southbound.tls = Some(ovsdb_client::TlsConfig {
            private_key: file("ovn_sb_private_key")?,
            certificate: file("ovn_sb_certificate")?,
            ca_certificates: file("ovn_sb_ca_cert")?,
            verify_hostname: false,
        });
    }
    let down_time = options.parse("DEFAULT", "agent_down_time", Duration::from_secs(75), |text| {
        let seconds = text.parse::<u32>().map_err(|_| "expected a whole number of seconds")?;
        Ok(Duration::from_secs(seconds.into()))
    })?;
    let monitor_all = options.parse(SECTION, "southbound_monitor_all", false, boolean)?;
    let network_devices = options.parse(SECTION, "network_devices", true, boolean)?;
    Ok(Source::Ovn { ovs, southbound, down_time, monitor_all, network_devices })
}

fn has_tls(config: &ovsdb_client::Config) -> bool {
    config.remotes.as_slice().iter().any(|remote| matches!(remote, ovsdb_client::Remote::Ssl(_)))
}

/// One or several remotes; a list may go on over several lines.
fn remotes(text: &str) -> Result<ovsdb_client::Remotes, String> {
    let joined: String = text.split_whitespace().collect();
    joined.parse().map_err(|error: ovsdb_client::RemoteError| error.to_string())
}
