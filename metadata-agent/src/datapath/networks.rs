//! The devices of networks, which Open vSwitch makes: up while they have the program, and down else.
//!
//! Behind such a device is the host's own stack, which no guest is to reach. The program lets nothing pass; besides, the
//! device has no address, answers no ARP, and has another MAC address than the metadata port, so that the stack takes
//! what is sent to that one for somebody else's.
#![forbid(unsafe_code)]
use std::io;

use futures_util::TryStreamExt as _;
use netlink_packet_route::link::LinkFlags;
use rtnetlink::LinkUnspec;

use super::{
    Device, Error,
    netlink::{block_on, netlink, refused, write_sysctl},
};

/// Sets a device up.
pub(super) fn set_up(device: &Device) -> Result<(), Error> {
    let Device { ifindex, name, .. } = device;
    let set = async {
        write_sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        let up = LinkUnspec::new_with_index(*ifindex).arp(false).up().build();
        netlink()?.link().set(up).execute().await.map_err(refused)
    };
    block_on(set).map_err(|error| Error::Network { ifindex: *ifindex, error })
}

/// Sets a device down, which may be gone already. Another one that has its index by now stays as it is.
pub(super) fn set_down(ifindex: u32) -> Result<(), Error> {
    let set = async {
        let handle = netlink()?;
        match handle.link().get().match_index(ifindex).execute().try_next().await.map_err(refused)? {
            Some(link) if link.header.flags.contains(LinkFlags::Noarp) => {
                let down = LinkUnspec::new_with_index(ifindex).down().build();
                handle.link().set(down).execute().await.map_err(refused)
            }
            _ => Ok(()),
        }
    };
    match block_on(set) {
        Err(error) if is_gone(&error) => Ok(()),
        result => result.map_err(|error| Error::Network { ifindex, error }),
    }
}

/// Those that are down. One that is gone is not among them: of that netlink tells.
pub(super) fn down(devices: &[Device]) -> Result<Vec<u32>, Error> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let look = async {
        let handle = netlink()?;
        let mut down = Vec::new();
        for Device { ifindex, .. } in devices {
            match handle.link().get().match_index(*ifindex).execute().try_next().await.map_err(refused) {
                Ok(Some(link)) if !link.header.flags.contains(LinkFlags::Up) => down.push(*ifindex),
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(down)
    };
    block_on(look).map_err(Error::Devices)
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENODEV)
}
