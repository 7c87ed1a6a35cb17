//! Accounting of a connection's bytes: of a request that is not complete, and of answers that are not acknowledged.
use super::{GuestSocket, Seat};
use crate::directory::{Limit, Resource};

/// Memory around the bytes of a small answer while the kernel keeps it (`tcp_stream_alloc_skb` in net/ipv4/tcp.c: a buffer
/// without data, of up to 2304 bytes).
const AROUND: u32 = 2304;
/// Estimated bytes of answers from which the kernel is asked how much it really keeps. Asking is a system call, and most
/// answers are acknowledged by the time of the next request.
const ASKED_FROM: u32 = 16 << 10;

/// The account of one connection.
#[derive(Debug)]
pub(super) struct Account<'a> {
    seat: &'a Seat,
    /// Bytes that it is charged with.
    charged: u32,
    /// The most that the kernel can keep of its answers: so much was there at the last look, or came since.
    unconfirmed: u32,
    /// Bytes that may wait besides, behind those that are being sent, in the connection to Nova.
    pub(super) behind: u32,
}

impl<'a> Account<'a> {
    pub(super) fn new(seat: &'a Seat) -> Self {
        Self { seat, charged: 0, unconfirmed: 0, behind: 0 }
    }

    /// Bytes that the connection counts for.
    pub(super) fn charged(&self) -> u32 {
        self.charged
    }

    /// Counts for so many bytes from now on.
    pub(super) fn charge(&mut self, bytes: u32) -> Result<(), Limit> {
        if bytes != self.charged {
            self.seat.set(Resource::Bytes, bytes)?;
            self.charged = bytes;
        }
        Ok(())
    }

    /// Notes what the kernel has taken of an answer.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        self.unconfirmed = self.unconfirmed.saturating_add(bytes.len() as u32 + AROUND);
    }

    /// Counts for the answers that may not be acknowledged.
    pub(super) fn charge_answers(&mut self, socket: &impl GuestSocket) -> Result<(), Limit> {
        if self.unconfirmed >= ASKED_FROM {
            return self.look(socket);
        }
        self.charge(self.unconfirmed)
    }

    /// Counts for what the kernel keeps.
    pub(super) fn look(&mut self, socket: &impl GuestSocket) -> Result<(), Limit> {
        self.unconfirmed = socket.kept().sum();
        self.charge(self.unconfirmed)
    }

    /// The same while bytes wait for the guest to take those before them.
    pub(super) fn wait(&mut self, socket: &impl GuestSocket, waiting: &[u8]) -> Result<(), Limit> {
        self.unconfirmed = socket.kept().sum();
        self.charge(self.unconfirmed.saturating_add(waiting.len() as u32 + self.behind))
    }
}
