//! Telling a physical network that a metadata port is on this chassis now.
//!
//! OVN may make another chassis responsible for an external port. Switches then go on leading frames for the metadata
//! port's MAC address to the former one, until they forget it (five minutes, mostly) or hear from it elsewhere. OVN
//! lets nothing out to there but what is for the external port's own MAC address, so that each gets an ARP reply that
//! it has not asked for (RFC 5227, section 3, unicast): for 169.254.169.254, which is at the metadata port's MAC
//! address.
#![forbid(unsafe_code)]
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use metadata_ebpf::{address::METADATA_V4, map::Mac, packet::arp};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, bind, send, socket,
    },
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Device;

/// Pause after the first announcement; each further one is twice as long. ovn-controller has its flows in place some time
/// after the device is there, and says of no metadata port when.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Number of announcements: over ten seconds.
const TIMES: u32 = 10;

/// Announces the metadata port to a station, some times, unless that is `gone` before.
pub fn announce(device: &Device, metadata_port: Mac, station: Mac, gone: CancellationToken) {
    let frame = arp::announcement(METADATA_V4, metadata_port.bytes(), station.bytes());
    let device = device.clone();
    tokio::spawn(async move {
        for time in 0..TIMES {
            if let Err(error) = transmit(&device, &frame) {
                warn!(
                    device = device.name,
                    %error,
                    "a physical network cannot be told that its metadata port is here now, and may take minutes to notice: \
                     that takes CAP_NET_RAW and sockets of AF_PACKET"
                );
                return;
            }
            tokio::select! {
                () = gone.cancelled() => return,
                () = sleep(FIRST_PAUSE * 2_u32.pow(time)) => {}
            }
        }
    });
}

/// Sends a frame out of a device.
fn transmit(device: &Device, frame: &[u8]) -> io::Result<()> {
    let is_its = |address: &LinkAddr| u32::try_from(address.ifindex()) == Ok(device.ifindex);
    let addresses = getifaddrs()?.filter_map(|interface| interface.address);
    let mut links = addresses.filter_map(|address| address.as_link_addr().copied());
    let Some(address) = links.find(is_its) else {
        // Netlink tells of that as well.
        return Ok(());
    };
    debug_assert_eq!(address.family(), Some(AddressFamily::Packet));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // No protocol: nothing is received.
    let socket: OwnedFd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    bind(socket.as_raw_fd(), &address)?;
    match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
        // Down for a moment, or full: there is another time.
        Err(nix::Error::ENETDOWN | nix::Error::EAGAIN | nix::Error::ENOBUFS) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
