//! Queue of messages to a server, and the limit of the answers in it.

use std::collections::VecDeque;
use std::io;

use tokio::io::AsyncWriteExt;

use crate::session::Transmit;

/// Requests that are not written yet, beyond which no more are taken; and answers, beyond which a server that asks
/// without reading is not read either.
///
/// Reading must not depend on requests: a server takes none while it has something to say that the client does not read
/// (ovsdb_jsonrpc_session_run() in Open vSwitch's jsonrpc-server.c), and both would wait for each other.
const MAX_OUTGOING: usize = 64;

/// As much, in bytes, of answers alone: they repeat what the server sent.
const MAX_ANSWERED: usize = 1 << 20;

/// Queue of messages to be written.
#[derive(Default)]
pub(super) struct Outgoing {
    messages: VecDeque<Transmit>,
    /// Number of the messages that are answers.
    answers: usize,
    answered: usize,
    /// Bytes of the first message that were written.
    written: usize,
    unflushed: bool,
}

impl Outgoing {
    pub(super) fn push(&mut self, message: Transmit) {
        if message.is_answer {
            self.answers += 1;
            self.answered += message.message.len();
        }
        self.messages.push_back(message);
    }

    /// True if no more requests can be taken.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() - self.answers >= MAX_OUTGOING
    }

    /// True if the server wants more answers than it reads.
    pub(super) fn is_flooded(&self) -> bool {
        self.answers >= MAX_OUTGOING || self.answered >= MAX_ANSWERED
    }

    pub(super) fn is_done(&self) -> bool {
        self.messages.is_empty() && !self.unflushed
    }

    /// Writes everything. Dropped half done, it goes on from there the next time.
    pub(super) async fn write(&mut self, writer: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        while let Some(Transmit { message, is_answer }) = self.messages.front() {
            self.unflushed = true;
            self.written += writer.write(&message[self.written..]).await?;
            if self.written == message.len() {
                if *is_answer {
                    self.answers -= 1;
                    self.answered -= message.len();
                }
                self.messages.pop_front();
                self.written = 0;
            }
        }
        writer.flush().await?;
        self.unflushed = false;
        Ok(())
    }
}
