//! The kernel that runs the tests.

use std::{fs, path::Path};

use anyhow::{Result, bail};

/// True if it has TCX links, by its version.
pub fn has_tcx() -> Result<bool> {
    Ok(version()? >= (6, 6))
}

/// True if it has IPv6, as it has not with `ipv6.disable=1`.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn version() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("a kernel of no version: {release}");
    };
    Ok((major, minor))
}
