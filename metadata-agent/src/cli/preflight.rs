//! Loads what the configuration names, as an agent does that starts, and changes nothing.
use ovsdb_client::{Role, TlsError};

use crate::{
    admin,
    config::{Config, SourceOptions},
    inventory::StaticInventory,
    nova::Dialler,
};

/// Everything that cannot be used.
pub(super) fn problems(config: &Config) -> Vec<anyhow::Error> {
    let checks = [nova(config), source(config), admin(config)];
    checks.into_iter().filter_map(Result::err).collect()
}

fn nova(config: &Config) -> anyhow::Result<()> {
    Ok(Dialler::new(&config.nova).map(drop)?)
}

fn source(config: &Config) -> anyhow::Result<()> {
    match &config.source {
        SourceOptions::Static(path) => Ok(StaticInventory::read(path).map(drop)?),
        SourceOptions::Ovn { southbound, .. } => match &southbound.tls {
            Some(files) => files.check().map_err(of_southbound),
            None => Ok(()),
        },
    }
}

/// Names the option besides the file.
fn of_southbound(error: TlsError) -> anyhow::Error {
    match error {
        TlsError::File(error) => {
            let option = match error.role {
                Role::Authorities => "ovn_sb_ca_cert",
                Role::Certificate => "ovn_sb_certificate",
                Role::PrivateKey => "ovn_sb_private_key",
            };
            anyhow::anyhow!("[ovn] {option} {}: {}", error.path.display(), error.problem)
        }
        other => other.into(),
    }
}

fn admin(config: &Config) -> anyhow::Result<()> {
    config.admin_listen.map_or(Ok(()), admin::check_address)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Place;

    #[test]
    fn everything_that_is_named_is_loaded() {
        let folder = std::env::temp_dir().join(format!("metadata-agent-preflight-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let found = |lines: &str| -> Vec<String> {
            let file = folder.join("agent.conf");
            fs::write(&file, format!("[DEFAULT]\nmetadata_proxy_shared_secret = s\n{lines}\n")).unwrap();
            let config = Config::read(&[Place::File(file)]).unwrap();
            problems(&config).iter().map(|error| format!("{error:#}")).collect()
        };
        assert_eq!(found(""), Vec::<String>::new());
        let [nova, southbound, admin] = &found(
            "nova_metadata_protocol = https\nauth_ca_cert = /missing\n[ovn]\novn_sb_connection = ssl:127.0.0.1:1\n\
             ovn_sb_private_key = /none/key\novn_sb_certificate = /none/cert\novn_sb_ca_cert = /none/ca\n\
             [metadata_ebpf]\nadmin_listen = 192.0.2.77:9000",
        )[..] else {
            panic!("other problems")
        };
        assert!(nova.starts_with("auth_ca_cert /missing: No such file"), "{nova}");
        assert!(southbound.starts_with("[ovn] ovn_sb_ca_cert /none/ca: No such file"), "{southbound}");
        assert!(admin.starts_with("cannot listen at admin_listen = 192.0.2.77:9000"), "{admin}");

        // Only what is used.
        let unused =
            "auth_ca_cert = /missing\n[ovn]\novn_sb_connection = tcp:127.0.0.1:1\novn_sb_ca_cert = /none";
        assert_eq!(found(unused), Vec::<String>::new());

        let inventory = folder.join("inventory.toml");
        let lines = format!("[metadata_ebpf]\ninventory = {}", inventory.display());
        assert!(found(&lines)[0].starts_with("cannot read the inventory"), "{:?}", found(&lines));
        fs::write(&inventory, "[[port]]\ntap = 7\n").unwrap();
        assert!(
            found(&lines)[0].contains("inventory.toml: TOML parse error at line 2"),
            "{:?}",
            found(&lines)
        );
        fs::write(&inventory, "").unwrap();
        assert_eq!(found(&lines), Vec::<String>::new());
        fs::remove_dir_all(&folder).unwrap();
    }
}
