//! Backlog of notices to the consumer: bounded in messages and in bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::DisconnectReason;
use crate::event::Mark;
use crate::remote::Remote;
use crate::session::{Awaited, SessionEvent};

/// Bytes that one permit of the semaphore stands for.
const UNIT: usize = 1024;

/// Notices of the task to the owner of the replica.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A new connection that does not get on.
    Waiting(Remote, Awaited),
    Connected(Remote),
    Disconnected {
        remote: Remote,
        reason: DisconnectReason,
        retry: Duration,
    },
    Session(SessionEvent),
    /// All that came before an answer is in front of this.
    Mark(Mark),
}

impl Notice {
    fn len(&self) -> usize {
        match self {
            Self::Session(SessionEvent::Contents { updates, .. } | SessionEvent::Update { updates, .. }) => {
                updates.weight()
            }
            _ => 0,
        }
    }
}

/// A notice with its share of the room, which is free again when that is dropped.
#[derive(Debug)]
pub(crate) struct Charged {
    pub(crate) notice: Notice,
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// The way to the consumer, and what finds no room there. While there is such a thing the socket is not read, unless an
/// answer is waited for.
pub(super) struct Backlog {
    notices: mpsc::Sender<Charged>,
    room: Arc<Semaphore>,
    units: u32,
    queue: VecDeque<Notice>,
    /// The bytes of the updates in `queue`.
    queued: usize,
}

impl Backlog {
    /// Up to `limit` bytes of updates may wait for the consumer; a larger one has the room to itself.
    pub(super) fn new(notices: mpsc::Sender<Charged>, limit: usize) -> Self {
        let units = u32::try_from(limit / UNIT).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 4);
        Self {
            notices,
            room: Arc::new(Semaphore::new(units as usize)),
            units,
            queue: VecDeque::new(),
            queued: 0,
        }
    }

    pub(super) fn push(&mut self, notice: Notice) {
        self.queued += notice.len();
        self.queue.push_back(notice);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The bytes that found no room.
    pub(super) fn bytes(&self) -> usize {
        self.queued
    }

    /// Passes the first one on once there is room; `None` if there is no consumer any more.
    pub(super) async fn send(&mut self) -> Option<()> {
        let length = self.queue.front()?.len();
        let units = u32::try_from(length.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let room = match units {
            0 => None,
            units => Some(Arc::clone(&self.room).acquire_many_owned(units).await.ok()?),
        };
        let place = self.notices.reserve().await.ok()?;
        let notice = self.queue.pop_front()?;
        self.queued -= length;
        place.send(Charged { notice, room });
        Some(())
    }
}
