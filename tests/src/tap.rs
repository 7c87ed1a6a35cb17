//! A NIC as a hypervisor makes it: a tap on the host, and frames with virtio's offloads carried to the guest's own.
//!
//! ```text
//!   guest               |                                | host
//!   eth0 (tap) ── descriptor ── relay (a thread) ── descriptor ── tapX [TC ingress] ── switch
//! ```
//!
//! The guest's end is a tap as well, and its kernel does what a guest's kernel does: it leaves checksums unfinished and
//! hands over TCP in pieces of up to 64 KiB. The header that says so (`virtio_net_hdr`) is carried along.
//!
//! Several guests can be behind one tap, in a VLAN each: their frames are tagged on the host's side only.
#![allow(unsafe_code, reason = "calls to the kernel that no library has")]

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    iter,
    num::NonZeroUsize,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    thread,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::{netns::Namespace, port::Port, vlan};

/// Offloads that a virtio NIC and vhost agree on: checksums, and segmentation of TCP over either IP.
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// The largest segment that is handed over whole, with its headers.
const LARGEST_FRAME: usize = 70_000;

mod ioctl {
    //! The kernel's numbers (linux/if_tun.h, linux/sockios.h).
    use nix::{
        ioctl_write_int_bad, ioctl_write_ptr, ioctl_write_ptr_bad,
        libc::{SIOCSIFFLAGS, c_int, c_uint, ifreq},
        request_code_write,
    };

    ioctl_write_ptr_bad!(set_device, request_code_write!(b'T', 202, size_of::<c_int>()), ifreq);
    ioctl_write_int_bad!(set_offload, request_code_write!(b'T', 208, size_of::<c_uint>()));
    ioctl_write_ptr!(set_ifindex, b'T', 218, c_uint);
    ioctl_write_ptr_bad!(set_flags, SIOCSIFFLAGS, ifreq);
}

/// One side of the relay, and the VLAN of the guest on it, 0 for none.
struct End {
    device: File,
    vlan: u16,
}

/// A port's tap without a machine behind it; it is gone when this is dropped.
#[derive(Debug)]
pub struct BareTap {
    pub port: Port,
    pub ifindex: u32,
    /// Descriptors, one for each queue.
    pub queues: Vec<File>,
}

impl BareTap {
    pub(crate) fn plug(host: &Namespace, port: Port, ifindex: u32) -> Result<Self> {
        Self::plug_with(host, port, ifindex, NonZeroUsize::MIN)
    }

    /// The same with so many queues, as a machine of several processors has them.
    pub fn plug_with(host: &Namespace, port: Port, ifindex: u32, queues: NonZeroUsize) -> Result<Self> {
        let kind = if queues.get() == 1 { 0 } else { libc::IFF_MULTI_QUEUE };
        let first = open(host, &port.tap, Some(ifindex), kind)?;
        let more = (1..queues.get()).map(|_| open(host, &port.tap, None, kind));
        let queues = iter::once(Ok(first)).chain(more).collect::<Result<_>>()?;
        set_up(host, &port.tap)?;
        Ok(Self { port, ifindex, queues })
    }
}

/// Makes `tap` on the host, with that ifindex if it matters, and `eth0` in each guest, and carries frames between them
/// until one of them is deleted.
pub(crate) fn connect(
    host: &Namespace,
    tap: &str,
    ifindex: Option<u32>,
    guests: &[(u16, &Namespace)],
) -> Result<()> {
    let host = create(host, tap, ifindex)?;
    let end = |(vlan, guest): &(u16, &Namespace)| -> Result<End> {
        Ok(End { device: create(guest, "eth0", None)?, vlan: *vlan })
    };
    let guests = guests.iter().map(end).collect::<Result<Vec<_>>>()?;
    thread::spawn(move || relay(&host, &guests));
    Ok(())
}

/// A tap lives as long as somebody has its descriptor.
pub(crate) fn create(netns: &Namespace, name: &str, ifindex: Option<u32>) -> Result<File> {
    open(netns, name, ifindex, 0)
}

/// One queue of a tap, which is made if it is not there.
fn open(netns: &Namespace, name: &str, ifindex: Option<u32>, kind: libc::c_int) -> Result<File> {
    let make = || -> io::Result<File> {
        // The device appears in the namespace in which this is opened.
        let file =
            File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let request = request(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | kind);
        // SAFETY: the descriptor is open, and the pointers are to values of the types that these calls read.
        unsafe {
            if let Some(ifindex) = ifindex {
                ioctl::set_ifindex(file.as_raw_fd(), &ifindex)?;
            }
            ioctl::set_device(file.as_raw_fd(), &request)?;
            ioctl::set_offload(file.as_raw_fd(), OFFLOADS as libc::c_int)?;
        }
        Ok(file)
    };
    netns.run(make)?.with_context(|| format!("cannot make the tap {name} in {}", netns.name()))
}

/// Sets a device up, sooner than by starting a program.
pub(crate) fn set_up(netns: &Namespace, name: &str) -> Result<()> {
    netns.run(|| set_up_here(name))?.with_context(|| format!("cannot set up {name} in {}", netns.name()))
}

/// The same in the namespace of the calling thread.
pub fn set_up_here(name: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the descriptor is open, and the pointer is to a value of the type that this call reads.
    unsafe { ioctl::set_flags(socket.as_raw_fd(), &request(name, libc::IFF_UP))? };
    Ok(())
}

fn request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: all zeroes is a valid value of this structure of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

fn relay(host: &File, guests: &[End]) {
    let mut buffer = vec![0; LARGEST_FRAME];
    let devices: Vec<&File> = iter::once(host).chain(guests.iter().map(|guest| &guest.device)).collect();
    loop {
        let mut waiting: Vec<_> =
            devices.iter().map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if waiting.iter().any(|end| end.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))) {
            return;
        }
        let down = carry(host, &mut buffer, |frame| {
            let (vlan, frame) = vlan::untagged(frame);
            for guest in guests.iter().filter(|guest| guest.vlan == vlan) {
                send(&guest.device, &frame);
            }
        });
        let up = guests.iter().try_for_each(|guest| {
            carry(&guest.device, &mut buffer, |frame| send(host, &vlan::tagged(frame, guest.vlan)))
        });
        if down.and(up).is_err() {
            return;
        }
    }
}

/// All frames that wait at one end; an error when its device is gone.
fn carry(mut from: &File, buffer: &mut [u8], to: impl Fn(&[u8])) -> io::Result<()> {
    loop {
        match from.read(buffer) {
            Ok(length) => to(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A device that is down takes nothing, like a cable that is not plugged in; that one is gone shows in its turn.
fn send(mut to: &File, frame: &[u8]) {
    let _ = to.write(frame);
}
