//! Memory that the kernel has in use for a socket, as `SO_MEMINFO` tells it (Linux 4.12).
#![allow(unsafe_code, reason = "an option of sockets that no library has")]
use std::{mem::size_of_val, os::fd::AsRawFd};

use nix::libc;

/// Memory that the kernel keeps for a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Kept {
    /// Memory of bytes that were received, and that nobody has read.
    pub(crate) unread: u32,
    /// Memory of bytes that were sent; 0 if all of them are acknowledged.
    pub(crate) unacknowledged: u32,
}

impl Kept {
    /// For that socket, now; nothing if it is none.
    pub(crate) fn by(socket: &impl AsRawFd) -> Self {
        // Of linux/sock_diag.h: where they are in what the option tells.
        const SK_MEMINFO_RMEM_ALLOC: usize = 0;
        const SK_MEMINFO_WMEM_QUEUED: usize = 5;
        let mut values = [0_u32; 16];
        let mut size = size_of_val(&values) as libc::socklen_t;
        // SAFETY: the kernel writes no more than the size it is given, whatever the descriptor is.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        if result != 0 {
            return Self::default();
        }
        Self { unread: values[SK_MEMINFO_RMEM_ALLOC], unacknowledged: values[SK_MEMINFO_WMEM_QUEUED] }
    }

    /// All of it.
    pub(crate) fn sum(self) -> u32 {
        self.unread.saturating_add(self.unacknowledged)
    }
}
