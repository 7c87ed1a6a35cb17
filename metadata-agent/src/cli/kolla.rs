//! kolla's `kolla_set_configs --check`, by which kolla-ansible asks a running container whether files have changed since it was
//! started. Its image has this program under that name: the agent reads the files where kolla puts them, and copies none.
use std::{env, fs, io, path::Path, process::ExitCode};

use anyhow::bail;

use crate::{
    config::{Config, Place},
    files::Folder,
};

/// Name of the file in the run directory that has the digest of what the running agent has read.
pub(super) const FILE: &str = "configuration.sha256";

const NAME: &str = "kolla_set_configs";
/// Files that the image reads by default.
const FILES: [&str; 2] = [
    "/var/lib/kolla/config_files/neutron.conf",
    "/var/lib/kolla/config_files/neutron_ovn_metadata_agent.ini",
];

/// True if this program is run under that name.
pub(super) fn is_asked() -> bool {
    env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some(NAME.as_ref()))
}

/// Exit status 0 if the running agent has read what the files say, 1 if it has not. Files with an error, or that cannot be read,
/// have another one, on which kolla-ansible stops: an agent that is started anew could not read them either.
pub(super) fn answer() -> ExitCode {
    check().unwrap_or_else(|error| {
        eprintln!("{NAME}: {error:#}");
        ExitCode::from(super::EX_CONFIG)
    })
}

fn check() -> anyhow::Result<ExitCode> {
    if env::args_os().skip(1).collect::<Vec<_>>() != ["--check"] {
        bail!("here {NAME} has --check only: the agent reads files where they are");
    }
    let config = Config::read(&FILES.map(|file| Place::File(file.into())))?;
    if is_in_effect(&config) {
        return Ok(ExitCode::SUCCESS);
    }
    println!("the running agent has read other contents of {}", FILES.join(" and "));
    Ok(ExitCode::from(1))
}

/// True if the agent of that run directory remembers the same.
fn is_in_effect(config: &Config) -> bool {
    fs::read_to_string(config.run_dir.join(FILE)).is_ok_and(|known| known == text(&config.digest))
}

/// Has later questions hear that the configuration with that digest is in effect.
pub(super) fn remember(run_dir: &Path, digest: &[u8]) -> io::Result<()> {
    Folder::open(run_dir)?.replace(FILE, text(digest).as_bytes())
}

fn text(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_changed_file_is_noticed() {
        let folder = env::temp_dir().join(format!("metadata-kolla-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let file = folder.join("agent.conf");
        let options = format!(
            "[DEFAULT]\nmetadata_proxy_shared_secret = one\n[metadata_ebpf]\nrun_dir = {}\n",
            folder.display()
        );
        let read = |places: &[&PathBuf]| {
            Config::read(&places.iter().map(|file| Place::File((*file).clone())).collect::<Vec<_>>()).unwrap()
        };
        fs::write(&file, &options).unwrap();
        let config = read(&[&file]);
        assert!(!is_in_effect(&config), "nobody has said so");
        remember(&config.run_dir, &config.digest).unwrap();
        assert!(is_in_effect(&read(&[&file])));
        assert!(!is_in_effect(&read(&[&file, &file])), "another one was read besides");
        fs::write(&file, options.replace("one", "two")).unwrap();
        assert!(!is_in_effect(&read(&[&file])), "the secret is another one");
        fs::remove_dir_all(folder).unwrap();
    }
}
