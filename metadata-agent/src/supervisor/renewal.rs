//! Certificates for Nova as a guest-facing process has them: told again when the files have changed.
use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd as _,
    sync::Arc,
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::speech::in_time;
use crate::{
    link::Command,
    nova::{Dialler, Edition},
    packets::AsyncChannel,
};

/// Edition that one process was told, and where others come from.
#[derive(Debug)]
pub(super) struct Renewal {
    dialler: Arc<Dialler>,
    told: Option<Edition>,
}

impl Renewal {
    /// For a process that was told none, or by an agent that is gone.
    pub(super) fn new(dialler: Arc<Dialler>) -> Self {
        Self { dialler, told: None }
    }

    /// Tells those that there are by now, unless it was told them.
    pub(super) async fn tell(&mut self, channel: &AsyncChannel) -> io::Result<()> {
        let Some((edition, certificates)) = self.dialler.certificates(self.told) else { return Ok(()) };
        // They may be longer than a packet.
        let mut file = File::from(memfd_create(c"certificates", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&certificates)?)?;
        in_time(channel.send(&Command::Certificates, &[file.as_fd()])).await?;
        self.told = Some(edition);
        Ok(())
    }
}
