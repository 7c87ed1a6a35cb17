//! Confinement by the unit: what the agent may, and that its guest-facing process may nothing.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use metadata_tests::{
    process::family,
    service::{RUN_DIR, UNIT},
};

use super::on_host;

/// Capabilities by their number in linux/capability.h.
const CAPABILITIES: [(&str, u32); 12] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_RAW", 13),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn the_process_is_confined_as_the_unit_says() -> Result<()> {
    on_host(|host| {
        let status = fs::read_to_string(format!("/proc/{}/status", host.service.pid()?))?;
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).with_context(|| format!("no {name} in {status}"))
        };
        let granted = u64::from_str_radix(value("CapBnd")?, 16)?;
        let named = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let named: Vec<_> = named.context("the unit bounds no capabilities")?.split(' ').collect();
        let expected = CAPABILITIES.iter().filter(|(name, _)| named.contains(name));
        assert_eq!(named.len(), CAPABILITIES.len(), "{named:?}");
        assert_eq!(granted, expected.map(|(_, number)| 1 << number).sum::<u64>());
        assert_eq!(value("CapEff")?, value("CapBnd")?);
        assert_eq!(value("NoNewPrivs")?, "1");
        // A filter of system calls is in force.
        assert_eq!(value("Seccomp")?, "2");
        Ok(())
    })
}

/// The process that guests talk to, under that unit: what confines it is not kept from it by the unit.
#[test]
#[ignore = "for a machine whose init is systemd: cargo xtask vm-test"]
fn the_guest_facing_process_has_no_privilege() -> Result<()> {
    on_host(|host| {
        let [_, guests] = family(host.service.pid()?)?[..] else { bail!("another number of processes") };
        let status = fs::read_to_string(format!("/proc/{guests}/status"))?;
        let user = format!("\t{}", host.service.guest_user()?).repeat(4);
        let none = "\t0000000000000000";
        let fields =
            [("Uid", user.as_str()), ("Gid", &user), ("CapBnd", none), ("CapPrm", none), ("CapEff", none)];
        for (field, expected) in
            fields.into_iter().chain([("CapInh", none), ("CapAmb", none), ("NoNewPrivs", "\t1")])
        {
            ensure!(status.contains(&format!("\n{field}:{expected}\n")), "{field} in {status}");
        }
        ensure!(status.contains("\nSeccomp:\t2\n"), "{status}");
        assert_eq!(fs::read_link(format!("/proc/{guests}/root"))?, Path::new(RUN_DIR).join("empty"));
        let log = host.service.log()?;
        ensure!(!log.contains("is not confined"), "{log}");
        Ok(())
    })
}
