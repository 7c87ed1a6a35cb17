//! The databases of OVN and Open vSwitch, by Neutron's options.
use std::time::Duration;

use super::{
    Error, SourceOptions,
    options::Options,
    setting::{OptionalPath, Setting},
    table,
    words::has_tls,
};

/// Neither probes nor attempts to connect follow each other faster.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// By this the agents of a region ask a server of the Southbound for their ports one after another.
const TURN_LOCK: &str = "metadata_agent_turn";

/// `[ovs]` and `[ovn]`.
pub(super) fn source(options: &Options<'_>) -> Result<SourceOptions, Error> {
    let probe = options.get(&table::PROBE_INTERVAL)?;
    // As python-ovs has it, for those who mean seconds.
    let probe = if probe.is_zero() { probe } else { probe.max(LEAST_INTERVAL) };
    let client = |remotes, database| {
        let mut config = ovsdb_client::Config::new(remotes, database);
        config.probe_interval = probe;
        Box::new(config)
    };
    let ovs = client(options.get(&table::OVS_CONNECTION)?, "Open_vSwitch");
    let mut southbound = client(options.get(&table::SOUTHBOUND)?, "OVN_Southbound");
    southbound.turn_lock = Some(TURN_LOCK.to_owned());
    southbound.backoff_max = options.get(&table::RETRY_INTERVAL)?.max(LEAST_INTERVAL);
    if has_tls(&southbound.remotes) {
        let file = |setting: &Setting<OptionalPath>| {
            let remedy =
                "ovn_sb_connection has an ssl: remote, which needs a key, a certificate and a CA file";
            options.get(setting)?.ok_or(Error::missing(setting, remedy))
        };
        southbound.tls = Some(ovsdb_client::TlsConfig {
            private_key: file(&table::SOUTHBOUND_KEY)?,
            certificate: file(&table::SOUTHBOUND_CERTIFICATE)?,
            ca_certificates: file(&table::SOUTHBOUND_CA)?,
            verify_hostname: false,
        });
    }
    Ok(SourceOptions::Ovn {
        ovs,
        southbound,
        down_time: Duration::from_secs(options.get(&table::AGENT_DOWN_TIME)?.into()),
        monitor_all: options.get(&table::MONITOR_ALL)?,
        network_devices: options.get(&table::NETWORK_DEVICES)?,
    })
}
