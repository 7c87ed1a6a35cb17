//! Descriptors that the kernel gives as numbers, owned from then on.
#![allow(unsafe_code, reason = "whether a number is a descriptor, and whose, is nothing that a type tells")]
use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{errno::Errno, libc, sys::signal::Signal};
use tokio::io::{Interest, unix::AsyncFd};

/// Owns a descriptor that the kernel has just made for this process, or that was made for it before it was started, and
/// that nothing else knows of.
pub(crate) fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: that is what callers say by calling this.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// The network namespace that a socket is of (`SIOCGSKNS` of linux/sockios.h, since Linux 4.10).
pub(crate) fn namespace_of(socket: &impl AsFd) -> io::Result<File> {
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: it takes no argument, and gives a new descriptor.
    let raw = Errno::result(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) })?;
    Ok(own(raw).into())
}

/// A process, by a descriptor that can be read when it has ended (pidfd_open(2), since Linux 5.3).
pub(crate) fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: it takes two numbers, and gives a new descriptor.
    let raw = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    Ok(own(raw as RawFd))
}

/// Sends a signal to the process that such a descriptor is of (pidfd_send_signal(2), since Linux 5.1).
pub(crate) fn send(process: &impl AsFd, signal: Signal) -> io::Result<()> {
    let (raw, nothing) = (process.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: it takes numbers, and a pointer that may be null.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, raw, signal as libc::c_int, nothing, 0)
    })?;
    Ok(())
}

/// Watches a descriptor, on the current runtime.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns the descriptor, keeps it open for its whole life and always gives the same one.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// Closes everything that whoever started this process has left open, but for standard input, output and error
/// (close_range(2), since Linux 5.9). Nothing in this process may own one of them yet.
pub(crate) fn close_inherited() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: it takes three numbers; that nobody owns what is closed is what callers say by calling this.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_socket_is_of_the_namespace_that_it_was_made_in() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        match namespace_of(&socket) {
            Ok(found) => {
                let own = std::fs::metadata("/proc/self/ns/net").unwrap();
                assert_eq!(found.metadata().unwrap().ino(), own.ino());
            }
            // It takes CAP_NET_ADMIN.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }
}
