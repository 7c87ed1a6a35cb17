//! Packages, dpkg's and rpm's: installed, upgraded and removed; guests ask while dpkg does it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use metadata_tests::{
    command::run,
    service::{NETNS, PATIENCE, RUN_DIR, install_package, install_rpm, remove_package, remove_rpm},
    wait::until,
};

use super::{MOUNTS, SERVICE_DEVICE, left_behind, on_host, while_guests_ask};

const OPTIONS: &str = "/etc/metadata-agent.conf";

/// Installed over the one that runs, the package has the new program take over.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn nobody_notices_an_upgrade_of_the_package() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        let (pid, before) = (host.service.pid()?, left_behind()?);
        while_guests_ask(host, || {
            install_package()?;
            until("the successor is the main process", PATIENCE, || {
                ensure!(host.service.pid()? != pid);
                Ok(())
            })
        })?;
        assert_eq!(left_behind()?, before);
        host.serves()
    })
}

/// The configuration stays when the package goes, and goes when it is purged. Nothing of it is on the machine then.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn nothing_is_left_of_a_removed_package() -> Result<()> {
    on_host(|host| {
        host.serves()?;
        let options = Path::new(OPTIONS);
        remove_package(false)?;
        host.service.has(&["ActiveState=inactive", "LoadState=not-found"])?;
        nothing_is_left()?;
        ensure!(options.exists(), "the configuration is gone");
        remove_package(true)?;
        ensure!(!options.exists(), "the configuration is left");
        let left = run(Command::new("sh").args(["-c", "dpkg --get-selections metadata-agent 2>&1 || true"]))?;
        ensure!(!left.contains("install"), "{left}");

        install_package()?;
        host.service.configure("")?;
        host.service.has(&["ActiveState=inactive", "UnitFileState=disabled"])?;
        host.service.systemctl("enable --now")?;
        host.serves()
    })
}

/// Leavings of a package that was removed: none.
fn nothing_is_left() -> Result<()> {
    let gone = [RUN_DIR, SERVICE_DEVICE, "/usr/bin/metadata-agent"].map(PathBuf::from);
    for path in gone.into_iter().chain([Path::new("/run/netns").join(NETNS)]) {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    let mounts = fs::read_to_string("/proc/1/mounts")?;
    ensure!(MOUNTS.iter().all(|mount| !mounts.contains(mount)), "{mounts}");
    Ok(())
}

/// The package of rpm's does the same by its own scripts, on a machine of dpkg's from which the other one is gone. That nobody notices
/// such a takeover is seen above.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn a_package_of_rpms_is_installed_upgraded_and_removed() -> Result<()> {
    on_host(|host| {
        remove_package(true)?;
        install_rpm(false)?;
        host.service.configure("")?;
        let options = fs::read_to_string(OPTIONS)?;
        host.service.systemctl("enable --now")?;
        host.serves()?;

        let (pid, before) = (host.service.pid()?, left_behind()?);
        install_rpm(true)?;
        until("the successor is the main process", PATIENCE, || {
            ensure!(host.service.pid()? != pid);
            Ok(())
        })?;
        assert_eq!(left_behind()?, before);
        assert_eq!(fs::read_to_string(OPTIONS)?, options);
        host.serves()?;

        remove_rpm()?;
        host.service.has(&["ActiveState=inactive", "LoadState=not-found"])?;
        nothing_is_left()?;
        // What an administrator wrote is kept under another name, and so is what a release had beside it.
        ensure!(!Path::new(OPTIONS).exists(), "the configuration is in effect still");
        assert_eq!(fs::read_to_string(format!("{OPTIONS}.rpmsave"))?, options);
        for kept in ["rpmsave", "rpmnew"] {
            fs::remove_file(format!("{OPTIONS}.{kept}"))?;
        }

        install_package()?;
        host.service.configure("")?;
        host.service.systemctl("enable --now")?;
        host.serves()
    })
}
